//! Queries of psql 15's `\d` and `\du` that ask in ways that Shoal can't run, about what it hasn't got: policies, types of
//! rows, extended statistics, publications, children, roles in roles.
//!
//! In comes a statement's text; if it is one of those (literals aside), out goes the plan of a simpler query that has
//! the same answer as long as those relations are empty. `psql.sql` has the pairs. Their one literal that varies is
//! a relation's object id.

use crate::plan::{Plan, Scalar};
use crate::text::{LiteralKind, Text, split};
use crate::{Context, Planned};
use dialect::datetime::TimeZone;
use proto::WireError;
use std::sync::Arc;

const PAIRS: &str = include_str!("psql.sql");

/// The plan of a statement that is one of psql's.
pub(crate) fn plan(text: &Text, context: &Context<'_>) -> Result<Option<Planned>, WireError> {
    if !text.source.contains("pg_catalog.") {
        return Ok(None);
    }
    let mut parts = PAIRS.split("\n;\n");
    while let (Some(asked), Some(answer)) = (parts.next(), parts.next()) {
        if !split(asked)?.iter().any(|known| known.key == text.key) || !same_constants(asked, text)? {
            continue;
        }
        let oid = oid(text).unwrap_or_default();
        let Ok([answer]) = <[Text; 1]>::try_from(split(&answer.replace("{oid}", &format!("'{oid}'")))?)
        else {
            return Ok(None);
        };
        let planned = crate::plan(&answer, &[], context)?;
        // Its literals aren't the statement's.
        let mut plan = Plan::clone(&planned.plan);
        for scalar in &mut plan.scalars {
            if let Scalar::Literal { slot, ty } = scalar {
                let value = answer.literal(*slot).unwrap_or_default();
                *scalar = Scalar::Constant(dialect::io::input(*ty, &value, &TimeZone::utc())?);
            }
        }
        let pinned = (0..text.literals.len() as u32)
            .filter_map(|slot| Some((slot, text.literal(slot)?.into_owned())))
            .collect();
        return Ok(Some(Planned { plan: Arc::new(plan), pinned }));
    }
    Ok(None)
}

fn is_oid(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit())
}

/// The object id that a query is about.
fn oid(text: &Text) -> Option<String> {
    let mut literals = (0..text.literals.len() as u32).filter_map(|slot| {
        (text.literals[slot as usize].kind == LiteralKind::Text).then(|| text.literal(slot)).flatten()
    });
    literals.find(|value| is_oid(value)).map(|value| value.into_owned())
}

/// Whether all literals but object ids are psql's own, and the object ids are all one.
fn same_constants(asked: &str, text: &Text) -> Result<bool, WireError> {
    let Ok([known]) = <[Text; 1]>::try_from(split(asked)?) else { return Ok(false) };
    let about = oid(text);
    Ok((0..text.literals.len() as u32).all(|slot| match (known.literal(slot), text.literal(slot)) {
        (Some(a), Some(b)) if known.literals[slot as usize].kind == LiteralKind::Text && is_oid(&a) => {
            about.as_deref() == Some(&*b)
        }
        (a, b) => a == b,
    }))
}
