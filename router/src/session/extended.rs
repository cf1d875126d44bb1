//! The extended protocol: prepared statements and portals.

use super::copy::CopyState;
use super::run::{Result as Rows, Started, at_length, failed_block};
use super::{Mode, Session};
use crate::error::Report;
use crate::protocol::backend;
use crate::protocol::frontend::{Bind, Format, Message, Object, utf8, violation};
use crate::protocol::rows::ColumnFormat;
use dialect::Type;
use dialect::io;
use dialect::types::Typed;
use parking_lot::Mutex;
use planner::plan::{Action, Plan, SessionCommand};
use planner::text::{Text, split};
use proto::services::ClusterState;
use proto::{SchemaVersion, SqlState, Value, WireError};
use std::sync::Arc;
use tokio::io::AsyncWrite;

/// A prepared statement.
pub struct Prepared {
    /// Its text; `None` for an empty one.
    pub(super) text: Option<Text>,
    /// The types of its parameters, all known.
    pub(super) declared: Vec<Option<Type>>,
    /// Its plan, and what that depends on. `None` for an empty one.
    pub(super) planned: Option<PreparedPlan>,
}

/// A prepared statement's plan, and what it depends on.
#[derive(Clone)]
pub struct PreparedPlan {
    pub(super) plan: Arc<Plan>,
    version: SchemaVersion,
    settings: planner::Settings,
}

/// A prepared statement with its parameters.
pub struct Portal {
    prepared: Arc<Prepared>,
    plan: Option<Arc<Plan>>,
    parameters: Vec<Value>,
    formats: Vec<Format>,
    /// Which of the session's portals it is, counted from 1.
    pub(super) made: u64,
    state: PortalState,
}

enum PortalState {
    Ready,
    /// It has returned some of its rows. The lock is never waited for: it lets the session be shared while it waits,
    /// which a shard's stream by itself doesn't.
    Open(Mutex<Box<Rows>>, Vec<ColumnFormat>),
    /// It has run to its end; what it said then.
    Ended {
        returned_rows: bool,
    },
}

impl<W: AsyncWrite + Unpin> Session<W> {
    pub(super) async fn extended(&mut self, message: Message) -> Result<(), Box<Report>> {
        match message {
            Message::Parse { name, sql, types } => {
                let types = types.into_iter().map(declared_type).collect::<Result<Vec<_>, _>>()?;
                self.prepare(name, &sql, types, true).await?;
                backend::parse_complete(&mut self.output.buffer);
                Ok(())
            }
            Message::Bind(bind) => self.bind(bind).await,
            Message::Describe(Object::Statement, name) => self.describe_statement(&name),
            Message::Describe(Object::Portal, name) => self.describe_portal(&name),
            Message::Execute { portal, max_rows } => {
                self.interrupt.rearm();
                self.begin_statement(self.ends_next);
                self.execute(portal, max_rows).await
            }
            Message::Close(object, name) => {
                match object {
                    Object::Statement => drop(self.prepared.remove(&name)),
                    Object::Portal => drop(self.portals.remove(&name)),
                }
                backend::close_complete(&mut self.output.buffer);
                Ok(())
            }
            other => Err(violation(format!("unexpected message {other:?}")).into()),
        }
    }

    /// Makes a prepared statement. `protocol`: not by SQL's PREPARE.
    pub(super) async fn prepare(
        &mut self,
        name: String,
        sql: &str,
        mut declared: Vec<Option<Type>>,
        protocol: bool,
    ) -> Result<(), WireError> {
        let mut texts = at_length(sql.len(), || split(sql))?;
        if texts.len() > 1 {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(WireError::new(SqlState::SYNTAX_ERROR, message));
        }
        if !name.is_empty() && self.prepared.contains_key(&name) {
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(WireError::new(SqlState::DUPLICATE_PREPARED_STATEMENT, message));
        }
        let text = texts.pop();
        let planned = match &text {
            None if !protocol => {
                return Err(WireError::new(SqlState::SYNTAX_ERROR, "syntax error at end of input"));
            }
            None => None,
            Some(text) => {
                let (plan, state) = match self.plan(text, &declared).await {
                    Ok(planned) => planned,
                    Err(error) if self.block.is_failed() && error.sqlstate != SqlState::SYNTAX_ERROR => {
                        return Err(failed_block());
                    }
                    Err(error) => return Err(error),
                };
                self.check_failed(&plan)?;
                declared = plan.parameters.iter().map(|ty| Some(*ty)).collect();
                Some(PreparedPlan {
                    plan,
                    version: state.catalog.version(),
                    settings: self.settings.planner.clone(),
                })
            }
        };
        self.prepared.insert(name, Arc::new(Prepared { text, declared, planned }));
        Ok(())
    }

