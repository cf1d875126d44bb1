//! Calls: functions, aggregates, and what looks like a function.

use super::scope::{Clause, Scope};
use super::tree::{AggregateCall, Expr, ExprKind, Operation, SortKey};
use super::types::plain_name;
use super::{Binder, error, syntax};
use crate::plan::Environment;
use dialect::Type;
use dialect::functions::{Emit, Volatility, is_aggregate, resolve_aggregate, resolve_function};
use dialect::types::Typed;
use proto::catalog::Relation;
use proto::{SequenceId, SqlState, Value, WireError};
use sqlparser::ast::{self, DuplicateTreatment, FunctionArg, FunctionArgExpr, FunctionArguments};

/// A call's arguments, as far as PostgreSQL has them.
struct Arguments<'t> {
    args: Vec<&'t ast::Expr>,
    star: bool,
    distinct: bool,
    order_by: &'t [ast::OrderByExpr],
}

fn arguments(arguments: &FunctionArguments) -> Result<Option<Arguments<'_>>, WireError> {
    let list = match arguments {
        FunctionArguments::None => return Ok(None),
        FunctionArguments::Subquery(_) => {
            return Err(WireError::unsupported("a subquery in place of arguments"));
        }
        FunctionArguments::List(list) => list,
    };
    let ast::FunctionArgumentList { duplicate_treatment, args, clauses } = list;
    let mut found = Arguments {
        args: Vec::with_capacity(args.len()),
        star: false,
        distinct: matches!(duplicate_treatment, Some(DuplicateTreatment::Distinct)),
        order_by: &[],
    };
    for arg in args {
        match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => found.args.push(expr),
            FunctionArg::Unnamed(FunctionArgExpr::Wildcard) => found.star = true,
            FunctionArg::Unnamed(
                FunctionArgExpr::QualifiedWildcard(_) | FunctionArgExpr::WildcardWithOptions(_),
            ) => return Err(WireError::unsupported("a row as an argument")),
            FunctionArg::Named { name: _, arg: _, operator: _ }
            | FunctionArg::ExprNamed { name: _, arg: _, operator: _ } => {
                return Err(
                    WireError::unsupported("a named argument").with_hint("Pass arguments by their places.")
                );
            }
        }
    }
    for clause in clauses {
        match clause {
            ast::FunctionArgumentClause::OrderBy(keys) => found.order_by = keys,
            other => return Err(WireError::unsupported(format!("{other} in a call"))),
        }
    }
    Ok(Some(found))
}

