//! The scalars of a plan: what is known before any row is seen, each once.

use super::{Relations, Writer};
use crate::bind::Binder;
use crate::bind::tree::{Expr, ExprKind};
use crate::plan::{Environment, Scalar, ScalarId};
use dialect::Type;
use dialect::datetime::TimeZone;
use dialect::types::Typed;
use proto::{SequenceId, Value, WireError};
use std::collections::HashMap;

/// What makes two uses of a scalar the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Literal(u32, Typed, bool),
    Parameter(u32),
    Environment(Environment, u32),
    NextValue(SequenceId, u32),
}

/// Scalars in the making.
#[derive(Debug, Default)]
pub(crate) struct Scalars {
    pub list: Vec<Scalar>,
    known: HashMap<Key, ScalarId>,
}

impl Scalars {
    pub(crate) fn push(&mut self, scalar: Scalar) -> ScalarId {
        self.list.push(scalar);
        ScalarId(self.list.len() as u32 - 1)
    }

    fn keyed(
        &mut self,
        key: Key,
        scalar: impl FnOnce() -> Result<Scalar, WireError>,
    ) -> Result<ScalarId, WireError> {
        if let Some(id) = self.known.get(&key) {
            return Ok(*id);
        }
        let id = self.push(scalar()?);
        self.known.insert(key, id);
        Ok(id)
    }

    /// The session's time zone.
    pub(crate) fn zone(&mut self) -> ScalarId {
        let key = Key::Environment(Environment::TimeZone, 0);
        let scalar = || Ok(Scalar::Environment(Environment::TimeZone));
        self.keyed(key, scalar).expect("making this scalar can't fail")
    }

    /// The scalar of an expression that is one as it stands; `None` for anything that must be computed.
    pub(crate) fn simple(&mut self, expr: &Expr, binder: &Binder<'_>) -> Result<Option<ScalarId>, WireError> {
        let id = match &expr.kind {
            ExprKind::Literal(literal) => {
                let ty = match expr.ty.ty {
                    Type::Unknown => Typed::plain(Type::Text),
                    _ => expr.ty,
                };
                self.keyed(Key::Literal(literal.slot, ty, literal.negated), || {
                    Ok(match binder.own_text(literal.slot) {
                        Some(text) => Scalar::Constant(constant(text, ty, literal.negated)?),
                        None if literal.negated => Scalar::Negative { slot: literal.slot, ty },
                        None => Scalar::Literal { slot: literal.slot, ty },
                    })
                })?
            }
            ExprKind::Known(scalar) => *scalar,
            ExprKind::Value(value) => self.push(Scalar::Constant(value.clone())),
            ExprKind::Parameter(number) => {
                self.keyed(Key::Parameter(*number), || Ok(Scalar::Parameter(*number)))?
            }
            ExprKind::Environment(fact, number) => {
                self.keyed(Key::Environment(*fact, *number), || Ok(Scalar::Environment(*fact)))?
            }
            ExprKind::NextValue(sequence, number) => {
                self.keyed(Key::NextValue(*sequence, *number), || Ok(Scalar::NextValue(*sequence)))?
            }
            ExprKind::Cast(conversion, inner) if conversion.cast.is_noop() => {
                return self.simple(inner, binder);
            }
            // What `DEFAULT now()` is in most columns.
            ExprKind::Cast(conversion, inner)
                if conversion.from.ty == Type::Timestamptz
                    && conversion.to == Typed::plain(Type::Timestamp) =>
            {
                let Some(moment) = self.simple(inner, binder)? else { return Ok(None) };
                self.push(Scalar::Local(moment))
            }
            _ => return Ok(None),
        };
        Ok(Some(id))
    }

    /// The scalar of a constant expression.
    pub(crate) fn of(&mut self, expr: &Expr, binder: &Binder<'_>) -> Result<ScalarId, WireError> {
        if let Some(id) = self.simple(expr, binder)? {
            return Ok(id);
        }
        let relations = Relations::new();
        let mut writer = Writer::new(binder, self, &relations);
        let sql = writer.expr(expr)?;
        let params = writer.params;
        Ok(self.push(Scalar::Expression { sql: sql.into(), params }))
    }

    /// The scalar of LIMIT (2201W) or OFFSET (2201X): not negative, or NULL.
    pub(crate) fn row_count(
        &mut self,
        expr: &Expr,
        offset: bool,
        binder: &Binder<'_>,
    ) -> Result<ScalarId, WireError> {
        let id = self.of(expr, binder)?;
        if matches!(&expr.kind, ExprKind::Literal(literal) if !literal.negated) {
            return Ok(id);
        }
        let (code, word) = if offset { ("2201X", "OFFSET") } else { ("2201W", "LIMIT") };
        let sql =
            format!("CASE WHEN ?1 < 0 THEN pg_raise('{code}', '{word} must not be negative') ELSE ?1 END");
        Ok(self.push(Scalar::Expression { sql: sql.into(), params: vec![id] }))
    }
}

/// The value of a literal that the catalog keeps.
pub(crate) fn constant(text: &str, ty: Typed, negated: bool) -> Result<Value, WireError> {
    let zone = TimeZone::utc();
    if negated {
        dialect::io::input(ty, &format!("-{text}"), &zone)
    } else {
        dialect::io::input(ty, text, &zone)
    }
}
