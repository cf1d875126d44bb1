//! Comparing rows, as messages.

use super::generated as pb;
use super::replica::{wide, wide_bytes};
use super::shard::nanos;
use super::values::{list, unlist};
use super::{Convert, DecodeError, id, inner, maybe, one, required};
use crate::ids::{LogIndex, ShardId, TableId};
use crate::services::{
    CompareRequest, Compared, ComparedNext, Difference, Sums, SumsPart, SumsPlace, SumsRequest,
};
use crate::value::Value;
use std::time::Duration;

fn key(key: Option<&Vec<Value>>) -> Option<pb::RowBatch> {
    key.map(list)
}

fn from_key(field: &str, message: Option<pb::RowBatch>) -> Result<Option<Vec<Value>>, DecodeError> {
    message.map(|message| unlist(field, message)).transpose()
}

impl Convert for SumsRequest {
    type Message = pb::SumsRequest;
    const NAME: &'static str = "sums_request";

    fn to_message(&self) -> pb::SumsRequest {
        let SumsRequest { shard, after, range, references, from, time, timeout } = self;
        pb::SumsRequest {
            shard: shard.0,
            after: after.0,
            range: Some(range.to_message()),
            references: *references,
            from: from.as_ref().map(Convert::to_message),
            time: nanos(*time),
            timeout: nanos(*timeout),
        }
    }

    fn from_message(message: pb::SumsRequest) -> Result<Self, DecodeError> {
        let pb::SumsRequest { shard, after, range, references, from, time, timeout } = message;
        Ok(SumsRequest {
            shard: ShardId(id("shard", shard)?),
            after: LogIndex(after),
            range: one("range", range)?,
            references,
            from: maybe("from", from)?,
            time: Duration::from_nanos(time),
            timeout: Duration::from_nanos(timeout),
        })
    }
}

impl Convert for SumsPlace {
    type Message = pb::SumsPlace;
    const NAME: &'static str = "place";

    fn to_message(&self) -> pb::SumsPlace {
        let SumsPlace { table, key: upto, schema } = self;
        pb::SumsPlace { table: table.0, key: key(upto.as_ref()), schema: wide_bytes(*schema) }
    }

    fn from_message(message: pb::SumsPlace) -> Result<Self, DecodeError> {
        let pb::SumsPlace { table, key, schema } = message;
        let (table, schema) = (TableId(id("table", table)?), wide("schema", &schema)?);
        Ok(SumsPlace { table, key: from_key("key", key)?, schema })
    }
}

impl Convert for Sums {
    type Message = pb::Sums;
    const NAME: &'static str = "sums";

    fn to_message(&self) -> pb::Sums {
        use pb::sums::Kind;
        let kind = match self {
            Sums::Open(position) => Kind::Open(position.0),
            Sums::Part(part) => Kind::Part(part.to_message()),
            Sums::End => Kind::End(pb::Nothing {}),
        };
        pb::Sums { kind: Some(kind) }
    }

    fn from_message(message: pb::Sums) -> Result<Self, DecodeError> {
        use pb::sums::Kind;
        Ok(match required("kind", message.kind)? {
            Kind::Open(position) => Sums::Open(LogIndex(position)),
            Kind::Part(part) => Sums::Part(inner("part", part)?),
            Kind::End(pb::Nothing {}) => Sums::End,
        })
    }
}

impl Convert for SumsPart {
    type Message = pb::SumsPart;
    const NAME: &'static str = "part";

    fn to_message(&self) -> pb::SumsPart {
        let SumsPart { after, to, rows, sum } = self;
        let (after, to) = (key(after.as_ref()), Some(to.to_message()));
        pb::SumsPart { after, to, rows: *rows, sum: wide_bytes(*sum) }
    }

    fn from_message(message: pb::SumsPart) -> Result<Self, DecodeError> {
        let pb::SumsPart { after, to, rows, sum } = message;
        let (after, to) = (from_key("after", after)?, one("to", to)?);
        Ok(SumsPart { after, to, rows, sum: wide("sum", &sum)? })
    }
}

impl Convert for CompareRequest {
    type Message = pb::CompareRequest;
    const NAME: &'static str = "compare_request";

