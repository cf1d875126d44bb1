//! The session's settings: SET, SHOW, RESET, and what startup asks for.
//!
//! Each setting says which values it takes. One that would change what a statement means, and that isn't supported,
//! is refused and not remembered: a client that asked for it must not believe that it has it.

use crate::executor::statement::Reading;
use dialect::datetime::TimeZone;
use dialect::io::OutputSettings;
use planner::system::SettingFact;
use planner::text::ReadHint;
use planner::{Rules, parse_millis};
use proto::services::Consistency;
use proto::{SqlState, WireError};
use std::collections::BTreeMap;
use std::time::Duration;

/// The version that clients are told. The leading number is what drivers decide by.
pub const SERVER_VERSION: &str = concat!("15.0 (Shoal ", env!("CARGO_PKG_VERSION"), ")");

/// What a setting takes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Nothing: it tells a fact.
    Fact,
    /// Any text.
    Text,
    /// One of these texts, case and spaces aside, each with how it is shown.
    OneOf(&'static [(&'static str, &'static str)]),
    /// UTF-8, or no conversion, which is the same here: what clients send is checked to be UTF-8.
    Encoding,
    /// on or off.
    Bool,
    /// A time in milliseconds, or with a unit.
    Time,
    /// A time of so many milliseconds at most.
    TimeUpTo(u64),
    /// A time that can only be none.
    NoTime,
    /// A time zone.
    Zone,
    /// Schemas to look in.
    Path,
    /// Planner rules.
    Rules,
    /// The user's role: it can only be none.
    Unsupported,
}

/// A setting.
struct Definition {
    name: &'static str,
    kind: Kind,
    default: &'static str,
    /// Clients hear of each change.
    reported: bool,
    about: &'static str,
}

