//! Which words are keywords.

use sqlparser::keywords::{ALL_KEYWORDS, ALL_KEYWORDS_INDEX, Keyword};

/// sqlparser's keyword of a folded word.
pub(super) fn keyword(word: &str) -> Keyword {
    let upper = word.to_ascii_uppercase();
    ALL_KEYWORDS
        .binary_search(&upper.as_str())
        .map_or(Keyword::NoKeyword, |at| ALL_KEYWORDS_INDEX[at])
}

/// Whether a word of this length and these bytes can make the tree one level deeper without a parenthesis.
pub(super) fn chains(word: &[u8]) -> bool {
    let is = |other: &str| word.eq_ignore_ascii_case(other.as_bytes());
    match word.len() {
        2 => is("or") || is("in") || is("is") || is("at"),
        3 => is("and") || is("not"),
        4 => is("case") || is("like") || is("join"),
        5 => is("ilike") || is("union"),
        6 => is("except") || is("isnull"),
        7 => {
            is("between")
                || is("similar")
                || is("collate")
                || is("notnull")
                || is("operator")
                || is("natural")
        }
        8 => is("operator"),
        9 => is("intersect"),
        _ => false,
    }
}
