//! What psql 15 asks for `\d`, `\d t`, `\d+ t`, `\dt`, `\di`, `\ds`, `\dv`, `\dT`, `\dn`, `\du`, `\drds` and `\l`, recorded with `psql -E`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use planner::plan::Action;
use planner::text::split;
use planner::{Context, Settings};

#[test]
fn what_psql_asks_has_a_plan() {
    let catalog = proto::catalog::Catalog::default();
    let topology = proto::topology::Topology::default();
    let settings = Settings::default();
    let context = Context { catalog: &catalog, topology: &topology, settings: &settings };
    for sql in include_str!("psql").split("\n;\n") {
        let texts = split(sql).unwrap();
        let planned =
            planner::plan(&texts[0], &[], &context).unwrap_or_else(|error| panic!("{error:?}: {sql}"));
        assert!(matches!(planned.plan.action, Action::Query(_)), "{sql}");
    }
}

#[test]
fn another_question_is_not_taken_for_psqls() {
    let catalog = proto::catalog::Catalog::default();
    let topology = proto::topology::Topology::default();
    let settings = Settings::default();
    let context = Context { catalog: &catalog, topology: &topology, settings: &settings };
    let policies = include_str!("psql").split("\n;\n").find(|sql| sql.contains("pg_policy pol")).unwrap();
    let plan = |sql: &str| planner::plan(&split(sql).unwrap()[0], &[], &context);
    assert!(plan(policies).is_ok());
    assert!(plan(&policies.replace("16384", "20000")).is_ok());
    assert!(plan(&policies.replace("'SELECT'", "'OTHER'")).is_err());
    assert!(plan(&policies.replace("pol.polname,", "pol.polname, 1,")).is_err());
}
