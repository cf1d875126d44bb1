//! Isolation scripts and recordings as text.
//!
//! A script begins with what makes the tables, and goes on with cases. Lines that begin with `#` are comments.
//!
//! ```text
//! setup
//! DROP TABLE IF EXISTS test;
//! CREATE TABLE test (id int PRIMARY KEY, value int) PARTITION BY HASH (id);
//! INSERT INTO test VALUES (1, 10), (2, 20);
//! apart test.id 1 2
//!
//! case a lost update
//! a: BEGIN
//! b: UPDATE test SET value = 12 WHERE id = 1
//! await b
//! ```
//!
//! - `setup`: statements, each ended by a semicolon at the end of a line, that run before each case.
//! - `apart TABLE.COLUMN VALUE ..`: rows of these shard keys are on different shards wherever there are several shards.
//! - `case NAME` begins a case. Every case has sessions of its own.
//! - `SESSION: SQL` sends a statement. If it waits for another session, the script goes on; it may not send another
//!   one by that session before it has ended.
//! - `await SESSION`: the script goes on when the session's statement has ended by itself (a timeout).
//! - `victim SESSION`: of a deadlock, PostgreSQL ends this one. Shoal ends the youngest, so it must be that one.
//!
//! A recording repeats the statements. `> SESSION: SQL` is sent; what stands below is its answer, or `waits`. After
//! that, `< SESSION: SQL` tells of one that had waited and ended now. `> await SESSION` has nothing below.

use crate::script::{self, Statement};
use std::fmt::Write;

/// What a recording says of a statement that doesn't end at once.
pub const WAITS: &str = "waits\n";

/// A script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// What runs before each case.
    pub setup: Vec<Statement>,
    /// Keys that must be on different shards: the table, the column, and the values.
    pub apart: Vec<(String, String, Vec<String>)>,
    /// The cases.
    pub cases: Vec<Case>,
}

/// A case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Whom PostgreSQL is to end.
    pub victim: Option<String>,
    /// What happens.
    pub steps: Vec<Step>,
}

/// A step of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A session sends a statement.
    Send {
        /// The session.
        session: String,
        /// The statement.
        sql: String,
    },
    /// A session's statement ends by itself.
    Await(String),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Send { session, sql } => write!(f, "{session}: {sql}"),
            Step::Await(session) => write!(f, "await {session}"),
        }
    }
}

/// What happened in a case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// For each step, what it did.
    pub steps: Vec<Recorded>,
}

/// What happened at a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The step as text.
    pub step: String,
    /// What it answered; [`WAITS`] if it didn't at once; empty for `await`.
    pub answer: String,
    /// What ended by it: statements that had waited, in the order that they were sent in, and their answers.
    pub ended: Vec<(String, String)>,
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Reads a script.
pub fn parse(text: &str) -> Script {
    let mut setup = String::new();
    let mut script = Script { setup: Vec::new(), apart: Vec::new(), cases: Vec::new() };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("case ") {
            assert!(script.cases.iter().all(|case| case.name != name), "two cases are called {name}");
            script.cases.push(Case { name: name.to_owned(), victim: None, steps: Vec::new() });
            continue;
        }
        let Some(case) = script.cases.last_mut() else {
            if let Some(keys) = line.strip_prefix("apart ") {
                let mut words = keys.split_whitespace();
                let column = words.next().and_then(|word| word.split_once('.'));
                let (table, column) = column.expect("apart names TABLE.COLUMN");
                script.apart.push((table.to_owned(), column.to_owned(), words.map(str::to_owned).collect()));
            } else if line != "setup" {
                setup.push_str(line);
                setup.push('\n');
            }
            continue;
        };
        if let Some(session) = line.strip_prefix("await ") {
            case.steps.push(Step::Await(session.to_owned()));
        } else if let Some(session) = line.strip_prefix("victim ") {
            case.victim = Some(session.to_owned());
        } else {
            let (session, sql) = line.split_once(": ").unwrap_or_else(|| panic!("not a step: {line}"));
            assert!(is_name(session), "not a session's name: {session}");
            case.steps.push(Step::Send { session: session.to_owned(), sql: sql.to_owned() });
        }
    }
    script.setup = script::parse(&setup);
    script
}

/// The form that [`parse_recordings`] reads.
pub fn render(name: &str, recording: &Recording) -> String {
    let steps: Vec<_> = recording.steps.iter().map(Recorded::render).collect();
    format!("case {name}\n{}", steps.concat())
}

impl Recorded {
    fn render(&self) -> String {
        let mut out = format!("> {}\n{}", self.step, self.answer);
        for (step, answer) in &self.ended {
            write!(out, "< {step}\n{answer}").expect("strings take text");
        }
        out
    }
}