    fn to_message(&self) -> pb::CompareRequest {
        let CompareRequest { target, source, from, time, timeout } = self;
        pb::CompareRequest {
            target: target.0,
            source: source.0,
            from: from.as_ref().map(Convert::to_message),
            time: nanos(*time),
            timeout: nanos(*timeout),
        }
    }

    fn from_message(message: pb::CompareRequest) -> Result<Self, DecodeError> {
        let pb::CompareRequest { target, source, from, time, timeout } = message;
        Ok(CompareRequest {
            target: ShardId(id("target", target)?),
            source: ShardId(id("source", source)?),
            from: maybe("from", from)?,
            time: Duration::from_nanos(time),
            timeout: Duration::from_nanos(timeout),
        })
    }
}

impl Convert for Compared {
    type Message = pb::Compared;
    const NAME: &'static str = "compared";

    fn to_message(&self) -> pb::Compared {
        use pb::compared::Next;
        let Compared { position, rows, next } = self;
        let next = match next {
            ComparedNext::From(place) => Next::From(place.to_message()),
            ComparedNext::End => Next::End(pb::Nothing {}),
            ComparedNext::Differs(difference) => Next::Differs(difference.to_message()),
        };
        pb::Compared { position: position.0, rows: *rows, next: Some(next) }
    }

    fn from_message(message: pb::Compared) -> Result<Self, DecodeError> {
        use pb::compared::Next;
        let pb::Compared { position, rows, next } = message;
        let next = match required("next", next)? {
            Next::From(place) => ComparedNext::From(inner("from", place)?),
            Next::End(pb::Nothing {}) => ComparedNext::End,
            Next::Differs(difference) => ComparedNext::Differs(inner("differs", difference)?),
        };
        Ok(Compared { position: LogIndex(position), rows, next })
    }
}

impl Convert for Difference {
    type Message = pb::Difference;
    const NAME: &'static str = "difference";

    fn to_message(&self) -> pb::Difference {
        let Difference { table, after, to, rows } = self;
        let rows = rows.map(|(source, target)| pb::difference::Counts { source, target });
        pb::Difference { table: table.0, after: key(after.as_ref()), to: key(to.as_ref()), rows }
    }

    fn from_message(message: pb::Difference) -> Result<Self, DecodeError> {
        let pb::Difference { table, after, to, rows } = message;
        Ok(Difference {
            table: TableId(id("table", table)?),
            after: from_key("after", after)?,
            to: from_key("to", to)?,
            rows: rows.map(|pb::difference::Counts { source, target }| (source, target)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_range::KeyRange;
    use crate::wire::Wire;

    fn check<T: Wire + PartialEq + std::fmt::Debug>(value: T) {
        assert_eq!(T::decode(&value.encode()).unwrap(), value);
    }

    #[test]
    fn what_concerns_comparing_comes_back() {
        let key = || Some(vec![Value::Int(7), Value::Text("x".into())]);
        let place = |key| SumsPlace { table: TableId(3), key, schema: 7 << 100 };
        for from in [None, Some(place(None)), Some(place(key()))] {
            check(SumsRequest {
                shard: ShardId(4),
                after: LogIndex(9),
                range: KeyRange { start: vec![1], end: Some(vec![2]) },
                references: true,
                from: from.clone(),
                time: Duration::from_secs(2),
                timeout: Duration::from_secs(3),
            });
            let (time, timeout) = (Duration::from_secs(2), Duration::from_secs(3));
            check(CompareRequest { target: ShardId(4), source: ShardId(5), from, time, timeout });
        }
        check(Sums::Open(LogIndex(3)));
        check(Sums::Part(SumsPart { after: key(), to: place(None), rows: 8, sum: 9 << 100 }));
        check(Sums::End);
        let differs = |rows| {
            let difference = Difference { table: TableId(3), after: None, to: key(), rows };
            ComparedNext::Differs(difference)
        };
        let nexts =
            [ComparedNext::From(place(key())), ComparedNext::End, differs(None), differs(Some((1, 0)))];
        for next in nexts {
            check(Compared { position: LogIndex(3), rows: 9, next });
        }
        let nothing = pb::Compared { position: 3, rows: 9, next: None };
        assert_eq!(Compared::from_message(nothing).unwrap_err().field(), "next");
    }
}
