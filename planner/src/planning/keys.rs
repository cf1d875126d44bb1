//! What conditions say of columns: equal to a constant, equal to each other, within bounds.
//!
//! In comes a SELECT (or a WHERE), out go facts that hold for every row that can matter, and from them a table's
//! [`KeyFilter`]. Facts may be missed, never made up.

use super::{Planner, key_places};
use crate::bind::tree::{Body, Expr, ExprKind, From, JoinKind, RelId, RelationSource, Select};
use crate::bind::walk::grow;
use crate::plan::{KeyFilter, KeyPart, ScalarId};
use dialect::Type;
use proto::WireError;
use proto::catalog::{Placement, Table};
use proto::topology::Sharding;
use std::collections::HashMap;

/// A column of a relation.
pub(crate) type Col = (RelId, u32);

/// More values than this aren't a lookup.
const MAX_LOOKUP_KEYS: usize = 32;

/// What is known of columns.
#[derive(Debug, Default)]
pub(crate) struct Facts<'q> {
    /// The column is one of these constants.
    pub values: Vec<(Col, Vec<&'q Expr>)>,
    /// The column is between bounds: the constant, whether it's the upper one, whether it is inclusive.
    pub bounds: Vec<(Col, &'q Expr, bool, bool)>,
    /// The column is in the packed rows' column at this place.
    pub rows: Vec<(Col, ScalarId, usize)>,
    /// Relations that are packed rows.
    pub given: Vec<(RelId, ScalarId)>,
    /// The columns are equal, in every row where neither is made up by an outer join.
    pub pairs: Vec<(Col, Col)>,
    /// The first column, which an outer join can make up, equals the second wherever it isn't made up. This says
    /// nothing of two columns that one follows.
    pub follows: Vec<(Col, Col)>,
}

/// The conditions of a chain of ANDs.
pub(crate) fn conjuncts<'q>(expr: &'q Expr, found: &mut Vec<&'q Expr>) {
    match &expr.kind {
        ExprKind::And(parts) => grow(|| parts.iter().for_each(|part| conjuncts(part, found))),
        _ => found.push(expr),
    }
}

/// The column that an expression is, casts that change nothing aside.
fn column(expr: &Expr) -> Option<Col> {
    match &expr.kind {
        ExprKind::Column(rel, column) => Some((*rel, *column)),
        ExprKind::Cast(conversion, inner) if conversion.cast.is_noop() => column(inner),
        _ => None,
    }
}

/// The type that a column has under casts that change nothing.
fn inner_type(expr: &Expr) -> Type {
    match &expr.kind {
        ExprKind::Cast(conversion, inner) if conversion.cast.is_noop() => inner_type(inner),
        _ => expr.ty.ty,
    }
}

/// Whether equality of these two is equality of their key forms, and so is their order.
fn same_keys(a: &Expr, b: &Expr) -> bool {
    let (a, b) = (inner_type(a), inner_type(b));
    a == b || family(a).is_some_and(|of| family(b) == Some(of))
}

/// What types are stored alike, whichever of them a value has. Others that are numbers or texts when stored mean something else by
/// them: a date counts days and a timestamp microseconds, and of blanks at the end a `char(n)` knows nothing.
fn family(ty: Type) -> Option<Type> {
    match ty {
        Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid | Type::Regclass => Some(Type::Int8),
        Type::Float4 | Type::Float8 => Some(Type::Float8),
        Type::Text | Type::Varchar | Type::Name => Some(Type::Text),
        _ => None,
    }
}

impl<'q> Facts<'q> {
    /// The facts of a SELECT's WHERE and joins.
    pub(crate) fn of(select: &'q Select) -> Self {
        let mut facts = Facts::default();
        if let Some(filter) = &select.filter {
            facts.add(filter, true);
        }
        for from in &select.from {
            facts.from(from, true);
        }
        facts
    }

    fn from(&mut self, from: &'q From, certain: bool) {
        let (kind, left, right, on) = match from {
            From::Join { kind, left, right, on } => (kind, left, right, on),
            From::Relation(relation) => {
                if let RelationSource::Rows(rows) = relation.source
                    && certain
                {
                    self.given.push((relation.id, rows));
                }
                return;
            }
        };
        let (left_certain, right_certain) = match kind {
            JoinKind::Inner => (certain, certain),
            JoinKind::Left => (certain, false),
            JoinKind::Right => (false, certain),
            JoinKind::Full => (false, false),
        };
        self.from(left, left_certain);
        self.from(right, right_certain);
        let Some(on) = on else { return };
        let before = self.pairs.len();
        let made_up = match kind {
            JoinKind::Inner => {
                self.add(on, certain);
                if !certain {
                    // Rows that an outer join makes up don't satisfy it: it holds among the join's own columns alone.
                    let mut own = Vec::new();
                    from.each_relation(&mut |relation| own.push(relation.id));
                    let mut place = 0;
                    self.pairs.retain(|(a, b)| {
                        place += 1;
                        place <= before || own.contains(&a.0) && own.contains(&b.0)
                    });
                }
                return;
            }
            JoinKind::Left => right,
            JoinKind::Right => left,
            JoinKind::Full => return,
        };
        self.add(on, false);
        // An outer join's condition says something of the side that it can make up, nothing of the other.
        let mut side = Vec::new();
        made_up.each_relation(&mut |relation| side.push(relation.id));
        for (a, b) in self.pairs.split_off(before) {
            match (side.contains(&a.0), side.contains(&b.0)) {
                (true, true) => self.pairs.push((a, b)),
                (true, false) => self.follows.push((a, b)),
                (false, true) => self.follows.push((b, a)),
                (false, false) => {}
            }
        }
    }

