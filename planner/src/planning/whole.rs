//! The whole query on one shard, when all that it reads is there.

use super::keys::{Col, Facts};
use super::{Planner, key_places, on_shards, relations_of, types_of};
use crate::Rule;
use crate::bind::tree::{Body, Expr, ExprKind, Query, RelId, RelationSource, Select};
use crate::emit::{Relations, Writer};
use crate::plan::{self, Fragment, Gather, KeyFilter, ScalarId, Target};
use dialect::Type;
use proto::catalog::Placement;
use proto::{KeyspaceNumber, WireError};
use std::collections::HashMap;

/// Where all that was seen so far can be read at once.
#[derive(Clone, Debug, PartialEq)]
enum Spot {
    /// Anywhere: reference tables, or none at all.
    Anywhere,
    /// On the one shard of a keyspace.
    Single(KeyspaceNumber),
    /// On the shard of one key.
    Key(KeyspaceNumber, Vec<Type>, Vec<ScalarId>),
}

/// What is known on the way down: columns that are one constant, and where to read.
struct Seen {
    spot: Spot,
    constants: HashMap<Col, ScalarId>,
    /// Literals that chose a shard.
    literals: Vec<(Expr, ScalarId)>,
    /// Whether rows are found by key.
    lookup: bool,
    tables: usize,
}

impl Seen {
    fn meet(&mut self, spot: Spot) -> bool {
        match (&self.spot, spot) {
            (_, Spot::Anywhere) => true,
            (Spot::Anywhere, spot) => {
                self.spot = spot;
                true
            }
            (Spot::Key(k1, t1, s1), Spot::Key(k2, t2, s2)) => {
                // Keys of integers of different widths are one key; so are those of strings.
                *k1 == k2
                    && *s1 == s2
                    && t1.len() == t2.len()
                    && t1.iter().zip(&t2).all(|(a, b)| same_hash(*a, *b))
            }
            (known, spot) => *known == spot,
        }
    }
}

/// Whether values of both types that are equal have one keyspace id.
pub(crate) fn same_hash(a: Type, b: Type) -> bool {
    let integer = |ty| matches!(ty, Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid);
    let string = |ty| matches!(ty, Type::Text | Type::Varchar | Type::Name);
    a == b || integer(a) && integer(b) || string(a) && string(b)
}

impl Planner<'_, '_> {
    /// The plan that pushes the whole query down, if there is one.
    pub(super) fn whole(&mut self, query: &Query) -> Result<Option<plan::Query>, WireError> {
        if !self.rules.has(Rule::PushWhole) {
            return Ok(None);
        }
        let mut seen = Seen {
            spot: Spot::Anywhere,
            constants: HashMap::new(),
            literals: Vec::new(),
            lookup: true,
            tables: 0,
        };
        if !self.see_query(query, &mut seen)? {
            return Ok(None);
        }
        let Some(target) = spot_target(&seen) else { return Ok(None) };
        let mut relations = Relations::new();
        on_shards(query, &mut relations);
        let mut writer = Writer::new(self.binder, &mut self.scalars, &relations);
        let sql = writer.query(query)?.into();
        let params = writer.params;
        let lookup = seen.lookup && seen.tables == 1;
        let fragment = Fragment { target, sql, params, columns: types_of(query), lookup };
        let gather =
            Gather::Stream { order: Vec::new(), offset: None, limit: None, visible: query.columns.len() };
        Ok(Some(plan::Query { fragments: vec![fragment], gather, lock: None }))
    }

    /// Where a condition's subqueries can be read together with a table, whose facts these are. `None`: not at once.
    pub(super) fn spot_with(&mut self, select: &Select) -> Result<Option<(Target, bool)>, WireError> {
        let mut seen = Seen {
            spot: Spot::Anywhere,
            constants: HashMap::new(),
            literals: Vec::new(),
            lookup: true,
            tables: 0,
        };
        if !self.see_select(select, &mut seen)? {
            return Ok(None);
        }
        let lookup = seen.lookup && seen.tables == 1;
        Ok(spot_target(&seen).map(|target| (target, lookup)))
    }

    fn see_query(&mut self, query: &Query, seen: &mut Seen) -> Result<bool, WireError> {
        for cte in &query.ctes {
            if !self.see_query(&cte.query, seen)? {
                return Ok(false);
            }
        }
        let here = match &query.body {
            Body::Select(select) => self.see_select(select, seen)?,
            Body::Values(rows) => {
                let mut fine = true;
                for expr in rows.iter().flatten() {
                    fine = fine && self.see_subqueries(expr, seen)?;
                }
                fine
            }
            Body::SetOperation { op: _, all: _, left, right } => {
                self.see_query(left, seen)? && self.see_query(right, seen)?
            }
        };
        Ok(here)
    }

