//! The grammar of commands: which one it is, and those that stay within the session.

use super::command::{Command, Kind, RelationKind};
use super::cursor::Cursor;
use super::{parse_copy, parse_schema};
use crate::plan::{Isolation, SessionCommand};
use crate::text::Parsed;
use proto::{SqlState, WireError};
use sqlparser::tokenizer::Token;

/// Parses a statement.
pub(crate) fn parse(cursor: &mut Cursor<'_>) -> Result<Parsed, WireError> {
    let parsed = if cursor.is("explain") {
        explain(cursor)?
    } else if cursor.accept("copy") {
        Parsed::Copy(parse_copy::copy(cursor)?)
    } else if let Some(kind) = command(cursor)? {
        Parsed::Utility(Command(kind))
    } else {
        Parsed::Statement(cursor.statement()?)
    };
    cursor.end()?;
    Ok(parsed)
}

/// A command that Shoal hasn't got.
pub(super) fn refused(what: &str, hint: Option<&str>) -> WireError {
    let error = WireError::unsupported(what);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

fn command(cursor: &mut Cursor<'_>) -> Result<Option<Kind>, WireError> {
    let session = |command| Ok(Some(Kind::Session(command)));
    if let Some(word) = cursor.accept_one(&["begin", "start"]) {
        if word == "start" {
            cursor.expect("transaction")?;
        } else {
            cursor.accept_one(&["work", "transaction"]);
        }
        let (isolation, read_only) = transaction_modes(cursor)?;
        return session(SessionCommand::Begin { start: word == "start", read_only, isolation });
    }
    if let Some(word) = cursor.accept_one(&["commit", "end"]) {
        if word == "commit" && cursor.accept("prepared") {
            return Err(refused("COMMIT PREPARED", Some(TWO_PHASE)));
        }
        cursor.accept_one(&["work", "transaction"]);
        let chain = chain(cursor)?;
        return session(SessionCommand::Commit { chain });
    }
    if let Some(word) = cursor.accept_one(&["rollback", "abort"]) {
        if word == "rollback" && cursor.accept("prepared") {
            return Err(refused("ROLLBACK PREPARED", Some(TWO_PHASE)));
        }
        cursor.accept_one(&["work", "transaction"]);
        if word == "rollback" && cursor.accept("to") {
            return session(SessionCommand::RollbackTo(savepoint(cursor)?));
        }
        let chain = chain(cursor)?;
        return session(SessionCommand::Rollback { chain });
    }
    if cursor.accept("savepoint") {
        return session(SessionCommand::Savepoint(cursor.name()?.value));
    }
    if cursor.accept("release") {
        return session(SessionCommand::Release(savepoint(cursor)?));
    }
    if cursor.accept("set") {
        return set(cursor).map(|command| Some(Kind::Session(command)));
    }
    if cursor.accept("reset") {
        return session(SessionCommand::Reset(setting_to_reset(cursor)?));
    }
    if cursor.accept("show") {
        let name = setting_name(cursor, &["all"])?;
        return session(SessionCommand::Show((name != "all").then_some(name)));
    }
    if cursor.accept("prepare") {
        return prepare(cursor).map(Some);
    }
    if cursor.accept("execute") {
        let name = cursor.name()?.value;
        let arguments =
            if cursor.is_symbol(&Token::LParen) { cursor.list(Cursor::expression)? } else { Vec::new() };
        return Ok(Some(Kind::Execute { name, arguments }));
    }
    if cursor.accept("deallocate") {
        cursor.accept("prepare");
        let name = if cursor.accept("all") { None } else { Some(cursor.name()?.value) };
        return session(SessionCommand::Deallocate(name));
    }
    if cursor.accept("discard") {
        let what = cursor.accept_one(&["all", "plans", "sequences", "temp", "temporary"]);
        return session(SessionCommand::Discard(match what {
            Some("all") => "ALL",
            Some("plans") => "PLANS",
            Some("sequences") => "SEQUENCES",
            Some(_) => "TEMP",
            None => return Err(cursor.error()),
        }));
    }
    if cursor.accept("vacuum") {
        return maintenance(
            cursor,
            "VACUUM",
            VACUUM_OPTIONS,
            &["full", "freeze", "verbose", "analyze", "analyse"],
        )
        .map(Some);
    }
    if cursor.accept("analyze") || cursor.accept("analyse") {
        return maintenance(cursor, "ANALYZE", &["verbose", "skip_locked"], &["verbose"]).map(Some);
    }
    if cursor.accept("checkpoint") {
        return Ok(Some(Kind::Maintenance { tag: "CHECKPOINT", tables: Vec::new() }));
    }
    if cursor.accept("create") {
        return parse_schema::create(cursor).map(Some);
    }
    if cursor.accept("alter") {
        return parse_schema::alter(cursor).map(Some);
    }
    if cursor.accept("drop") {
        return parse_schema::drop(cursor).map(Some);
    }
    if cursor.accept("truncate") {
        return parse_schema::truncate(cursor).map(Some);
    }
    const REFUSED: &[(&str, &str, Option<&str>)] = &[
        ("listen", "LISTEN", None),
        ("unlisten", "UNLISTEN", None),
        ("notify", "NOTIFY", None),
        ("lock", "LOCK TABLE", Some("Single statements are atomic without it.")),
        ("declare", "DECLARE CURSOR", Some("The extended protocol's portals return a result in parts.")),
        ("fetch", "FETCH", Some("The extended protocol's portals return a result in parts.")),
        ("move", "MOVE", None),
        ("close", "CLOSE", None),
        ("call", "CALL", None),
        ("do", "DO", None),
        ("merge", "MERGE", Some("INSERT .. ON CONFLICT does most of what it does.")),
        ("grant", "GRANT", Some("Every user may do everything.")),
        ("revoke", "REVOKE", Some("Every user may do everything.")),
        ("comment", "COMMENT", None),
        ("cluster", "CLUSTER", None),
        ("reindex", "REINDEX", None),
        ("refresh", "REFRESH MATERIALIZED VIEW", None),
        ("reassign", "REASSIGN OWNED", None),
        ("security", "SECURITY LABEL", None),
        ("import", "IMPORT FOREIGN SCHEMA", None),
        ("load", "LOAD", None),
    ];
    for (word, command, hint) in REFUSED {
        if cursor.is(word) {
            return Err(refused(command, *hint));
        }
    }
    Ok(None)
}

const TWO_PHASE: &str = "Shoal commits over several shards by itself: COMMIT is enough.";

/// AND [NO] CHAIN.
fn chain(cursor: &mut Cursor<'_>) -> Result<bool, WireError> {
    if !cursor.accept("and") {
        return Ok(false);
    }
    let chain = !cursor.accept("no");
    cursor.expect_all(&["chain"])?;
    Ok(chain)
}

/// `[SAVEPOINT] name`, where the name may be `savepoint`.
fn savepoint(cursor: &mut Cursor<'_>) -> Result<String, WireError> {
    if !cursor.is_nth_symbol(1, &Token::EOF) {
        cursor.accept("savepoint");
    }
    Ok(cursor.name()?.value)
}

fn transaction_modes(cursor: &mut Cursor<'_>) -> Result<(Option<Isolation>, Option<bool>), WireError> {
    let (mut isolation, mut read_only) = (None, None);
    loop {
        if cursor.accept_all(&["isolation", "level"]) {
            isolation = Some(if cursor.accept("serializable") {
                Isolation::Serializable
            } else if cursor.accept_all(&["repeatable", "read"]) {
                Isolation::RepeatableRead
            } else if cursor.accept_all(&["read", "committed"]) {
                Isolation::ReadCommitted
            } else if cursor.accept_all(&["read", "uncommitted"]) {
                Isolation::ReadUncommitted
            } else {
                return Err(cursor.error());
            });
        } else if cursor.accept_all(&["read", "only"]) {
            read_only = Some(true);
        } else if cursor.accept_all(&["read", "write"]) {
            read_only = Some(false);
        } else if cursor.accept("deferrable") || cursor.accept_all(&["not", "deferrable"]) {
            // It means something to SERIALIZABLE READ ONLY alone.
        } else if cursor.at_end() {
            return Ok((isolation, read_only));
        } else {
            return Err(cursor.error());
        }
        if cursor.accept_symbol(&Token::Comma) && cursor.at_end() {
            return Err(cursor.error());
        }
    }
}

/// A setting's name in SET, SHOW and RESET, in lower case, its several-word spellings resolved.
fn setting_name(cursor: &mut Cursor<'_>, keywords: &[&'static str]) -> Result<String, WireError> {
    if let Some(word) = cursor.accept_one(keywords) {
        return Ok(word.to_owned());
    }
    if cursor.accept_all(&["time", "zone"]) {
        return Ok("timezone".to_owned());
    }
    if cursor.accept_all(&["transaction", "isolation", "level"]) {
        return Ok("transaction_isolation".to_owned());
    }
    if cursor.accept_all(&["session", "authorization"]) {
        return Ok("session_authorization".to_owned());
    }
    let mut name = cursor.name()?.value.to_lowercase();
    while cursor.accept_symbol(&Token::Period) {
        name.push('.');
        name.push_str(&cursor.label()?.value.to_lowercase());
    }
    Ok(name)
}

