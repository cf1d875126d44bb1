//! What sqlparser reads otherwise than PostgreSQL, mended in the tokens before it sees them.
//!
//! Some of PostgreSQL's clauses it lacks: those are written as others that mean the same, or refused by name. Some it
//! takes that PostgreSQL doesn't have: those are syntax errors here.

use super::{Text, syntax_error};
use proto::WireError;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan};

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
    use Keyword::{
        ALL, ASYMMETRIC, BETWEEN, BOTH, BY, FOR, FROM, GROUP, KEY, LEADING, NO, SHARE, TRAILING, TRIM, UPDATE,
    };
    let mut extra = Vec::new();
    for at in 0..tokens.len() {
        let rest = &tokens[at..];
        if are(rest, &[FOR, NO, KEY, UPDATE]) {
            // The next stronger lock.
            extra.extend([at + 1, at + 2]);
        } else if are(rest, &[FOR, KEY, SHARE]) {
            extra.push(at + 1);
        } else if are(rest, &[GROUP, BY, ALL]) {
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
