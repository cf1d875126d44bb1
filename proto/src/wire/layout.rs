//! Layouts of tables as messages.

use super::generated as pb;
use super::{Convert, DecodeError, each, id, maybe, messages, required, topology};
use crate::ids::{ColumnId, TableId};
use crate::layout::{Layout, LayoutColumn, Place, TableLayout};

impl Convert for TableLayout {
    type Message = pb::TableLayout;
    const NAME: &'static str = "table_layout";

    fn to_message(&self) -> pb::TableLayout {
        let TableLayout { table, layout } = self;
        pb::TableLayout { table: table.0, layout: layout.as_ref().map(Layout::to_message) }
    }

    fn from_message(message: pb::TableLayout) -> Result<Self, DecodeError> {
        let pb::TableLayout { table, layout } = message;
        Ok(TableLayout { table: TableId(id("table", table)?), layout: maybe("layout", layout)? })
    }
}

impl Convert for LayoutColumn {
    type Message = pb::LayoutColumn;
    const NAME: &'static str = "layout_column";

    fn to_message(&self) -> pb::LayoutColumn {
        // 0 is the hidden key's.
        pb::LayoutColumn { id: self.id.0, r#type: self.ty }
    }

    fn from_message(message: pb::LayoutColumn) -> Result<Self, DecodeError> {
        Ok(LayoutColumn { id: ColumnId(message.id), ty: id("type", message.r#type)? })
    }
}

impl Convert for Layout {
    type Message = pb::Layout;
    const NAME: &'static str = "layout";

    fn to_message(&self) -> pb::Layout {
        use pb::layout::{Place as Kind, Reference, Sharded, Single};
        let Layout { columns, primary_key, place } = self;
        let place = match place {
            Place::Sharded(sharding, key) => {
                let sharding = topology::sharding_number(*sharding);
                Kind::Sharded(Sharded { sharding, key: key.clone() })
            }
            Place::Single => Kind::Single(Single {}),
            Place::Reference => Kind::Reference(Reference {}),
        };
        pb::Layout { columns: messages(columns), primary_key: primary_key.clone(), place: Some(place) }
    }

    fn from_message(message: pb::Layout) -> Result<Self, DecodeError> {
        use pb::layout::Place as Kind;
        let pb::Layout { columns, primary_key, place } = message;
        let columns: Vec<LayoutColumn> = each("columns", columns)?;
        let place = match required("place", place)? {
            Kind::Sharded(sharded) => {
                let key = positions("sharded.key", sharded.key, columns.len())?;
                if key.iter().any(|place| !primary_key.contains(place)) {
                    return Err(DecodeError::new("sharded.key", "a column isn't one of the primary key"));
                }
                Place::Sharded(topology::sharding(sharded.sharding)?, key)
            }
            Kind::Single(_) => Place::Single,
            Kind::Reference(_) => Place::Reference,
        };
        let primary_key = positions("primary_key", primary_key, columns.len())?;
        Ok(Layout { columns, primary_key, place })
    }
}

/// Places of columns, at least one.
fn positions(field: &str, places: Vec<u32>, columns: usize) -> Result<Vec<u32>, DecodeError> {
    if places.is_empty() {
        return Err(DecodeError::new(field, "it is missing"));
    }
    match places.iter().find(|place| **place as usize >= columns) {
        Some(place) => Err(DecodeError::new(field, format!("there is no column at {place}"))),
        None => Ok(places),
    }
}
