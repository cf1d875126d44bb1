//! What a router counts, for whoever watches over it.
//!
//! In come statements as they begin; out go Prometheus' metric families. It must never know who serves them.

use planner::plan::{Action, Plan};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// What is counted. One addition for each statement.
pub(crate) struct Metrics {
    registry: Registry,
    sessions: IntGauge,
    select: IntCounter,
    insert: IntCounter,
    update: IntCounter,
    delete: IntCounter,
    copy: IntCounter,
    schema: IntCounter,
    session: IntCounter,
    explain: IntCounter,
}

impl Metrics {
    /// Nothing has happened yet.
    pub(crate) fn new() -> Self {
        let registry = Registry::new_custom(Some("shoal".to_owned()), None).expect("the prefix isn't empty");
        let sessions = IntGauge::new("sessions", "Postgres clients that are connected.").expect("constants");
        let help = "Statements that this node's router began, by kind.";
        let kinds = IntCounterVec::new(Opts::new("statements_total", help), &["kind"]).expect("constants");
        registry.register(Box::new(sessions.clone())).expect("it's the first");
        registry.register(Box::new(kinds.clone())).expect("it has another name");
        let kind = |name: &str| kinds.with_label_values(&[name]);
        Self {
            registry,
            sessions,
            select: kind("select"),
            insert: kind("insert"),
            update: kind("update"),
            delete: kind("delete"),
            copy: kind("copy"),
            schema: kind("schema"),
            session: kind("session"),
            explain: kind("explain"),
        }
    }

    /// A statement begins.
    pub(crate) fn begun(&self, plan: &Plan) {
        let kind = match &plan.action {
            Action::Query(_) => &self.select,
            Action::Insert(_) => &self.insert,
            Action::Modify(modify) if modify.delete => &self.delete,
            Action::Modify(_) => &self.update,
            Action::CopyIn(_) | Action::CopyOut(_) => &self.copy,
            Action::Schema(_) => &self.schema,
            Action::Session(_) => &self.session,
            Action::Explain(_) => &self.explain,
        };
        kind.inc();
    }

    /// What was counted, with the sessions that there are.
    pub(crate) fn gather(&self, sessions: usize) -> Vec<MetricFamily> {
        self.sessions.set(i64::try_from(sessions).unwrap_or(i64::MAX));
        self.registry.gather()
    }
}