const fn of(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Definition {
    Definition { name, kind, default, reported: false, about }
}

const fn told(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Definition {
    Definition { name, kind, default, reported: true, about }
}

const LEVELS: Kind = Kind::OneOf(&[
    ("debug5", "debug5"),
    ("debug4", "debug4"),
    ("debug3", "debug3"),
    ("debug2", "debug2"),
    ("debug1", "debug1"),
    ("debug", "debug2"),
    ("log", "log"),
    ("info", "info"),
    ("notice", "notice"),
    ("warning", "warning"),
    ("error", "error"),
]);
const ISOLATION: Kind =
    Kind::OneOf(&[("readcommitted", "read committed"), ("readuncommitted", "read uncommitted")]);
const READS: Kind = Kind::OneOf(&[
    ("strong", "strong"),
    ("session", "session"),
    ("bounded", "bounded"),
    ("eventual", "eventual"),
]);
const ON: Kind = Kind::OneOf(&[("on", "on"), ("true", "on"), ("yes", "on"), ("1", "on")]);
const OFF: Kind = Kind::OneOf(&[("off", "off"), ("false", "off"), ("no", "off"), ("0", "off")]);

/// By lower-case name.
const DEFINITIONS: &[Definition] = &[
    told("application_name", Kind::Text, "", "The name of the client's application."),
    of("array_nulls", ON, "on", "NULL in the text of an array is a null."),
    of("bytea_output", Kind::OneOf(&[("hex", "hex")]), "hex", "How bytea values look."),
    of("check_function_bodies", Kind::Bool, "on", "There are no functions to check."),
    told("client_encoding", Kind::Encoding, "UTF8", "The encoding of what clients send and get."),
    of("client_min_messages", LEVELS, "notice", "The least severity of notices that are sent."),
    told(
        "DateStyle",
        Kind::OneOf(&[("iso", "ISO, MDY"), ("iso,mdy", "ISO, MDY")]),
        "ISO, MDY",
        "How dates look and are read.",
    ),
    of(
        "default_table_access_method",
        Kind::OneOf(&[("heap", "heap")]),
        "heap",
        "There is one kind of table.",
    ),
    of("default_tablespace", Kind::OneOf(&[("", "")]), "", "There are no tablespaces."),
    of("default_transaction_isolation", ISOLATION, "read committed", "The isolation level of transactions."),
    told("default_transaction_read_only", Kind::Bool, "off", "Whether transactions may write."),
    of("escape_string_warning", Kind::Bool, "on", "Strings have no escapes that it could warn of."),
    of(
        "extra_float_digits",
        Kind::OneOf(&[("1", "1"), ("2", "2"), ("3", "3")]),
        "1",
        "Floats are shown with as many digits as tell them apart.",
    ),
    of(
        "idle_in_transaction_session_timeout",
        Kind::Time,
        "0",
        "How long a client may leave a transaction idle before its session is ended.",
    ),
    of("idle_session_timeout", Kind::NoTime, "0", "Idle sessions aren't ended."),
    told("in_hot_standby", Kind::Fact, "off", "Every router takes writes."),
    told("integer_datetimes", Kind::Fact, "on", "Times are whole microseconds."),
    told("IntervalStyle", Kind::OneOf(&[("postgres", "postgres")]), "postgres", "How intervals look."),
    told("is_superuser", Kind::Fact, "on", "Every user may do everything."),
    of("lc_collate", Kind::Fact, "C.UTF-8", "Texts are ordered by their code points."),
    of("lc_ctype", Kind::Fact, "C.UTF-8", "The characters' classes."),
    of(
        "lc_messages",
        Kind::OneOf(&[("c", "C"), ("c.utf-8", "C"), ("en_us.utf-8", "C")]),
        "C",
        "The messages' language.",
    ),
    of("lock_timeout", Kind::Time, "0", "How long a statement may wait for a lock."),
    of("max_identifier_length", Kind::Fact, "63", "Bytes of a name."),
    of("max_index_keys", Kind::Fact, "32", "Columns of an index."),
    of("role", Kind::Unsupported, "none", "There is one role."),
    of("row_security", Kind::Bool, "on", "There are no policies."),
    of("search_path", Kind::Path, "\"$user\", public", "The schemas that names are looked up in."),
    told("server_encoding", Kind::Fact, "UTF8", "The encoding of what is stored."),
    told("server_version", Kind::Fact, SERVER_VERSION, "The version."),
    of("server_version_num", Kind::Fact, "150000", "The version as a number."),
    told("session_authorization", Kind::Fact, "shoal", "The session's user."),
    of("shoal.max_staleness", Kind::Time, "5s", "How old a state reads at the level bounded may see."),
    of("shoal.read_consistency", READS, "strong", "How fresh a state queries must see."),
    of(
        "shoal.read_wait",
        Kind::TimeUpTo(10_000),
        "50ms",
        "How long a replica may wait until it is fresh enough.",
    ),
    of("shoal.report_gtid", Kind::Bool, "off", "Clients hear of shoal.gtid after commits."),
    of("shoal.rules", Kind::Rules, "all", "The planner's rules that are on."),
    told("standard_conforming_strings", ON, "on", "Backslashes in strings are plain."),
    of("statement_timeout", Kind::Time, "0", "How long a statement may take."),
    of("synchronize_seqscans", Kind::Bool, "on", "Scans don't wait for each other."),
    of("synchronous_commit", ON, "on", "A commit is on a majority's disks before it is told."),
    told("TimeZone", Kind::Zone, "UTC", "The time zone that times are shown and read in."),
    of("transaction_isolation", ISOLATION, "read committed", "This transaction's isolation level."),
    of("transaction_read_only", Kind::Fact, "off", "Whether this transaction may write."),
    of("xmloption", Kind::OneOf(&[("content", "content")]), "content", "There is no XML."),
];

/// A session's settings.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Those that aren't as they are by default, as they are shown.
    changed: BTreeMap<&'static str, String>,
    /// What the role and startup asked for: what RESET goes back to.
    startup: BTreeMap<&'static str, String>,
    /// What the planner depends on.
    pub planner: planner::Settings,
    /// What texts depend on.
    pub output: OutputSettings,
    /// `statement_timeout`; `None` for no bound.
    pub statement_timeout: Option<Duration>,
    /// `lock_timeout`; `None` for no bound.
    pub lock_timeout: Option<Duration>,
    /// `idle_in_transaction_session_timeout`; `None` for no bound.
    pub idle_in_transaction: Option<Duration>,
    /// `default_transaction_read_only`.
    pub read_only: bool,
    /// `shoal.report_gtid`.
    pub report_gtid: bool,
    reads: Reads,
    /// The place of `client_min_messages` among the levels that matter: notice 0, warning 1, error 2.
    pub least_notice: u8,
}

/// How fresh what queries read must be.
#[derive(Clone, Copy, Debug)]
struct Reads {
    level: ReadHint,
    max_staleness: Duration,
    wait: Duration,
}

impl Default for Reads {
    fn default() -> Self {
        let (max_staleness, wait) = (Duration::from_secs(5), Duration::from_millis(50));
        Self { level: ReadHint::Strong, max_staleness, wait }
    }
}

impl Settings {
    /// How fresh what a query reads must be, by its hint if it has one.
    pub fn reading(&self, hint: Option<ReadHint>) -> Reading {
        let Reads { level, max_staleness, wait } = self.reads;
        let consistency = match hint.unwrap_or(level) {
            ReadHint::Strong => return Reading::STRONG,
            ReadHint::Session => Consistency::Session,
            ReadHint::Eventual => Consistency::Eventual,
            ReadHint::Bounded(bound) => match bound.unwrap_or(max_staleness) {
                // Not even the leader's state is fresher than now.
                Duration::ZERO => return Reading::STRONG,
                bound => Consistency::Bounded(bound),
            },
        };
        Reading { consistency, wait }
    }

    /// Sets one; `None` for what it was when the session began. Says whether clients must hear of it.
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<bool, WireError> {
        let definition = find(name)?;
        let value = match value {
            Some(value) => value.to_owned(),
            None => self.initial(definition),
        };
        let shown = read(definition, &value)?;
        self.apply(definition, &shown)?;
        let before = self.changed.insert(definition.name, shown.clone());
        Ok(definition.reported && before.as_deref().unwrap_or(definition.default) != shown)
    }

    /// What startup asked for is what RESET goes back to.
    pub fn keep_as_startup(&mut self) {
        self.startup = self.changed.clone();
    }

    /// Sets everything back to what it was when the session began. The names of those that clients must hear of.
    pub fn reset_all(&mut self) -> Result<Vec<&'static str>, WireError> {
        let names: Vec<_> = self.changed.keys().copied().collect();
        let mut reported = Vec::new();
        for name in names {
            if self.set(name, None)? {
                reported.push(name);
            }
        }
        Ok(reported)
    }

    /// One setting as SHOW tells it, with its name as it is written.
    pub fn show(&self, name: &str) -> Result<(&'static str, String), WireError> {
        let definition = find(name)?;
        Ok((definition.name, self.value(definition).to_owned()))
    }

    /// Every setting.
    pub fn all(&self) -> impl Iterator<Item = SettingFact> {
        DEFINITIONS.iter().map(|d| SettingFact {
            name: d.name.to_owned(),
            value: self.value(d).to_owned(),
            reset: self.initial(d),
            about: d.about.to_owned(),
        })
    }

    /// Those that clients hear of.
    pub fn reported(&self) -> impl Iterator<Item = (&'static str, &str)> {
        DEFINITIONS.iter().filter(|d| d.reported).map(|d| (d.name, self.value(d)))
    }

    /// Those that differ from other settings and that clients hear of.
    pub fn reported_changes<'a>(
        &'a self,
        other: &'a Settings,
    ) -> impl Iterator<Item = (&'static str, &'a str)> {
        self.reported().zip(other.reported()).filter(|(now, before)| now.1 != before.1).map(|(now, _)| now)
    }

    fn value(&self, definition: &Definition) -> &str {
        self.changed.get(definition.name).map_or(definition.default, String::as_str)
    }

    fn initial(&self, definition: &Definition) -> String {
        self.startup.get(definition.name).map_or_else(|| definition.default.to_owned(), Clone::clone)
    }

    fn apply(&mut self, definition: &Definition, value: &str) -> Result<(), WireError> {
        match definition.name {
            "shoal.rules" => self.planner.rules = Rules::parse(value)?,
            "TimeZone" => self.output.zone = TimeZone::parse(value)?,
            "statement_timeout" => self.statement_timeout = timeout(value),
            "lock_timeout" => self.lock_timeout = timeout(value),
            "idle_in_transaction_session_timeout" => self.idle_in_transaction = timeout(value),
            "default_transaction_read_only" => self.read_only = value == "on",
            "shoal.read_consistency" => {
                self.reads.level = match value {
                    "session" => ReadHint::Session,
                    "bounded" => ReadHint::Bounded(None),
                    "eventual" => ReadHint::Eventual,
                    _ => ReadHint::Strong,
                }
            }
            "shoal.max_staleness" => self.reads.max_staleness = span(value),
            "shoal.read_wait" => self.reads.wait = span(value),
            "shoal.report_gtid" => self.report_gtid = value == "on",
            "client_min_messages" => {
                self.least_notice = match value {
                    "error" => 2,
                    "warning" => 1,
                    _ => 0,
                };
            }
            _ => {}
        }
        Ok(())
    }
}