/// After RESET: a setting, or ALL.
pub(super) fn setting_to_reset(cursor: &mut Cursor<'_>) -> Result<Option<String>, WireError> {
    let name = setting_name(cursor, &["all"])?;
    Ok((name != "all").then_some(name))
}

/// What a setting is to be.
pub(super) enum Assigned {
    /// This.
    Value(String),
    /// What it is without anybody's doing.
    Default,
    /// What it is.
    Current,
}

fn set(cursor: &mut Cursor<'_>) -> Result<SessionCommand, WireError> {
    // `SET local TO x` would name a setting, and so would `SET session = ..`: PostgreSQL reads them as words, too.
    if cursor.accept_all(&["session", "characteristics"]) {
        cursor.expect_all(&["as", "transaction"])?;
        if cursor.at_end() {
            return Err(cursor.error());
        }
        let (isolation, read_only) = transaction_modes(cursor)?;
        return Ok(SessionCommand::SetTransaction { isolation, read_only, session: true });
    }
    if cursor.accept("constraints") {
        return Err(refused("SET CONSTRAINTS", Some("Constraints are checked by each statement.")));
    }
    let local = match cursor.accept_one(&["local", "session"]) {
        Some("session") if cursor.is("authorization") => {
            return Err(refused("SET SESSION AUTHORIZATION", None));
        }
        scope => scope == Some("local"),
    };
    if cursor.accept("transaction") {
        if cursor.accept("snapshot") {
            return Err(refused("SET TRANSACTION SNAPSHOT", None));
        }
        if cursor.at_end() {
            return Err(cursor.error());
        }
        let (isolation, read_only) = transaction_modes(cursor)?;
        return Ok(SessionCommand::SetTransaction { isolation, read_only, session: false });
    }
    let (name, value) = assignment(cursor)?;
    let value = match value {
        Assigned::Value(value) => Some(value),
        Assigned::Default => None,
        Assigned::Current => return Err(refused("SET .. FROM CURRENT", Some("It would change nothing."))),
    };
    Ok(SessionCommand::Set { name, value, local })
}

