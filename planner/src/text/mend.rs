//! What sqlparser reads otherwise than PostgreSQL, mended in the tokens before it sees them.
//!
//! Some of PostgreSQL's clauses it lacks: those are written as others that mean the same, or refused by name. Some it
//! takes that PostgreSQL doesn't have: those are syntax errors here.

use super::{Text, syntax_error};
use proto::WireError;
use sqlparser::ast;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan, Word};

fn keyword(token: &TokenWithSpan) -> Keyword {
    match &token.token {
        Token::Word(word) => word.keyword,
        _ => Keyword::NoKeyword,
    }
}

fn is_word(token: &TokenWithSpan, value: &str) -> bool {
    matches!(&token.token, Token::Word(word) if word.quote_style.is_none() && word.value == value)
}

fn are(tokens: &[TokenWithSpan], keywords: &[Keyword]) -> bool {
    tokens.len() >= keywords.len()
        && tokens.iter().zip(keywords).all(|(token, other)| keyword(token) == *other)
}

/// Writes what sqlparser lacks as what it has.
pub(super) fn mend(tokens: &mut Vec<TokenWithSpan>) {
    use Keyword::{ALL, ASYMMETRIC, BETWEEN, BOTH, BY, FOR, FROM, GROUP, LEADING, TRAILING, TRIM};
    if tokens.iter().any(|token| keyword(token) == FOR) {
        mark_locks(tokens);
    }
    let mut extra = Vec::new();
    for at in 0..tokens.len() {
        let rest = &tokens[at..];
        if are(rest, &[GROUP, BY, ALL]) {
            // It's the default; sqlparser takes it for another dialect's shorthand.
            extra.push(at + 2);
        } else if are(rest, &[BETWEEN, ASYMMETRIC]) {
            extra.push(at + 1);
        } else if are(rest, &[TRIM]) && rest.get(1).is_some_and(|token| token.token == Token::LParen) {
            match rest.get(2).map(keyword) {
                Some(FROM) => extra.push(at + 2),
                Some(LEADING | TRAILING | BOTH) if rest.get(3).map(keyword) == Some(FROM) => {
                    extra.push(at + 3)
                }
                _ => {}
            }
        }
    }
    for at in extra.into_iter().rev() {
        tokens.remove(at);
    }
}

/// sqlparser knows two of the four row locks, and one table behind OF. So every locking clause becomes `FOR UPDATE OF`
/// one name whose parts tell the whole: the lock, and each table behind an empty part, which no name can have.
/// [`lock_clause`] reads it.
fn mark_locks(tokens: &mut Vec<TokenWithSpan>) {
    use Keyword::{FOR, KEY, LOCKED, NO, OF, OVERLAY, SHARE, SKIP, SUBSTRING, UPDATE};
    const LOCKS: &[(&[Keyword], &str)] = &[
        (&[FOR, UPDATE], "UPDATE"),
        (&[FOR, NO, KEY, UPDATE], "NO KEY UPDATE"),
        (&[FOR, SHARE], "SHARE"),
        (&[FOR, KEY, SHARE], "KEY SHARE"),
    ];
    // What no clause has, in the place of a token that is to be found wrong.
    let wrong = |token: &TokenWithSpan| TokenWithSpan::new(Token::Period, token.span);
    let mut marked = Vec::with_capacity(tokens.len() + 8);
    // For each parenthesis that is open: whether FOR stands before an argument in it.
    let mut open: Vec<bool> = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token.token {
            Token::LParen => {
                let before = at.checked_sub(1).map(|before| keyword(&tokens[before]));
                open.push(matches!(before, Some(SUBSTRING | OVERLAY)));
            }
            Token::RParen => {
                open.pop();
            }
            _ => {}
        }
        let argument = open.last().copied().unwrap_or_default();
        let lock = LOCKS.iter().find(|(words, _)| !argument && are(&tokens[at..], words));
        let Some((words, name)) = lock else {
            // What begins as a lock and is none is an error where it ends to be one.
            let begun = [&[FOR, NO, KEY][..], &[FOR, NO], &[FOR, KEY]];
            let begun = begun.iter().find(|words| !argument && are(&tokens[at..], words));
            if let Some(begun) = begun {
                marked.push(token.clone());
                at += begun.len();
                marked.extend(tokens.get(at).map(wrong));
                continue;
            }
            marked.push(token.clone());
            at += 1;
            continue;
        };
        let span = token.span;
        let word = |value: &str, quote_style, keyword| {
            let value = value.to_owned();
            TokenWithSpan::new(Token::Word(Word { value, quote_style, keyword }), span)
        };
        marked.extend([word("for", None, FOR), word("update", None, UPDATE), word("of", None, OF)]);
        at += words.len();
        let mut listed = false;
        if tokens.get(at).map(keyword) == Some(OF) {
            at += 1;
            listed = true;
            if !tokens.get(at).is_some_and(|token| matches!(token.token, Token::Word(_))) {
                // Nothing that could be a name: sqlparser finds it behind OF.
                continue;
            }
        }
        marked.push(word(name, Some('"'), Keyword::NoKeyword));
        let period = || TokenWithSpan::new(Token::Period, span);
        while listed {
            marked.extend([period(), word("", Some('"'), Keyword::NoKeyword), period()]);
            // A name's parts. What is none ends the clause, and sqlparser finds it behind a period.
            while let Some(part) = tokens.get(at).filter(|token| matches!(token.token, Token::Word(_))) {
                marked.push(part.clone());
                at += 1;
                if tokens.get(at).is_none_or(|token| token.token != Token::Period) {
                    break;
                }
                marked.push(period());
                at += 1;
            }
            listed = tokens.get(at).is_some_and(|token| token.token == Token::Comma);
            at += usize::from(listed);
        }
        if tokens.get(at).map(keyword) == Some(SKIP) && tokens.get(at + 1).map(keyword) != Some(LOCKED) {
            at += 1;
            match tokens.get(at) {
                Some(next) => {
                    marked.extend([word("skip", None, SKIP), word("locked", None, LOCKED), wrong(next)])
                }
                None => marked.push(period()),
            }
        }
    }
    *tokens = marked;
}