impl<'a> Binder<'a> {
    /// A call as the syntax has it.
    pub(crate) fn call(&mut self, call: &ast::Function, scope: &Scope<'_, 'a>) -> Result<Expr, WireError> {
        let ast::Function {
            name,
            uses_odbc_syntax,
            parameters,
            args,
            within_group,
            filter,
            null_treatment,
            over,
        } = call;
        if over.is_some() {
            return Err(WireError::unsupported("a window function"));
        }
        if !within_group.is_empty() {
            return Err(WireError::unsupported("WITHIN GROUP"));
        }
        if *uses_odbc_syntax || null_treatment.is_some() || !matches!(parameters, FunctionArguments::None) {
            return Err(WireError::unsupported("this form of a call"));
        }
        let (schema, written) = plain_name(name)?;
        if let Some(schema) = schema
            && schema != "pg_catalog"
        {
            let message = match schema {
                "public" | "information_schema" => format!("function {schema}.{written} does not exist"),
                _ => {
                    let message = format!("schema \"{schema}\" does not exist");
                    return Err(error(SqlState::INVALID_SCHEMA_NAME, message));
                }
            };
            return Err(error(SqlState::UNDEFINED_FUNCTION, message));
        }
        let Some(list) = arguments(args)? else { return self.keyword(written) };
        let position = |ident: &ast::ObjectName| match ident.0.first() {
            Some(ast::ObjectNamePart::Identifier(ident)) => Some(ident.span),
            _ => None,
        };
        let place = |binder: &Self, error: WireError| match position(name) {
            Some(span) => binder.at(error, span),
            None => error,
        };
        if is_aggregate(written) {
            return self
                .aggregate(written, list, filter.as_deref(), scope)
                .map_err(|error| place(self, error));
        }
        if filter.is_some() || list.distinct || list.star || !list.order_by.is_empty() {
            let what = if filter.is_some() {
                format!("FILTER specified, but {written} is not an aggregate function")
            } else if list.distinct {
                format!("DISTINCT specified, but {written} is not an aggregate function")
            } else if list.star {
                format!("{written}(*) specified, but {written} is not an aggregate function")
            } else {
                format!("ORDER BY specified, but {written} is not an aggregate function")
            };
            return Err(place(self, error(SqlState::WRONG_OBJECT_TYPE, what)));
        }
        if schema.is_none() {
            match (written, list.args.as_slice()) {
                ("coalesce", [_, ..]) => {
                    let (args, ty) = self.unified("COALESCE", &list.args, scope)?;
                    return Ok(Expr { kind: ExprKind::Coalesce(args), ty });
                }
                ("greatest" | "least", [_, ..]) => {
                    let greatest = written == "greatest";
                    let what = if greatest { "GREATEST" } else { "LEAST" };
                    let (args, ty) = self.unified(what, &list.args, scope)?;
                    return Ok(Expr { kind: ExprKind::Extreme(greatest, args), ty });
                }
                ("nullif", [left, right]) => {
                    let left = self.expr(left, scope)?;
                    let right = self.expr(right, scope)?;
                    let (left, right) = self.comparable("NULLIF", left, right)?;
                    let ty = left.ty;
                    return Ok(Expr { kind: ExprKind::NullIf(Box::new(left), Box::new(right)), ty });
                }
                ("nextval", [arg]) => return self.nextval(arg, scope),
                ("grouping", _) => return Err(WireError::unsupported("GROUPING")),
                _ => {}
            }
        }
        if let Some(lookup) = super::definition::lookup(written, &list.args)? {
            return self.expr(&lookup, scope);
        }
        let args = list.args.iter().map(|arg| self.expr(arg, scope)).collect::<Result<Vec<_>, _>>()?;
        self.function(written, args).map_err(|error| place(self, error))
    }

    fn unified(
        &mut self,
        what: &str,
        args: &[&ast::Expr],
        scope: &Scope<'_, 'a>,
    ) -> Result<(Vec<Expr>, Typed), WireError> {
        let args = args.iter().map(|arg| self.expr(arg, scope)).collect::<Result<Vec<_>, _>>()?;
        self.unify(what, args)
    }

    /// A function over bound arguments.
    pub(crate) fn function(&mut self, name: &str, args: Vec<Expr>) -> Result<Expr, WireError> {
        let types: Vec<Type> = args.iter().map(|e| e.ty.ty).collect();
        let resolved = match resolve_function(name, &types) {
            Ok(resolved) => resolved,
            Err(error) => return self.type_as_function(name, args, error),
        };
        if let Emit::Router(what) = resolved.function.emit {
            let ty = resolved.result;
            return match environment(what) {
                Some(environment) if args.is_empty() => {
                    let number = match resolved.function.volatility {
                        Volatility::Volatile => self.new_use(),
                        Volatility::Stable | Volatility::Immutable => 0,
                    };
                    Ok(Expr::new(ExprKind::Environment(environment, number), ty))
                }
                _ => Err(WireError::unsupported(format!("function {name} here"))),
            };
        }
        let args = args
            .into_iter()
            .zip(&resolved.args)
            .map(|(expr, ty)| self.implicit(expr, *ty))
            .collect::<Result<Vec<_>, _>>()?;
        let result = resolved.result;
        Ok(Expr::new(ExprKind::Call(Operation(resolved), args), result))
    }

    /// `int4(x)`: PostgreSQL takes a type's name as a cast where there is no such function.
    fn type_as_function(
        &mut self,
        name: &str,
        mut args: Vec<Expr>,
        missing: WireError,
    ) -> Result<Expr, WireError> {
        let to = Type::ALL.iter().find(|ty| super::types::type_keyword(**ty) == Some(name));
        match (to, args.len(), missing.sqlstate) {
            (Some(to), 1, SqlState::UNDEFINED_FUNCTION) => {
                let arg = args.remove(0);
                self.explicit(arg, Typed::plain(*to)).map_err(|_| missing)
            }
            _ => Err(missing),
        }
    }