    /// The facts of a condition; `certain` if every row of the result satisfies it.
    pub(crate) fn add(&mut self, condition: &'q Expr, certain: bool) {
        let mut parts = Vec::new();
        conjuncts(condition, &mut parts);
        for part in parts {
            self.conjunct(part, certain);
        }
    }

    fn conjunct(&mut self, expr: &'q Expr, certain: bool) {
        match &expr.kind {
            ExprKind::Call(operation, args) => {
                let [a, b] = args.as_slice() else { return };
                if !same_keys(a, b) {
                    return;
                }
                let (upper, inclusive) = match operation.0.function.name {
                    "=" => {
                        match (column(a), column(b)) {
                            (Some(a), Some(b)) => self.pairs.push((a, b)),
                            (Some(col), None) if certain && b.is_constant() => {
                                self.values.push((col, vec![b]))
                            }
                            (None, Some(col)) if certain && a.is_constant() => {
                                self.values.push((col, vec![a]))
                            }
                            _ => {}
                        }
                        return;
                    }
                    "<" => (true, false),
                    "<=" => (true, true),
                    ">" => (false, false),
                    ">=" => (false, true),
                    _ => return,
                };
                match (column(a), column(b)) {
                    (Some(col), None) if certain && b.is_constant() => {
                        self.bounds.push((col, b, upper, inclusive))
                    }
                    (None, Some(col)) if certain && a.is_constant() => {
                        self.bounds.push((col, a, !upper, inclusive))
                    }
                    _ => {}
                }
            }
            ExprKind::In(value, list, false) if certain => {
                if let Some(col) = column(value)
                    && list.iter().all(|item| item.is_constant() && same_keys(value, item))
                {
                    self.values.push((col, list.iter().collect()));
                }
            }
            ExprKind::InQuery(value, query, false) if certain => {
                if let Some(col) = column(value)
                    && let Body::Select(select) = &query.body
                    && let [From::Relation(relation)] = select.from.as_slice()
                    && let RelationSource::Rows(rows) = relation.source
                    && let Some((rel, place)) = select.projection.first().and_then(column)
                    && rel == relation.id
                    && same_keys(value, &select.projection[0])
                {
                    self.rows.push((col, rows, place as usize));
                }
            }
            ExprKind::Or(parts) if certain => {
                let mut values = Vec::new();
                let mut of: Option<Col> = None;
                for part in parts {
                    let mut inner = Facts::default();
                    inner.conjunct(part, true);
                    match inner.values.pop() {
                        Some((col, more)) if of.is_none_or(|known| known == col) => {
                            of = Some(col);
                            values.extend(more);
                        }
                        _ => return,
                    }
                }
                if let Some(col) = of {
                    self.values.push((col, values));
                }
            }
            _ => {}
        }
    }

    /// Classes of columns that are equal in every row that has them.
    pub(crate) fn equal(&self) -> Classes {
        let mut classes = Classes::default();
        for (a, b) in &self.pairs {
            classes.union(*a, *b);
        }
        classes
    }

    /// The same, with columns that follow another in its class. A class follows one other at most, the first: if it
    /// followed two, those would seem to be equal.
    pub(crate) fn classes(&self) -> Classes {
        let equal = self.equal();
        let mut classes = self.equal();
        let mut attached = Vec::new();
        for (follower, followed) in &self.follows {
            let root = equal.find(*follower);
            if attached.contains(&root) {
                continue;
            }
            attached.push(root);
            classes.union(root, *followed);
        }
        classes
    }

    /// The packed rows' column that a column, or one of its class, is known to be in.
    fn row_of(&self, col: Col, classes: &Classes) -> Option<(ScalarId, usize)> {
        let class = classes.find(col);
        let found = self.rows.iter().find(|(other, _, _)| classes.find(*other) == class);
        if let Some((_, rows, place)) = found {
            return Some((*rows, *place));
        }
        let sides = self.pairs.iter().flat_map(|(a, b)| [*a, *b]);
        let mut equal = sides.filter(|other| classes.find(*other) == class);
        equal.find_map(|(rel, place)| {
            let (_, rows) = self.given.iter().find(|(given, _)| *given == rel)?;
            Some((*rows, place as usize))
        })
    }