/// A locking clause: its lock by PostgreSQL's name, and the names behind OF, each with its parts.
pub(crate) fn lock_clause(of: &ast::ObjectName) -> Option<(&str, Vec<Vec<&ast::Ident>>)> {
    let mut parts = of.0.iter().filter_map(|part| match part {
        ast::ObjectNamePart::Identifier(ident) => Some(ident),
        ast::ObjectNamePart::Function(_) => None,
    });
    let lock = parts.next()?;
    let mut tables: Vec<Vec<&ast::Ident>> = Vec::new();
    for part in parts {
        if part.value.is_empty() {
            tables.push(Vec::new());
        } else {
            tables.last_mut()?.push(part);
        }
    }
    Some((lock.value.as_str(), tables))
}

/// Takes out `OVERRIDING SYSTEM VALUE`, which sqlparser lacks: [`Text::overriding`] tells of it.
pub(super) fn drop_overriding(tokens: &mut Vec<TokenWithSpan>) {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| is_word(token, word));
    let found = (0..tokens.len()).find(|at| {
        is(*at, "overriding") && (is(at + 1, "system") || is(at + 1, "user")) && is(at + 2, "value")
    });
    if let Some(at) = found {
        tokens.drain(at..at + 3);
    }
}

/// Refuses what sqlparser would take and PostgreSQL doesn't, in a query or change of rows that begins at the first of
/// these tokens (`get` answers with the nth, and nothing past the end); and names what it would only call a syntax error.
pub(crate) fn check<'t>(
    text: &Text,
    get: impl Fn(usize) -> Option<&'t TokenWithSpan>,
) -> Result<(), WireError> {
    let wrong = |at: usize| Err(syntax_error(text, get(at).map(|token| token.span)));
    match get(0).map(keyword) {
        Some(Keyword::INSERT) => {
            if get(1).map(keyword) != Some(Keyword::INTO) {
                return wrong(1);
            }
            let mut at = 3;
            while get(at).is_some_and(|token| token.token == Token::Period) {
                at += 2;
            }
            const NEXT: &[&str] = &["as", "values", "default", "select", "table", "with", "overriding"];
            if let Some(next) = get(at)
                && next.token != Token::LParen
                && !NEXT.iter().any(|word| is_word(next, word))
            {
                return wrong(at);
            }
        }
        Some(Keyword::DELETE) if get(1).map(keyword) != Some(Keyword::FROM) => return wrong(1),
        Some(Keyword::UPDATE) if get(1).map(keyword) == Some(Keyword::OR) => return wrong(1),
        _ => {}
    }
    let modifies = matches!(get(0).map(keyword), Some(Keyword::UPDATE | Keyword::DELETE));
    let mut depth = 0u32;
    let mut locked = None;
    let mut at = 0;
    while let Some(token) = get(at) {
        let refuse = |what: &str, hint: &str| {
            let error = WireError::unsupported(what).with_hint(hint);
            Err(match text.position(token.span) {
                Some(position) => error.at(position),
                None => error,
            })
        };
        match &token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            Token::Word(word) if word.quote_style.is_none() => match word.keyword {
                Keyword::LIMIT | Keyword::ORDER if modifies && depth == 0 => return wrong(at),
                Keyword::FOR if get(at + 1).map(keyword) == Some(Keyword::UPDATE) => {
                    if get(0).map(keyword) == Some(Keyword::TABLE) {
                        return refuse("a locking clause behind TABLE", "Write SELECT * FROM the table.");
                    }
                    locked = Some(depth);
                }
                Keyword::FOR if get(at + 1).is_some_and(|next| is_word(next, "read")) => {
                    return refuse("FOR READ ONLY", "Leave it out: it says nothing.");
                }
                Keyword::FETCH if locked == Some(depth) => {
                    return refuse("FETCH behind a locking clause", "Write it before FOR, or LIMIT.");
                }
                Keyword::BETWEEN if get(at + 1).map(keyword) == Some(Keyword::SYMMETRIC) => {
                    return refuse("BETWEEN SYMMETRIC", "Write the lesser value first.");
                }
                Keyword::CONFLICT if get(at + 1).is_some_and(|next| next.token == Token::LParen) => {
                    let mut close = at + 1;
                    while get(close).is_some_and(|token| token.token != Token::RParen) {
                        close += 1;
                    }
                    let after = get(close + 1);
                    if after.map(keyword) == Some(Keyword::WHERE) {
                        return refuse(
                            "ON CONFLICT with a partial index",
                            "Leave WHERE out: no index is partial.",
                        );
                    }
                }
                _ => {}
            },
            _ => {}
        }
        at += 1;
    }
    Ok(())
}