    pub(super) fn find_prepared(&self, name: &str) -> Result<Arc<Prepared>, WireError> {
        self.prepared.get(name).cloned().ok_or_else(|| {
            let message = match name {
                "" => "unnamed prepared statement does not exist".to_owned(),
                name => format!("prepared statement \"{name}\" does not exist"),
            };
            WireError::new(SqlState::INVALID_SQL_STATEMENT_NAME, message)
        })
    }

    /// A prepared statement's plan for the newest catalog.
    pub(super) async fn fresh(
        &mut self,
        name: &str,
        prepared: &mut Arc<Prepared>,
    ) -> Result<Option<(Arc<Plan>, Arc<ClusterState>)>, WireError> {
        let (Some(text), Some(planned)) = (&prepared.text, &prepared.planned) else { return Ok(None) };
        let state = self.shared.executor.cluster.snapshot();
        if planned.version == state.catalog.version() && planned.settings == self.settings.planner {
            return Ok(Some((planned.plan.clone(), state)));
        }
        let (plan, state) = self.plan(text, &prepared.declared).await?;
        let types = |plan: &Plan| plan.columns.as_ref().map(|c| c.iter().map(|c| c.ty).collect::<Vec<_>>());
        if types(&plan) != types(&planned.plan) {
            let message = "cached plan must not change result type";
            return Err(WireError::new(SqlState::FEATURE_NOT_SUPPORTED, message));
        }
        let settings = self.settings.planner.clone();
        let planned = PreparedPlan { plan: plan.clone(), version: state.catalog.version(), settings };
        let newer = Prepared {
            text: Some(text.clone()),
            declared: prepared.declared.clone(),
            planned: Some(planned),
        };
        *prepared = Arc::new(newer);
        if let Some(kept) = self.prepared.get_mut(name) {
            *kept = prepared.clone();
        }
        Ok(Some((plan, state)))
    }

    async fn bind(&mut self, bind: Bind) -> Result<(), Box<Report>> {
        let Bind { portal, statement, formats, parameters, results } = bind;
        let mut prepared = self.find_prepared(&statement)?;
        let expected = prepared.declared.len();
        if formats.len() > 1 && formats.len() != parameters.len() {
            let message = format!(
                "bind message has {} parameter formats but {} parameters",
                formats.len(),
                parameters.len()
            );
            return Err(violation(message).into());
        }
        if parameters.len() != expected {
            let message = format!(
                "bind message supplies {} parameters, but prepared statement \"{statement}\" requires {expected}",
                parameters.len()
            );
            return Err(violation(message).into());
        }
        if !portal.is_empty() && self.portals.contains_key(&portal) {
            let message = format!("portal \"{portal}\" already exists");
            return Err(WireError::new(SqlState::DUPLICATE_CURSOR, message).into());
        }
        let plan = match self.fresh(&statement, &mut prepared).await {
            Ok(plan) => plan.map(|(plan, _)| plan),
            Err(_) if self.block.is_failed() => return Err(failed_block().into()),
            Err(error) => return Err(error.into()),
        };
        if let Some(plan) = &plan {
            self.check_failed(plan)?;
            let columns = plan.columns.as_ref().map_or(0, Vec::len);
            if results.len() > 1 && results.len() != columns {
                let message = format!(
                    "bind message has {} result formats but query has {columns} columns",
                    results.len()
                );
                return Err(violation(message).into());
            }
        }
        let mut values = Vec::with_capacity(parameters.len());
        for (i, (parameter, ty)) in parameters.iter().zip(&prepared.declared).enumerate() {
            let ty = Typed::plain(ty.unwrap_or(Type::Text));
            values.push(match (parameter, backend::format_of(&formats, i)) {
                (None, _) => Value::Null,
                (Some(bytes), Format::Text) => io::input(ty, utf8(bytes)?, &self.settings.output.zone)
                    .map_err(|error| in_parameter(error, i, &portal))?,
                (Some(bytes), Format::Binary) => {
                    io::input_binary(ty, bytes).map_err(|error| in_parameter(error, i, &portal))?
                }
            });
        }
        self.portals_made += 1;
        let (made, state) = (self.portals_made, PortalState::Ready);
        let bound = Portal { prepared, plan, parameters: values, formats: results, made, state };
        self.portals.insert(portal, bound);
        backend::bind_complete(&mut self.output.buffer);
        Ok(())
    }

    fn describe_statement(&mut self, name: &str) -> Result<(), Box<Report>> {
        let prepared = self.find_prepared(name)?;
        let types = prepared.declared.iter().map(|ty| ty.unwrap_or(Type::Text).oid());
        backend::parameter_description(&mut self.output.buffer, types);
        let plan = prepared.planned.as_ref().map(|planned| planned.plan.clone());
        self.describe(plan, &[]);
        Ok(())
    }