/// A time that bounds something; 0 is no bound.
fn timeout(value: &str) -> Option<Duration> {
    parse_millis(value).filter(|millis| *millis > 0).map(Duration::from_millis)
}

/// A time that may be none.
fn span(value: &str) -> Duration {
    parse_millis(value).map_or(Duration::ZERO, Duration::from_millis)
}

fn find(name: &str) -> Result<&'static Definition, WireError> {
    DEFINITIONS.iter().find(|d| d.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        WireError::new(SqlState::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{name}\""))
    })
}

fn invalid(name: &str, value: &str) -> WireError {
    WireError::new(
        SqlState::INVALID_PARAMETER_VALUE,
        format!("invalid value for parameter \"{name}\": \"{value}\""),
    )
}

/// Checks a value, and gives it as it is shown.
fn read(definition: &Definition, value: &str) -> Result<String, WireError> {
    let name = definition.name;
    match definition.kind {
        Kind::Fact if value == definition.default => Ok(value.to_owned()),
        Kind::Fact => {
            let code = SqlState::parse("55P02").expect("five digits and letters");
            Err(WireError::new(code, format!("parameter \"{name}\" cannot be changed")))
        }
        // As PostgreSQL does with a name that others will see in their logs.
        Kind::Text => {
            Ok(value.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).take(63).collect())
        }
        Kind::OneOf(values) => {
            let plain: String = value.chars().filter(|c| *c != ' ').flat_map(char::to_lowercase).collect();
            let known = values.iter().find(|(text, _)| *text == plain);
            let takes: Vec<_> = values.iter().map(|(_, shown)| format!("\"{shown}\"")).collect();
            known.map(|(_, shown)| (*shown).to_owned()).ok_or_else(|| {
                invalid(name, value).with_hint(format!("Supported values: {}.", takes.join(", ")))
            })
        }
        Kind::Encoding => {
            // As PostgreSQL compares names of encodings.
            let plain: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
            match plain.to_ascii_lowercase().as_str() {
                "utf8" | "unicode" => Ok("UTF8".to_owned()),
                "sqlascii" => Ok("SQL_ASCII".to_owned()),
                _ => Err(invalid(name, value).with_hint("Supported values: \"UTF8\".")),
            }
        }
        Kind::Bool => read_one_of(ON, value).or_else(|| read_one_of(OFF, value)).ok_or_else(|| {
            let message = format!("parameter \"{name}\" requires a Boolean value");
            WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
        }),
        Kind::Time => read_time(name, value),
        Kind::TimeUpTo(most) => match parse_millis(value) {
            Some(millis) if millis > most => {
                let message =
                    format!("{millis} ms is outside the valid range for parameter \"{name}\" (0 .. {most})");
                Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message))
            }
            _ => read_time(name, value),
        },
        Kind::NoTime => match parse_millis(value) {
            Some(0) => Ok("0".to_owned()),
            Some(_) => Err(WireError::unsupported(format!("the parameter \"{name}\""))),
            None => Err(invalid(name, value)),
        },
        Kind::Zone => TimeZone::parse(value).map(|zone| zone.name().to_owned()),
        Kind::Path => {
            for part in value.split(',') {
                let part = part.trim().trim_matches('"');
                if !matches!(part, "" | "public" | "$user" | "pg_catalog") {
                    return Err(WireError::unsupported(format!("the schema \"{part}\""))
                        .with_hint("Tables live in the schema \"public\"."));
                }
            }
            // Without public, a name would be looked up where it isn't.
            if !value.contains("public") {
                return Err(WireError::unsupported("a search_path without \"public\""));
            }
            Ok(value.to_owned())
        }
        Kind::Rules => Rules::parse(value).map(|rules| rules.to_string()),
        Kind::Unsupported if matches!(value, "none" | "shoal") => Ok(value.to_owned()),
        Kind::Unsupported => {
            Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, format!("role \"{value}\" does not exist")))
        }
    }
}