    /// The fewest constants that a column, or one of its class, is known to be one of.
    pub(crate) fn values_of(&self, col: Col, classes: &Classes) -> Option<&[&'q Expr]> {
        let class = classes.find(col);
        let known = self.values.iter().filter(|(other, _)| classes.find(*other) == class);
        known.map(|(_, values)| values.as_slice()).min_by_key(|values| values.len())
    }
}

/// Classes of equal columns.
#[derive(Debug, Default)]
pub(crate) struct Classes(HashMap<Col, Col>);

impl Classes {
    /// What stands for a column's class.
    pub(crate) fn find(&self, mut col: Col) -> Col {
        while let Some(next) = self.0.get(&col) {
            col = *next;
        }
        col
    }

    fn union(&mut self, a: Col, b: Col) {
        let (a, b) = (self.find(a), self.find(b));
        if a != b {
            self.0.insert(a, b);
        }
    }
}

impl Planner<'_, '_> {
    /// What the facts say of a table's shard key, and whether they find its rows by key, a few at most.
    pub(crate) fn key_filter(
        &mut self,
        rel: RelId,
        table: &Table,
        facts: &Facts<'_>,
        classes: &Classes,
    ) -> Result<(KeyFilter, bool), WireError> {
        let lookup = self.is_lookup(rel, table, facts, classes);
        let Placement::Sharded { keyspace, key: _ } = &table.placement else {
            return Ok((KeyFilter::All, lookup));
        };
        let places = key_places(table);
        let known: Vec<Option<&[&Expr]>> =
            places.iter().map(|place| facts.values_of((rel, *place as u32), classes)).collect();
        if let Some(known) = known.iter().copied().collect::<Option<Vec<_>>>() {
            let mut columns = Vec::with_capacity(known.len());
            for values in known {
                columns.push(values.iter().map(|e| self.scalar(e)).collect::<Result<Vec<_>, _>>()?);
            }
            return Ok((KeyFilter::In(columns), lookup));
        }
        if let Some(filter) = self.rows_filter(rel, &places, facts, classes)? {
            return Ok((filter, false));
        }
        let range = self
            .binder
            .context
            .topology
            .keyspaces
            .get(keyspace)
            .is_some_and(|keyspace| keyspace.sharding == Sharding::Range);
        let Some(first) = places.first().filter(|_| range) else { return Ok((KeyFilter::All, lookup)) };
        let col = (rel, *first as u32);
        if let Some([value]) = known[0] {
            let value = self.scalar(value)?;
            return Ok((KeyFilter::Between(Some((value, true)), Some((value, true))), lookup));
        }
        let class = classes.find(col);
        let (mut low, mut high) = (None, None);
        for (other, value, upper, inclusive) in &facts.bounds {
            if classes.find(*other) != class {
                continue;
            }
            let side = if *upper { &mut high } else { &mut low };
            if side.is_none() {
                *side = Some((self.scalars.of(value, self.binder)?, *inclusive));
            }
        }
        let filter =
            if low.is_none() && high.is_none() { KeyFilter::All } else { KeyFilter::Between(low, high) };
        Ok((filter, lookup))
    }

    /// The shard key by rows that were found first, if those have it.
    fn rows_filter(
        &mut self,
        rel: RelId,
        places: &[usize],
        facts: &Facts<'_>,
        classes: &Classes,
    ) -> Result<Option<KeyFilter>, WireError> {
        let mut from = None;
        let mut key = Vec::with_capacity(places.len());
        for place in places {
            let col = (rel, *place as u32);
            if let Some([value]) = facts.values_of(col, classes) {
                key.push(KeyPart::Scalar(self.scalar(value)?));
                continue;
            }
            let Some((rows, place)) = facts.row_of(col, classes) else { return Ok(None) };
            if *from.get_or_insert(rows) != rows {
                return Ok(None);
            }
            key.push(KeyPart::Column(place));
        }
        Ok(from.map(|rows| KeyFilter::Rows { rows, key }))
    }

    pub(crate) fn scalar(&mut self, expr: &Expr) -> Result<ScalarId, WireError> {
        self.scalars.of(expr, self.binder)
    }

    /// Whether the facts find a table's rows by a key, a few at most.
    pub(crate) fn is_lookup(&self, rel: RelId, table: &Table, facts: &Facts<'_>, classes: &Classes) -> bool {
        let few = |ids: &mut dyn Iterator<Item = proto::ColumnId>| {
            let mut keys = 1usize;
            for id in ids {
                let Some(place) = table.columns.iter().position(|c| c.id == id) else { return false };
                let Some(values) = facts.values_of((rel, place as u32), classes) else { return false };
                keys = keys.saturating_mul(values.len());
            }
            keys <= MAX_LOOKUP_KEYS
        };
        if few(&mut table.primary_key.iter().copied()) {
            return true;
        }
        table.indexes.iter().filter(|i| i.unique).any(|i| few(&mut i.columns.iter().map(|c| c.column)))
    }
}
