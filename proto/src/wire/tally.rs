//! Counts of rows as messages.

use super::generated as pb;
use super::shard::nanos;
use super::{Convert, DecodeError, each, id, maybe, messages, one};
use crate::ids::{ShardId, TableId};
use crate::services::{Counted, Growth, ShardTally, TableTally, Tally, TallyRequest};
use std::time::Duration;

impl Convert for TallyRequest {
    type Message = pb::TallyRequest;
    const NAME: &'static str = "tally_request";

    fn to_message(&self) -> pb::TallyRequest {
        let TallyRequest { shard, within, rate } = *self;
        pb::TallyRequest { shard: shard.0, within: nanos(within), rate }
    }

    fn from_message(message: pb::TallyRequest) -> Result<Self, DecodeError> {
        let pb::TallyRequest { shard, within, rate } = message;
        Ok(TallyRequest { shard: ShardId(id("shard", shard)?), within: Duration::from_nanos(within), rate })
    }
}

impl Convert for Tally {
    type Message = pb::Tally;
    const NAME: &'static str = "tally";

    fn to_message(&self) -> pb::Tally {
        let Tally { counted, counting } = self;
        pb::Tally { counted: counted.as_ref().map(Convert::to_message), counting: *counting }
    }

    fn from_message(message: pb::Tally) -> Result<Self, DecodeError> {
        let pb::Tally { counted, counting } = message;
        Ok(Tally { counted: maybe("counted", counted)?, counting })
    }
}

impl Convert for Counted {
    type Message = pb::Counted;
    const NAME: &'static str = "counted";

    fn to_message(&self) -> pb::Counted {
        let Counted { age, took, tables } = self;
        pb::Counted { age: nanos(*age), took: nanos(*took), tables: messages(tables) }
    }

    fn from_message(message: pb::Counted) -> Result<Self, DecodeError> {
        let pb::Counted { age, tables, took } = message;
        let (age, took) = (Duration::from_nanos(age), Duration::from_nanos(took));
        Ok(Counted { age, took, tables: each("tables", tables)? })
    }
}

impl Convert for TableTally {
    type Message = pb::TableTally;
    const NAME: &'static str = "table_tally";

    fn to_message(&self) -> pb::TableTally {
        let TableTally { table, rows, bytes, middle, growth } = self;
        let growth = growth.as_ref().map(Convert::to_message);
        let middle = middle.clone().map(Into::into);
        pb::TableTally { table: table.0, rows: *rows, bytes: *bytes, middle, growth }
    }

    fn from_message(message: pb::TableTally) -> Result<Self, DecodeError> {
        let pb::TableTally { table, rows, bytes, middle, growth } = message;
        let (middle, growth) = (middle.map(Into::into), maybe("growth", growth)?);
        Ok(TableTally { table: TableId(table), rows, bytes, middle, growth })
    }
}

impl Convert for Growth {
    type Message = pb::Growth;
    const NAME: &'static str = "growth";

    fn to_message(&self) -> pb::Growth {
        let Growth { over, added, past } = *self;
        pb::Growth { over: nanos(over), added, past }
    }

    fn from_message(message: pb::Growth) -> Result<Self, DecodeError> {
        let pb::Growth { over, added, past } = message;
        Ok(Growth { over: Duration::from_nanos(over), added, past })
    }
}

impl Convert for ShardTally {
    type Message = pb::ShardTally;
    const NAME: &'static str = "shard_tally";

    fn to_message(&self) -> pb::ShardTally {
        let ShardTally { shard, counted } = self;
        pb::ShardTally { shard: shard.0, counted: Some(counted.to_message()) }
    }

    fn from_message(message: pb::ShardTally) -> Result<Self, DecodeError> {
        let pb::ShardTally { shard, counted } = message;
        Ok(ShardTally { shard: ShardId(id("shard", shard)?), counted: one("counted", counted)? })
    }
}