/// After SET, of a session or a role: a setting, and what it is to be.
pub(super) fn assignment(cursor: &mut Cursor<'_>) -> Result<(String, Assigned), WireError> {
    let set = |name: &str, value: Option<String>| {
        Ok((name.to_owned(), value.map_or(Assigned::Default, Assigned::Value)))
    };
    if cursor.accept_all(&["time", "zone"]) {
        if cursor.accept("local") || cursor.accept("default") {
            return set("timezone", None);
        }
        if cursor.is("interval") {
            return Err(refused(
                "SET TIME ZONE INTERVAL",
                Some("Use a time zone's name or an offset in hours."),
            ));
        }
        let value = cursor.value()?;
        return set("timezone", Some(value));
    }
    if cursor.accept("names") {
        let value = if cursor.at_end() || cursor.accept("default") { None } else { Some(cursor.string()?) };
        return set("client_encoding", value);
    }
    if cursor.accept("schema") {
        let value = cursor.string()?;
        return set("search_path", Some(value));
    }
    if cursor.accept("role") {
        let value = cursor.value()?;
        return set("role", Some(value));
    }
    let name = setting_name(cursor, &[])?;
    if cursor.accept_all(&["from", "current"]) {
        return Ok((name, Assigned::Current));
    }
    if !cursor.accept("to") {
        cursor.expect_symbol(&Token::Eq)?;
    }
    if cursor.accept("default") {
        return set(&name, None);
    }
    let values = cursor.commas(|cursor| {
        let quoted = matches!(name.as_str(), "search_path" | "datestyle");
        let value = cursor.value()?;
        // A list's parts are identifiers to whoever reads it again.
        let plain = value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && !value.starts_with(|c: char| c.is_ascii_digit())
            && !value.is_empty();
        Ok(if quoted && name == "search_path" && !plain {
            format!("\"{}\"", value.replace('"', "\"\""))
        } else {
            value
        })
    })?;
    if values.len() > 1 && !LIST_SETTINGS.contains(&name.as_str()) {
        let message = format!("SET {name} takes only one argument");
        return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message));
    }
    set(&name, Some(values.join(", ")))
}