    fn see_subqueries(&mut self, expr: &Expr, seen: &mut Seen) -> Result<bool, WireError> {
        let mut queries = Vec::new();
        expr.each_shallow_query(&mut |query| queries.push(query));
        for query in queries {
            if !self.see_query(query, seen)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn see_select(&mut self, select: &Select, seen: &mut Seen) -> Result<bool, WireError> {
        let relations = relations_of(select);
        let facts = Facts::of(select);
        let classes = facts.classes();
        let local = |rel: RelId| relations.iter().any(|r| r.id == rel);
        for relation in &relations {
            match &relation.source {
                RelationSource::System(_) => return Ok(false),
                RelationSource::Cte(_) | RelationSource::Rows(_) => seen.lookup = false,
                RelationSource::Query(query) => {
                    seen.lookup = false;
                    if !self.see_query(query, seen)? {
                        return Ok(false);
                    }
                }
                RelationSource::Table(table) => {
                    seen.tables += 1;
                    let spot = match &table.placement {
                        Placement::Reference => Spot::Anywhere,
                        Placement::Single { keyspace } => Spot::Single(*keyspace),
                        Placement::Sharded { keyspace, key: _ } => {
                            if !self.rules.has(Rule::RouteByKey) {
                                return Ok(false);
                            }
                            let mut key = Vec::new();
                            for place in key_places(table) {
                                let col = (relation.id, place as u32);
                                let Some(id) = self.constant(col, &facts, &classes, &local, seen)? else {
                                    return Ok(false);
                                };
                                seen.constants.insert(col, id);
                                key.push(id);
                            }
                            Spot::Key(*keyspace, super::key_types(table)?, key)
                        }
                    };
                    if !seen.meet(spot) {
                        return Ok(false);
                    }
                    let lookup = self.is_lookup(relation.id, table, &facts, &classes);
                    seen.lookup = seen.lookup && lookup;
                }
            }
        }
        if relations.is_empty() && !select.projection.is_empty() {
            seen.lookup = seen.lookup && select.filter.is_none();
        }
        let lists = select.filter.iter().chain(&select.group_by).chain(&select.having);
        let mut exprs: Vec<_> = lists.chain(&select.projection).collect();
        select.from.iter().for_each(|from| super::conditions(from, &mut exprs));
        for expr in exprs {
            if !self.see_subqueries(expr, seen)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The one constant that a column is, by this SELECT's own conditions or through a column of an outer one.
    fn constant(
        &mut self,
        col: Col,
        facts: &Facts<'_>,
        classes: &super::keys::Classes,
        local: &dyn Fn(RelId) -> bool,
        seen: &mut Seen,
    ) -> Result<Option<ScalarId>, WireError> {
        let class = classes.find(col);
        for (other, values) in &facts.values {
            if let [value] = values.as_slice()
                && local(other.0)
                && classes.find(*other) == class
            {
                return self.key_constant(value, seen).map(Some);
            }
        }
        let outer = seen.constants.iter().find(|(other, _)| {
            !local(other.0)
                && facts.pairs.iter().chain(&facts.follows).any(|(a, b)| a == *other || b == *other)
                && classes.find(**other) == class
        });
        Ok(outer.map(|(_, id)| *id))
    }

    /// A constant that chooses a shard. Two literals that say the same are one, and the plan depends on that.
    fn key_constant(&mut self, value: &Expr, seen: &mut Seen) -> Result<ScalarId, WireError> {
        if !matches!(value.kind, ExprKind::Literal(_)) {
            return self.scalar(value);
        }
        let id = self.scalar(value)?;
        match seen.literals.iter().find(|(known, _)| known == value) {
            Some((_, known)) if *known == id => Ok(id),
            Some((other, known)) => {
                self.binder.pin_literals(value);
                self.binder.pin_literals(other);
                Ok(*known)
            }
            None => {
                seen.literals.push((value.clone(), id));
                Ok(id)
            }
        }
    }
}

fn spot_target(seen: &Seen) -> Option<Target> {
    Some(match &seen.spot {
        Spot::Anywhere => Target::Any,
        Spot::Single(keyspace) => {
            Target::Keyspace { keyspace: *keyspace, key: Vec::new(), filter: KeyFilter::All }
        }
        Spot::Key(keyspace, types, key) => {
            let filter = KeyFilter::In(key.iter().map(|id| vec![*id]).collect());
            Target::Keyspace { keyspace: *keyspace, key: types.clone(), filter }
        }
    })
}