    /// What stands without parentheses: CURRENT_USER and its like.
    fn keyword(&mut self, name: &str) -> Result<Expr, WireError> {
        let stable = |environment, ty| Ok(Expr::new(ExprKind::Environment(environment, 0), ty));
        match name {
            "current_timestamp" => stable(Environment::TransactionTime, Type::Timestamptz),
            "localtimestamp" => {
                let now = stable(Environment::TransactionTime, Type::Timestamptz)?;
                self.explicit(now, Typed::plain(Type::Timestamp))
            }
            "current_date" => {
                let now = stable(Environment::TransactionTime, Type::Timestamptz)?;
                self.explicit(now, Typed::plain(Type::Date))
            }
            "current_user" | "session_user" | "user" | "current_role" => {
                stable(Environment::User, Type::Name)
            }
            "current_catalog" => stable(Environment::Database, Type::Name),
            "current_schema" => Ok(Expr::new(ExprKind::Value(Value::Text("public".to_owned())), Type::Name)),
            _ => Err(WireError::unsupported(name.to_uppercase())),
        }
    }

    fn nextval(&mut self, arg: &ast::Expr, scope: &Scope<'_, 'a>) -> Result<Expr, WireError> {
        let arg = self.expr(arg, scope)?;
        let literal = match &arg.kind {
            ExprKind::Literal(literal) => literal.slot,
            ExprKind::Value(Value::Int(oid)) if arg.ty.ty == Type::Regclass => {
                let id = SequenceId(u32::try_from(*oid).unwrap_or(0));
                let known = self.context.catalog.sequence(id).is_some();
                let missing = || error(SqlState::UNDEFINED_TABLE, "this regclass is no sequence");
                let number = self.new_use();
                return known
                    .then(|| Expr::new(ExprKind::NextValue(id, number), Type::Int8))
                    .ok_or_else(missing);
            }
            _ => {
                return Err(WireError::unsupported("nextval of a computed name")
                    .with_hint("Write the sequence's name as a string."));
            }
        };
        let name = self.pinned_text(literal).into_owned();
        let (_, bare) = relation_name(&name)?;
        match self.context.catalog.resolve(&bare) {
            Some(Relation::Sequence(id)) => {
                let number = self.new_use();
                Ok(Expr::new(ExprKind::NextValue(id, number), Type::Int8))
            }
            Some(_) => Err(error(SqlState::WRONG_OBJECT_TYPE, format!("\"{bare}\" is not a sequence"))),
            None => Err(error(SqlState::UNDEFINED_TABLE, format!("relation \"{bare}\" does not exist"))),
        }
    }

    /// The object id of a relation, as `regclass` reads its name.
    pub(crate) fn relation_oid(&self, written: &str) -> Result<u32, WireError> {
        let (schema, name) = relation_name(written)?;
        let missing = || error(SqlState::UNDEFINED_TABLE, format!("relation \"{written}\" does not exist"));
        match schema.as_deref() {
            None | Some("public") => match self.context.catalog.resolve(&name) {
                Some(Relation::Table(id)) => Ok(id.0),
                Some(Relation::Index(_, id)) if id.0 != 0 => Ok(id.0),
                Some(Relation::Sequence(id)) => Ok(id.0),
                Some(Relation::Index(..)) => Err(WireError::unsupported("a primary key's index as regclass")),
                None => Err(missing()),
            },
            Some(_) => Err(missing()),
        }
    }

