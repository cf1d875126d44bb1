//! Binding: sqlparser's tree to Shoal's own.
//!
//! In comes a statement's syntax, out goes the typed tree of [`tree`], or PostgreSQL's error. Every node of
//! sqlparser's is taken apart without `..`: a clause that nobody reads can't be forgotten, it doesn't compile; what
//! isn't supported is 0A000. Nothing here knows a shard, or SQL as SQLite has it.

pub(crate) mod call;
pub(crate) mod coerce;
pub(crate) mod copy;
mod definition;
pub(crate) mod expression;
pub(crate) mod from;
pub(crate) mod grouping;
pub(crate) mod insert;
pub(crate) mod lock;
pub(crate) mod modify;
pub(crate) mod operator;
mod order;
pub(crate) mod query;
pub(crate) mod scope;
mod select;
pub(crate) mod tree;
pub(crate) mod types;
pub(crate) mod walk;

use crate::Context;
use crate::text::keywords::{Category, category};
use crate::text::{LiteralKind, Text, split};
use dialect::Type;
use proto::{SqlState, WireError};
use sqlparser::ast;
use sqlparser::tokenizer::Span;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use tree::{Expr, ExprKind, Literal, RelId};

/// Slots from here on are the binder's own: literals of texts that the catalog keeps (defaults).
const OWN_SLOTS: u32 = 1 << 31;

/// Longer literals are never looked up as equal to others.
const MAX_CLASS_BYTES: usize = 256;

/// A statement being bound.
pub(crate) struct Binder<'a> {
    pub context: &'a Context<'a>,
    text: &'a Text,
    /// A text of the catalog's that is bound in place of `text`, for now.
    inner: Option<Rc<Text>>,
    own: Vec<(LiteralKind, String)>,
    /// The parameters' types, as far as they are known.
    pub parameters: Vec<Option<Type>>,
    pins: BTreeSet<u32>,
    /// Which of the statement's literals became expressions, by slot.
    bound: Vec<bool>,
    classes: HashMap<(LiteralKind, String), u32>,
    relations: u32,
    ctes: u32,
    uses: u32,
}

/// An error of this code.
pub(crate) fn error(sqlstate: SqlState, message: impl Into<String>) -> WireError {
    WireError::new(sqlstate, message)
}

/// 42601.
pub(crate) fn syntax(message: impl Into<String>) -> WireError {
    WireError::new(SqlState::SYNTAX_ERROR, message)
}

/// 42601 for an unquoted reserved word that sqlparser took for a name.
pub(crate) fn misplaced_keyword(ident: &ast::Ident) -> Option<WireError> {
    let ast::Ident { value, quote_style, span: _ } = ident;
    let reserved = quote_style.is_none() && category(value) == Category::Reserved;
    reserved.then(|| syntax(format!("syntax error at or near \"{value}\"")))
}

impl<'a> Binder<'a> {
    pub(crate) fn new(text: &'a Text, declared: &[Option<Type>], context: &'a Context<'a>) -> Self {
        Binder {
            context,
            text,
            inner: None,
            own: Vec::new(),
            parameters: declared.to_vec(),
            pins: BTreeSet::new(),
            bound: vec![false; text.literals.len()],
            classes: HashMap::new(),
            relations: 0,
            ctes: 0,
            uses: 0,
        }
    }

    /// The same error, pointing at a place of the tree.
    pub(crate) fn at(&self, error: WireError, span: Span) -> WireError {
        match self.text.position(span) {
            Some(position) if self.inner.is_none() && error.position.is_none() => error.at(position),
            _ => error,
        }
    }

    /// OVERRIDING SYSTEM VALUE (`true`) or USER VALUE.
    pub(crate) fn overriding(&self) -> Option<bool> {
        self.text.overriding()
    }

    pub(crate) fn new_relation(&mut self) -> RelId {
        self.relations += 1;
        RelId(self.relations - 1)
    }

    pub(crate) fn new_cte(&mut self) -> u32 {
        self.ctes += 1;
        self.ctes - 1
    }

    /// A number for a use of something that is different each time.
    pub(crate) fn new_use(&mut self) -> u32 {
        self.uses += 1;
        self.uses
    }