/// A time in milliseconds, or with a unit.
fn read_time(name: &str, value: &str) -> Result<String, WireError> {
    let millis = parse_millis(value).filter(|ms| *ms <= i32::MAX as u64);
    millis.map(show_millis).ok_or_else(|| {
        let units = "Valid units for this parameter are \"us\", \"ms\", \"s\", \"min\", \"h\", and \"d\".";
        invalid(name, value).with_hint(units)
    })
}

fn read_one_of(kind: Kind, value: &str) -> Option<String> {
    let Kind::OneOf(values) = kind else { return None };
    values.iter().find(|(text, _)| value.eq_ignore_ascii_case(text)).map(|(_, shown)| (*shown).to_owned())
}

/// In the greatest unit that needs no fraction, as PostgreSQL shows it.
fn show_millis(millis: u64) -> String {
    if millis == 0 {
        return "0".to_owned();
    }
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
    match units.iter().find(|(unit, _)| millis.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Result<String, String> {
        let mut settings = Settings::default();
        settings.set(name, Some(value)).map_err(|e| e.sqlstate.to_string())?;
        Ok(settings.show(name).unwrap().1)
    }

    #[test]
    fn what_drivers_send_is_taken() {
        assert_eq!(set("extra_float_digits", "3").unwrap(), "3");
        assert_eq!(set("datestyle", "ISO").unwrap(), "ISO, MDY");
        assert_eq!(set("CLIENT_ENCODING", "'utf-8'").unwrap(), "UTF8");
        assert_eq!(set("client_encoding", "SQL_ASCII").unwrap(), "SQL_ASCII");
        assert_eq!(set("search_path", "\"$user\", public").unwrap(), "\"$user\", public");
        assert_eq!(set("statement_timeout", "5000").unwrap(), "5s");
        assert_eq!(set("statement_timeout", "1.5min").unwrap(), "90s");
        assert_eq!(set("lock_timeout", "250").unwrap(), "250ms");
        assert_eq!(set("idle_in_transaction_session_timeout", "60000").unwrap(), "1min");
        assert_eq!(set("application_name", "caf\u{e9}").unwrap(), "caf?");
        assert_eq!(set("transaction_isolation", "READ COMMITTED").unwrap(), "read committed");
    }

    #[test]
    fn what_would_change_meaning_is_refused() {
        for (name, value, code) in [
            ("client_encoding", "LATIN1", "22023"),
            ("datestyle", "German", "22023"),
            ("extra_float_digits", "0", "22023"),
            ("standard_conforming_strings", "off", "22023"),
            ("search_path", "other", "0A000"),
            ("idle_session_timeout", "10s", "0A000"),
            ("lock_timeout", "-1", "22023"),
            ("shoal.read_wait", "10001", "22023"),
            ("shoal.read_wait", "1h", "22023"),
            ("transaction_isolation", "serializable", "22023"),
            ("server_version", "16", "55P02"),
            ("nonsense", "1", "42704"),
            ("statement_timeout", "soon", "22023"),
        ] {
            assert_eq!(set(name, value), Err(code.to_owned()), "{name} = {value}");
        }
    }

    #[test]
    fn a_replica_may_wait_for_so_long_at_most() {
        assert_eq!(set("shoal.read_wait", "10s").unwrap(), "10s");
        let error = Settings::default().set("shoal.read_wait", Some("10.5s")).unwrap_err();
        // PostgreSQL's words for an integer with a unit.
        let message = "10500 ms is outside the valid range for parameter \"shoal.read_wait\" (0 .. 10000)";
        assert_eq!((error.sqlstate, error.message.as_str()), (SqlState::INVALID_PARAMETER_VALUE, message));
    }

    #[test]
    fn reset_goes_back_to_what_startup_asked_for() {
        let mut settings = Settings::default();
        settings.set("application_name", Some("psql")).unwrap();
        settings.keep_as_startup();
        assert!(settings.set("application_name", Some("other")).unwrap());
        settings.set("statement_timeout", Some("1s")).unwrap();
        assert_eq!(settings.statement_timeout, Some(Duration::from_secs(1)));
        assert_eq!(settings.reset_all().unwrap(), ["application_name"]);
        assert_eq!(settings.show("application_name").unwrap().1, "psql");
        assert_eq!(settings.statement_timeout, None);
    }

    #[test]
    fn how_fresh_reads_must_be_is_said_by_the_hint_and_else_by_the_settings() {
        let mut settings = Settings::default();
        let reading = |settings: &Settings, hint| {
            let Reading { consistency, wait } = settings.reading(hint);
            (consistency, wait.as_millis())
        };
        let bounded = |millis| Consistency::Bounded(Duration::from_millis(millis));
        assert_eq!(settings.reading(None), Reading::STRONG);
        assert_eq!(reading(&settings, Some(ReadHint::Session)), (Consistency::Session, 50));
        assert_eq!(reading(&settings, Some(ReadHint::Bounded(None))), (bounded(5000), 50));
        for (name, value) in [
            ("shoal.read_consistency", "BOUNDED"),
            ("shoal.max_staleness", "200"),
            ("shoal.read_wait", "0"),
            ("shoal.report_gtid", "on"),
        ] {
            settings.set(name, Some(value)).unwrap();
        }
        assert!(settings.report_gtid);
        assert_eq!(settings.show("shoal.max_staleness").unwrap().1, "200ms");
        assert_eq!(reading(&settings, None), (bounded(200), 0));
        let half = ReadHint::Bounded(Some(Duration::from_millis(500)));
        assert_eq!(reading(&settings, Some(half)), (bounded(500), 0));
        assert_eq!(settings.reading(Some(ReadHint::Strong)), Reading::STRONG);
        assert_eq!(reading(&settings, Some(ReadHint::Eventual)), (Consistency::Eventual, 0));
        settings.set("shoal.max_staleness", Some("0")).unwrap();
        assert_eq!(settings.reading(None), Reading::STRONG);
        settings.set("shoal.read_consistency", Some("session")).unwrap();
        assert_eq!(reading(&settings, None), (Consistency::Session, 0));
        settings.reset_all().unwrap();
        assert_eq!(settings.reading(None), Reading::STRONG);
        assert_eq!(reading(&settings, Some(ReadHint::Session)), (Consistency::Session, 50));
        assert_eq!(set("shoal.read_consistency", "linear"), Err("22023".into()));
        assert_eq!(set("shoal.read_wait", "-1"), Err("22023".into()));
    }
}