    fn aggregate(
        &mut self,
        name: &str,
        list: Arguments<'_>,
        filter: Option<&ast::Expr>,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        if let Some(message) = scope.clause.aggregate_error() {
            return Err(error(SqlState::GROUPING_ERROR, message));
        }
        let inner = scope.within(Clause::Aggregate);
        let args = list.args.iter().map(|arg| self.expr(arg, &inner)).collect::<Result<Vec<_>, _>>()?;
        if args.is_empty() && !list.star {
            let message = format!("{name}(*) must be used to call a parameterless aggregate function");
            return Err(error(SqlState::WRONG_OBJECT_TYPE, message));
        }
        if list.star && list.distinct {
            return Err(syntax("DISTINCT is not allowed with *"));
        }
        self.local_only(&args, scope)?;
        let types: Vec<Type> = args.iter().map(|e| e.ty.ty).collect();
        let resolved = resolve_aggregate(name, &types)?;
        let args = args
            .into_iter()
            .zip(&resolved.args)
            .map(|(expr, ty)| self.implicit(expr, *ty))
            .collect::<Result<Vec<_>, _>>()?;
        if list.distinct && resolved.aggregate.distinct.is_none() {
            return Err(WireError::unsupported(format!("{name}(DISTINCT ..)")));
        }
        let filter = match filter {
            Some(filter) => Some(self.predicate(filter, "FILTER", &scope.within(Clause::Filter))?),
            None => None,
        };
        let mut order_by = Vec::new();
        for key in list.order_by {
            let ast::OrderByExpr { expr, options, with_fill } = key;
            if with_fill.is_some() {
                return Err(WireError::unsupported("WITH FILL"));
            }
            let expr = self.expr(expr, &inner)?;
            let expr = self.settle(expr)?;
            let (descending, nulls_first) = super::order::direction(options)?;
            order_by.push(SortKey { expr, descending, nulls_first });
        }
        if list.distinct && !order_by.is_empty() {
            return Err(WireError::unsupported("an aggregate with both DISTINCT and ORDER BY"));
        }
        // The least and the greatest char(n) are as long as the others: without n they would lose their padding.
        let ty = match args.as_slice() {
            [arg] if resolved.result == Type::Bpchar => arg.ty,
            _ => Typed::plain(resolved.result),
        };
        let call = AggregateCall { resolved, args, distinct: list.distinct, order_by, filter };
        Ok(Expr { kind: ExprKind::Aggregate(Box::new(call)), ty })
    }

    /// Refuses an aggregate whose arguments are all of an outer query: it would be that query's.
    fn local_only(&self, args: &[Expr], scope: &Scope<'_, 'a>) -> Result<(), WireError> {
        if scope.outer.is_none() {
            return Ok(());
        }
        let mut used = Vec::new();
        for arg in args {
            used.extend(arg.relations());
        }
        let local = |rel: &super::tree::RelId| {
            let named = scope.names.columns.iter().any(|c| c.rel == *rel);
            named || scope.names.tables.iter().any(|(_, columns)| columns.iter().any(|c| c.rel == *rel))
        };
        if used.is_empty() || used.iter().any(local) {
            return Ok(());
        }
        Err(WireError::unsupported("an aggregate of an outer query's columns"))
    }
}

/// The environment's name for what the dialect's table leaves to the router.
fn environment(name: &str) -> Option<Environment> {
    Some(match name {
        "now" | "transaction_timestamp" | "transaction_time" => Environment::TransactionTime,
        "statement_timestamp" | "statement_time" => Environment::StatementTime,
        "clock_timestamp" | "clock_time" => Environment::ClockTime,
        "current_user" | "session_user" | "user" => Environment::User,
        "current_database" | "database" => Environment::Database,
        "pg_backend_pid" | "backend_pid" => Environment::BackendPid,
        "gen_random_uuid" | "random_uuid" => Environment::RandomUuid,
        "random" => Environment::Random,
        _ => return None,
    })
}

/// A relation's name as a string holds it: folded unless quoted, perhaps with a schema.
fn relation_name(text: &str) -> Result<(Option<String>, String), WireError> {
    let invalid = || error(SqlState::INVALID_NAME, "invalid name syntax");
    let mut parts = vec![String::new()];
    let mut chars = text.trim().chars().peekable();
    while let Some(c) = chars.next() {
        let part = parts.last_mut().ok_or_else(invalid)?;
        match c {
            '"' => loop {
                match (chars.next().ok_or_else(invalid)?, chars.peek()) {
                    ('"', Some('"')) => {
                        chars.next();
                        part.push('"');
                    }
                    ('"', _) => break,
                    (c, _) => part.push(c),
                }
            },
            '.' => parts.push(String::new()),
            c => part.extend(c.to_lowercase()),
        }
    }
    let name = parts.pop().filter(|name| !name.is_empty()).ok_or_else(invalid)?;
    match parts.pop() {
        Some(schema) if parts.is_empty() => Ok((Some(schema), name)),
        None => Ok((None, name)),
        Some(_) => Err(invalid()),
    }
}
