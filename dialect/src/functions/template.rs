//! Filling in templates: `{0}`, `{k0}`, `{*}`, `{zone}`, `{order}` and `{filter}` become SQL.
//!
//! Templates are the table's own text, never a user's; arguments are put in as they are, so they must be complete
//! expressions.

use crate::key::key_sql;
use crate::types::Type;

/// What fills a template.
pub(super) struct Fill<'a, S> {
    /// The arguments.
    pub args: &'a [S],
    /// Their types, for key forms.
    pub types: &'a [Type],
    /// The session's time zone.
    pub zone: &'a str,
    /// ` ORDER BY ..` within an aggregate's parentheses.
    pub order: &'a str,
    /// ` FILTER (WHERE ..)` after them.
    pub filter: &'a str,
}

/// The template, filled in.
pub(super) fn fill<S: AsRef<str>>(template: &str, with: &Fill<'_, S>) -> String {
    let mut out =
        String::with_capacity(template.len() + with.args.iter().map(|a| a.as_ref().len()).sum::<usize>());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let (hole, after) = after.split_once('}').expect("the table's templates close their braces");
        match hole {
            "zone" => out.push_str(with.zone),
            "order" => out.push_str(with.order),
            "filter" => out.push_str(with.filter),
            "*" => {
                for (i, arg) in with.args.iter().enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    out.push_str(arg.as_ref());
                }
            }
            _ => match hole.strip_prefix('k') {
                Some(index) => {
                    let index = position(index);
                    out.push_str(&key_sql(with.types[index], with.args[index].as_ref()));
                }
                None => out.push_str(with.args[position(hole)].as_ref()),
            },
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn position(hole: &str) -> usize {
    hole.parse().expect("the table's templates number their arguments")
}