/// The first step that two recordings tell differently, as each tells it.
pub fn first_difference(expected: &Recording, actual: &Recording) -> Option<(String, String)> {
    let steps = expected.steps.len().max(actual.steps.len());
    let place = (0..steps).find(|place| expected.steps.get(*place) != actual.steps.get(*place))?;
    let tell = |recording: &Recording| {
        recording.steps.get(place).map_or("nothing more\n".to_owned(), Recorded::render)
    };
    Some((tell(expected), tell(actual)))
}

/// Reads recordings, each with its case's name.
pub fn parse_recordings(text: &str) -> Vec<(String, Recording)> {
    let mut cases: Vec<(String, Recording)> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("case ") {
            cases.push((name.to_owned(), Recording::default()));
            continue;
        }
        let (_, Recording { steps }) = cases.last_mut().expect("a recording begins with a case");
        if let Some(step) = line.strip_prefix("> ") {
            steps.push(Recorded { step: step.to_owned(), ..Recorded::default() });
            continue;
        }
        let step = steps.last_mut().expect("a case begins with a step");
        if let Some(ended) = line.strip_prefix("< ") {
            step.ended.push((ended.to_owned(), String::new()));
            continue;
        }
        let answer = step.ended.last_mut().map_or(&mut step.answer, |(_, answer)| answer);
        answer.push_str(line);
        answer.push('\n');
    }
    cases
}

/// What each case of a script did, in the script's order. Panics if the recordings are of another script.
pub fn recordings(script: &Script, recorded: &str) -> Vec<Recording> {
    let recorded = parse_recordings(recorded);
    let names: Vec<_> = script.cases.iter().map(|case| case.name.as_str()).collect();
    let known: Vec<_> = recorded.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, known, "the recording is of other cases: record it again");
    let each = script.cases.iter().zip(recorded);
    each.map(|(case, (_, recording))| {
        check_steps(case, &recording);
        recording
    })
    .collect()
}

/// The cases that a server plays in its own way, by the names that they have in the script. Panics if they are of
/// another script.
pub fn own_recordings(script: &Script, own: &str) -> Vec<(String, Recording)> {
    let own = parse_recordings(own);
    for (name, recording) in &own {
        let plain = [ONE_SHARD, SEVERAL_SHARDS].iter().find_map(|suffix| name.strip_suffix(suffix));
        let case = script.cases.iter().find(|case| case.name == plain.unwrap_or(name));
        check_steps(case.unwrap_or_else(|| panic!("there is no case {name}")), recording);
    }
    own
}

/// Behind a case's name: it is so on clusters of one shard.
pub const ONE_SHARD: &str = " (one shard)";

/// Behind a case's name: it is so on clusters of several shards.
pub const SEVERAL_SHARDS: &str = " (several shards)";

fn check_steps(case: &Case, recording: &Recording) {
    let steps: Vec<_> = case.steps.iter().map(Step::to_string).collect();
    let known: Vec<_> = recording.steps.iter().map(|step| step.step.clone()).collect();
    assert_eq!(steps, known, "the recording of {} has other steps: record it again", case.name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_has_setup_and_cases() {
        let script = parse(
            "# About.\nsetup\nCREATE TABLE t\n  (a int);\napart t.a 1 2\n\ncase one\nvictim b\na: BEGIN\nawait b\n",
        );
        assert_eq!(script.setup.len(), 1);
        assert_eq!(script.apart, [("t".into(), "a".into(), vec!["1".into(), "2".into()])]);
        let [case] = &script.cases[..] else { panic!("{script:?}") };
        assert_eq!((case.name.as_str(), case.victim.as_deref()), ("one", Some("b")));
        let steps: Vec<_> = case.steps.iter().map(Step::to_string).collect();
        assert_eq!(steps, ["a: BEGIN", "await b"]);
    }

    #[test]
    fn a_recording_reads_back() {
        let sent = |step: &str, answer: &str, ended: &[(&str, &str)]| Recorded {
            step: step.to_owned(),
            answer: answer.to_owned(),
            ended: ended.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        };
        let steps = vec![
            sent("a: UPDATE t SET v = 1", WAITS, &[]),
            sent("b: COMMIT", "(0)\n", &[("a: UPDATE t SET v = 1", "(1)\n")]),
            sent("await c", "", &[("c: SELECT 1 AS x", "x\n1\n(1)\n")]),
        ];
        let recording = Recording { steps };
        let mut other = recording.clone();
        assert_eq!(first_difference(&recording, &other), None);
        other.steps.pop();
        let (expected, actual) = first_difference(&recording, &other).expect("one step is missing");
        assert_eq!(
            (expected.as_str(), actual.as_str()),
            ("> await c\n< c: SELECT 1 AS x\nx\n1\n(1)\n", "nothing more\n")
        );
        let text = render("two words", &recording);
        assert_eq!(parse_recordings(&text), [("two words".to_owned(), recording)]);
    }
}