    fn describe_portal(&mut self, name: &str) -> Result<(), Box<Report>> {
        let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
        let (plan, formats) = (portal.plan.clone(), portal.formats.clone());
        self.describe(plan, &formats);
        Ok(())
    }

    fn describe(&mut self, plan: Option<Arc<Plan>>, formats: &[Format]) {
        let columns = plan.and_then(|plan| self.columns_of(&plan));
        match columns {
            Some(columns) => backend::row_description(&mut self.output.buffer, columns.get(), formats),
            None => backend::no_data(&mut self.output.buffer),
        }
    }

    async fn execute(&mut self, name: String, max_rows: u32) -> Result<(), Box<Report>> {
        let mut portal = self.portals.remove(&name).ok_or_else(|| no_portal(&name))?;
        let limit = if max_rows == 0 { u64::MAX } else { u64::from(max_rows) };
        if let Some(plan) = &portal.plan {
            self.check_failed(plan)?;
        }
        let state = std::mem::replace(&mut portal.state, PortalState::Ended { returned_rows: false });
        let (mut rows, formats) = match state {
            PortalState::Open(rows, formats) => {
                let mut rows = rows.into_inner();
                // Each Execute has a statement's time.
                rows.deadline = self.deadline();
                (rows, formats)
            }
            PortalState::Ended { returned_rows: true } => {
                super::run::Tag::Rows("SELECT").write(&mut self.output.buffer, 0);
                portal.state = PortalState::Ended { returned_rows: true };
                self.portals.insert(name, portal);
                return Ok(());
            }
            PortalState::Ended { returned_rows: false } => {
                let message = format!("portal \"{name}\" cannot be run");
                return Err(WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message).into());
            }
            PortalState::Ready => {
                let prepared = portal.prepared.clone();
                let (Some(text), Some(plan)) = (&prepared.text, portal.plan.clone()) else {
                    backend::empty_query(&mut self.output.buffer);
                    portal.state = PortalState::Ready;
                    self.portals.insert(name, portal);
                    return Ok(());
                };
                let state = self.shared.executor.cluster.snapshot();
                let parameters = std::mem::take(&mut portal.parameters);
                let started = self.start(text, &parameters, plan, state, &prepared.declared, true).await;
                match started? {
                    Started::Rows(rows) => {
                        let formats = rows.columns.formats(&portal.formats);
                        (rows, formats)
                    }
                    Started::Done(tag) => {
                        tag.write(&mut self.output.buffer, 0);
                        self.keep(name, portal);
                        return Ok(());
                    }
                    Started::Empty => {
                        backend::empty_query(&mut self.output.buffer);
                        return Ok(());
                    }
                    Started::CopyIn(copying) => {
                        backend::copy_in(&mut self.output.buffer, copying.columns());
                        self.flush().await;
                        let text = text.clone();
                        self.mode = Mode::Copy(Box::new(CopyState { copying: *copying, text, rest: None }));
                        return Ok(());
                    }
                    Started::CopyOut(rows, plan, deadline) => {
                        return self.copy_out(*rows, &plan, deadline).await;
                    }
                }
            }
        };
        let (sent, more) = self.send_rows(&mut rows, &formats, limit).await?;
        if more {
            backend::portal_suspended(&mut self.output.buffer);
            portal.state = PortalState::Open(Mutex::new(rows), formats);
        } else {
            rows.tag.write(&mut self.output.buffer, sent);
            portal.state = PortalState::Ended { returned_rows: true };
        }
        self.keep(name, portal);
        Ok(())
    }

    /// Keeps a portal that has run, unless what it ran has ended every portal.
    fn keep(&mut self, name: String, portal: Portal) {
        let ends = portal.plan.as_ref().is_some_and(|plan| {
            use SessionCommand::{Commit, Discard, Rollback};
            matches!(&plan.action, Action::Session(Commit { .. } | Rollback { .. } | Discard(_)))
        });
        if !ends {
            self.portals.insert(name, portal);
        }
    }
}

fn no_portal(name: &str) -> WireError {
    WireError::new(SqlState::INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist"))
}

/// A parameter's declared type: 0 leaves it open.
fn declared_type(oid: u32) -> Result<Option<Type>, WireError> {
    if oid == 0 || oid == Type::Unknown.oid() {
        return Ok(None);
    }
    let ty = Type::from_oid(oid);
    ty.map(Some)
        .ok_or_else(|| WireError::unsupported(format!("a parameter of the type with the object id {oid}")))
}

fn in_parameter(error: WireError, place: usize, portal: &str) -> Box<Report> {
    let portal = if portal.is_empty() { "unnamed portal".to_owned() } else { format!("portal \"{portal}\"") };
    let mut report: Box<Report> = error.into();
    report.context = Some(format!("{portal} parameter ${}", place + 1));
    report
}