    /// The literal at a place of the tree.
    pub(crate) fn literal(&mut self, span: Span) -> Result<(Literal, LiteralKind), WireError> {
        let text: &Text = self.inner.as_deref().unwrap_or(self.text);
        let missing = || WireError::internal("a literal of the tree isn't one of the text's");
        let slot = text.slot(span.start).ok_or_else(missing)?;
        let kind = text.literals[slot as usize].kind;
        let value = text.literal(slot).ok_or_else(missing)?;
        let class = if value.len() <= MAX_CLASS_BYTES {
            let next = self.classes.len() as u32;
            *self.classes.entry((kind, value.clone().into_owned())).or_insert(next)
        } else {
            OWN_SLOTS | slot
        };
        let slot = if self.inner.is_some() {
            let value = value.into_owned();
            self.own.push((kind, value));
            OWN_SLOTS + self.own.len() as u32 - 1
        } else {
            self.bound[slot as usize] = true;
            slot
        };
        Ok((Literal { slot, class, negated: false }, kind))
    }

    /// What a literal says. The plan then depends on it.
    pub(crate) fn pinned_text(&mut self, slot: u32) -> Cow<'_, str> {
        self.pin(slot);
        self.literal_text(slot)
    }

    /// What a literal says. For constants that the catalog keeps, and to look at before pinning.
    pub(crate) fn literal_text(&self, slot: u32) -> Cow<'_, str> {
        match slot.checked_sub(OWN_SLOTS) {
            Some(own) => Cow::Borrowed(self.own.get(own as usize).map_or("", |(_, text)| text.as_str())),
            None => self.text.literal(slot).unwrap_or_default(),
        }
    }

    /// The text of a literal that isn't one of the statement's; `None` for one that is.
    pub(crate) fn own_text(&self, slot: u32) -> Option<&str> {
        self.own.get(slot.checked_sub(OWN_SLOTS)? as usize).map(|(_, text)| text.as_str())
    }

    fn pin(&mut self, slot: u32) {
        if slot < OWN_SLOTS {
            self.pins.insert(slot);
        }
    }

    /// Makes the plan depend on every literal of an expression: it was found equal to another one.
    pub(crate) fn pin_literals(&mut self, expr: &Expr) {
        let mut slots = Vec::new();
        expr.each_deep(&mut |e| {
            if let ExprKind::Literal(literal) = &e.kind {
                slots.push(literal.slot);
            }
        });
        slots.into_iter().for_each(|slot| self.pin(slot));
    }

    /// What [`crate::Planned::pinned`] says. A literal that is no expression of the tree was read by the parser or as
    /// part of something else, a type's length or EXTRACT's field: the plan has it in it.
    pub(crate) fn pinned(&self) -> Vec<(u32, String)> {
        let unbound = self.bound.iter().zip(0..).filter(|(bound, _)| !**bound).map(|(_, slot)| slot);
        let slots: BTreeSet<u32> = self.pins.iter().copied().chain(unbound).collect();
        slots.into_iter().map(|slot| (slot, self.literal_text(slot).into_owned())).collect()
    }

    /// Binds an expression that the catalog keeps as text.
    pub(crate) fn with_stored<R>(
        &mut self,
        expression: &str,
        bind: impl FnOnce(&mut Self, &ast::Expr) -> Result<R, WireError>,
    ) -> Result<R, WireError> {
        let damaged =
            || WireError::internal(format!("the catalog keeps an expression that is none: {expression}"));
        let [text]: [Text; 1] = split(&format!("SELECT {expression}"))?.try_into().map_err(|_| damaged())?;
        let crate::text::Parsed::Statement(tree) = text.parse()? else { return Err(damaged()) };
        let ast::Statement::Query(query) = &*tree else { return Err(damaged()) };
        let ast::SetExpr::Select(select) = &*query.body else { return Err(damaged()) };
        let [ast::SelectItem::UnnamedExpr(expr)] = select.projection.as_slice() else {
            return Err(damaged());
        };
        let before = self.inner.replace(Rc::new(text.clone()));
        let bound = bind(self, expr);
        self.inner = before;
        bound
    }

    /// The parameters' types, now that the statement is bound.
    pub(crate) fn parameter_types(&self) -> Result<Vec<Type>, WireError> {
        let known = self.parameters.iter().enumerate().map(|(i, ty)| match ty {
            Some(ty) if *ty != Type::Unknown => Ok(*ty),
            _ => Err(error(
                SqlState::INDETERMINATE_DATATYPE,
                format!("could not determine data type of parameter ${}", i + 1),
            )),
        });
        known.collect()
    }
}
