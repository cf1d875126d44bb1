//! Which words are keywords.
//!
//! sqlparser knows the keywords of a dozen dialects (`SELECT TOP 5`, `QUALIFY`, `UPDATE OR IGNORE`). It is shown those
//! of PostgreSQL's queries alone: every other word reaches it as a plain identifier, so no clause that PostgreSQL
//! lacks can be read. The categories are those of `pg_get_keywords()` in PostgreSQL 15.

use sqlparser::keywords::{ALL_KEYWORDS, ALL_KEYWORDS_INDEX, Keyword};

/// What a word can stand for when it isn't quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Category {
    /// Anything: no keyword, or one that is never in the way.
    Free,
    /// A column, but no function or type (where the grammar hasn't a use of its own for that).
    Column,
    /// A function or type, but no column.
    Function,
    /// Nothing but itself.
    Reserved,
}

/// Reserved words.
const RESERVED: &str = " all analyse analyze and any array as asc asymmetric both case cast check collate column \
    constraint create current_catalog current_date current_role current_time current_timestamp current_user default \
    deferrable desc distinct do else end except false fetch for foreign from grant group having in initially \
    intersect into lateral leading limit localtime localtimestamp not null offset on only or order placing primary \
    references returning select session_user some symmetric table then to trailing true union unique user using \
    variadic when where window with ";

/// Words that can name functions and types alone.
const FUNCTION: &str = " authorization binary collation concurrently cross current_schema freeze full ilike inner is \
    isnull join left like natural notnull outer overlaps right similar tablesample verbose ";

/// Words that can't name functions and types.
const COLUMN: &str = " between bigint bit boolean char character coalesce dec decimal exists extract float greatest \
    grouping inout int integer interval least national nchar none normalize nullif numeric out overlay position \
    precision real row setof smallint substring time timestamp treat trim values varchar xmlattributes xmlconcat \
    xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable ";

/// Words that need AS before them when they name a column of a result.
const NEEDS_AS: &str = " array as char character create day except fetch filter for from grant group having hour \
    intersect into isnull limit minute month notnull offset on order over overlaps precision returning second to \
    union varying where window with within without year ";

/// Words of PostgreSQL's queries, changes of rows, expressions and types that sqlparser has as keywords.
const QUERY: &str = " all and any array as asc asymmetric at between bigint bit bool boolean both by bytea case cast \
    char character coalesce collate conflict constraint create cross cube current current_catalog current_date \
    current_role current_time current_timestamp current_user date day dec decimal default delete desc distinct do \
    double else end escape except exclude exists extract false fetch filter first float float4 float8 following for \
    from full grant group grouping groups having hour ilike in inner insert int int2 int4 int8 integer intersect \
    interval into is join json jsonb key last lateral leading left like limit local localtime localtimestamp \
    materialized minute month natural next no not nothing notnull nowait null nulls numeric of offset on only \
    operator or order ordinality outer over overlaps overlay partition placing position preceding \
    precision range real recursive regclass returning right rollup row rows second select session_user set sets \
    share similar skip locked smallint some substring symmetric system table tablesample text then ties time \
    timestamp timestamptz timetz to trailing trim true unbounded union unknown update user using uuid value values \
    varchar varying when where window with within without year zone epoch dow doy isodow isoyear week quarter \
    century decade millennium milliseconds microseconds timezone timezone_hour timezone_minute julian ";

fn has(list: &str, word: &str) -> bool {
    list.match_indices(word).any(|(at, _)| {
        list.as_bytes()[at.saturating_sub(1)] == b' ' && list.as_bytes().get(at + word.len()) == Some(&b' ')
    })
}

/// What a folded, unquoted word can stand for.
pub(crate) fn category(word: &str) -> Category {
    if has(RESERVED, word) {
        Category::Reserved
    } else if has(FUNCTION, word) {
        Category::Function
    } else if has(COLUMN, word) {
        Category::Column
    } else {
        Category::Free
    }
}

/// The keyword that sqlparser is shown for a folded word.
pub(super) fn keyword(word: &str) -> Keyword {
    if !has(QUERY, word) {
        return Keyword::NoKeyword;
    }
    let upper = word.to_ascii_uppercase();
    ALL_KEYWORDS.binary_search(&upper.as_str()).map_or(Keyword::NoKeyword, |at| ALL_KEYWORDS_INDEX[at])
}

/// The folded word of a keyword; `None` for what isn't one.
fn word(keyword: Keyword) -> Option<String> {
    let at = ALL_KEYWORDS_INDEX.iter().position(|other| *other == keyword)?;
    Some(ALL_KEYWORDS[at].to_ascii_lowercase())
}

/// Whether a keyword can name a column of a result without AS.
pub(super) fn is_bare_label(keyword: Keyword) -> bool {
    word(keyword).is_none_or(|word| !has(NEEDS_AS, &word))
}

/// Whether a keyword can name a table in FROM without AS.
pub(super) fn is_table_alias(keyword: Keyword) -> bool {
    // SET and VALUES could by PostgreSQL's categories, were it not for UPDATE and INSERT.
    !matches!(keyword, Keyword::SET | Keyword::VALUES)
        && word(keyword).is_none_or(|word| matches!(category(&word), Category::Free | Category::Column))
}

/// Whether a word of these bytes can make the tree one level deeper without a parenthesis.
pub(super) fn chains(word: &[u8]) -> bool {
    let is = |other: &str| word.eq_ignore_ascii_case(other.as_bytes());
    match word.len() {
        2 => is("or") || is("in") || is("is") || is("at"),
        3 => is("and") || is("not"),
        4 => is("case") || is("like") || is("join"),
        5 => is("ilike") || is("union"),
        6 => is("except") || is("isnull"),
        7 => is("between") || is("similar") || is("collate") || is("notnull"),
        8 => is("operator"),
        9 => is("intersect"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_word_is_one_of_sqlparsers() {
        for word in QUERY.split_whitespace() {
            assert_ne!(keyword(word), Keyword::NoKeyword, "{word}");
        }
    }

    #[test]
    fn other_dialects_have_no_say() {
        for word in
            ["top", "qualify", "pivot", "sample", "ignore", "overwrite", "prewhere", "exclud", "convert"]
        {
            assert_eq!(keyword(word), Keyword::NoKeyword, "{word}");
            assert_eq!(category(word), Category::Free);
        }
    }

    #[test]
    fn categories() {
        assert_eq!(category("select"), Category::Reserved);
        assert_eq!(category("left"), Category::Function);
        assert_eq!(category("values"), Category::Column);
        assert_eq!(category("name"), Category::Free);
        assert!(!is_bare_label(Keyword::YEAR) && is_bare_label(Keyword::DATE));
        assert!(!is_table_alias(Keyword::LEFT) && is_table_alias(Keyword::DATE));
    }
}