/// The settings that take a list.
const LIST_SETTINGS: &[&str] = &["search_path", "datestyle", "shoal.rules", "shoal.gtid"];

fn prepare(cursor: &mut Cursor<'_>) -> Result<Kind, WireError> {
    if cursor.is("transaction") {
        return Err(refused("PREPARE TRANSACTION", Some(TWO_PHASE)));
    }
    let name = cursor.name()?.value;
    let types = if cursor.is_symbol(&Token::LParen) {
        cursor.list(|cursor| {
            let (data_type, position) = cursor.data_type()?;
            Ok(super::command::TypeName { data_type, position })
        })?
    } else {
        Vec::new()
    };
    // Right after the word: a hint may stand before the statement.
    let offset = cursor.offset() + "as".len();
    cursor.expect("as")?;
    // Its syntax is checked here; its meaning when it is planned by itself.
    drop(cursor.statement()?);
    Ok(Kind::Prepare { name, types, offset })
}

const VACUUM_OPTIONS: &[&str] = &[
    "full",
    "freeze",
    "verbose",
    "analyze",
    "analyse",
    "disable_page_skipping",
    "skip_locked",
    "index_cleanup",
    "process_toast",
    "truncate",
    "parallel",
];

fn maintenance(
    cursor: &mut Cursor<'_>,
    tag: &'static str,
    options: &[&str],
    words: &[&'static str],
) -> Result<Kind, WireError> {
    if cursor.is_symbol(&Token::LParen) {
        cursor.list(|cursor| {
            let position = cursor.position();
            let option = cursor.label()?;
            if !options.contains(&option.value.as_str()) {
                let message = format!("unrecognized {tag} option \"{}\"", option.value);
                let error = WireError::new(SqlState::SYNTAX_ERROR, message);
                return Err(match position {
                    Some(position) => error.at(position),
                    None => error,
                });
            }
            if !cursor.is_symbol(&Token::Comma) && !cursor.is_symbol(&Token::RParen) {
                let value = cursor.value()?;
                let boolean = ["true", "false", "on", "off", "1", "0"].contains(&value.as_str());
                let valid = match option.value.as_str() {
                    "parallel" => value.parse::<u16>().is_ok_and(|workers| workers <= 1024),
                    "index_cleanup" => boolean || value == "auto",
                    _ => boolean,
                };
                if !valid {
                    let message = format!("{} requires a Boolean value", option.value);
                    return Err(WireError::new(SqlState::SYNTAX_ERROR, message));
                }
            }
            Ok(())
        })?;
    } else {
        while cursor.accept_one(words).is_some() {}
    }
    let tables = if cursor.at_end() {
        Vec::new()
    } else {
        cursor.commas(|cursor| {
            let table = cursor.qualified()?;
            let columns =
                if cursor.is_symbol(&Token::LParen) { cursor.list(Cursor::name)? } else { Vec::new() };
            Ok((table, columns))
        })?
    };
    Ok(Kind::Maintenance { tag, tables })
}

fn explain(cursor: &mut Cursor<'_>) -> Result<Parsed, WireError> {
    cursor.expect("explain")?;
    let mut analyze = false;
    let options = cursor.is_symbol(&Token::LParen) && cursor.is_nth_option(1);
    if options {
        cursor.list(|cursor| {
            let position = cursor.position();
            let option = cursor.label()?.value;
            let value = if cursor.is_symbol(&Token::Comma) || cursor.is_symbol(&Token::RParen) {
                "on".to_owned()
            } else {
                cursor.value()?
            };
            let at = |error: WireError| match position {
                Some(position) => error.at(position),
                None => error,
            };
            if option == "format" {
                return match value.as_str() {
                    "text" => Ok(()),
                    "xml" | "json" | "yaml" => {
                        Err(at(refused("EXPLAIN in this format", Some("Use FORMAT TEXT."))))
                    }
                    _ => Err(at(WireError::new(
                        SqlState::INVALID_PARAMETER_VALUE,
                        format!("unrecognized value for EXPLAIN option \"format\": \"{value}\""),
                    ))),
                };
            }
            let on = match value.as_str() {
                "on" | "true" | "1" => true,
                "off" | "false" | "0" => false,
                _ => {
                    let message = format!("{option} requires a Boolean value");
                    return Err(at(WireError::new(SqlState::SYNTAX_ERROR, message)));
                }
            };
            match EXPLAIN_OPTIONS.iter().find(|(known, _)| *known == option) {
                None => {
                    let message = format!("unrecognized EXPLAIN option \"{option}\"");
                    Err(at(WireError::new(SqlState::SYNTAX_ERROR, message)))
                }
                Some((_, harmless)) if !harmless && on => {
                    Err(at(refused(&format!("EXPLAIN ({})", option.to_uppercase()), None)))
                }
                Some(_) => {
                    if option == "analyze" || option == "analyse" {
                        analyze = on;
                    }
                    Ok(())
                }
            }
        })?;
    } else {
        analyze = cursor.accept("analyze") || cursor.accept("analyse");
        cursor.accept("verbose");
    }
    Ok(Parsed::Explain { analyze, statement: cursor.statement()? })
}

/// EXPLAIN's options, and whether they may be on. Costs, timing and the summary are shown where there are any.
const EXPLAIN_OPTIONS: &[(&str, bool)] = &[
    ("analyze", true),
    ("analyse", true),
    ("verbose", true),
    ("costs", true),
    ("timing", true),
    ("summary", true),
    ("format", true),
    ("buffers", false),
    ("settings", false),
    ("wal", false),
];

impl RelationKind {
    /// By the word of DROP and ALTER.
    pub(super) fn of(word: &str) -> Option<RelationKind> {
        match word {
            "table" => Some(RelationKind::Table),
            "index" => Some(RelationKind::Index),
            "sequence" => Some(RelationKind::Sequence),
            _ => None,
        }
    }
}
