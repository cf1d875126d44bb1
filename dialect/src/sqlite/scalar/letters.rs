//! Letters and their case as PostgreSQL's C.UTF-8 has them: glibc's `towupper`, `towlower` and `iswalnum`, one
//! character to one. Rust's tables are newer and map some characters to several; where they differ, glibc wins.

use super::alphabetic::ALPHABETIC;

/// Characters whose case glibc 2.36 (Unicode 14) doesn't know yet, as ranges.
const CASELESS: &[(u32, u32)] = &[
    (0x1c89, 0x1c8a),
    (0xa7cb, 0xa7cf),
    (0xa7d2, 0xa7d5),
    (0xa7da, 0xa7dc),
    (0x10d50, 0x10d85),
    (0x16ea0, 0x16ed3),
];

/// `towupper`.
pub(super) fn upper(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_uppercase();
    }
    let code = u32::from(c);
    match code {
        // The letters with iota below have a title-case form each, which Rust spells in two letters.
        0x1f80..=0x1f87 | 0x1f90..=0x1f97 | 0x1fa0..=0x1fa7 => char::from_u32(code + 8).unwrap_or(c),
        0x1fb3 | 0x1fc3 | 0x1ff3 => char::from_u32(code + 9).unwrap_or(c),
        0x19b | 0x264 => c,
        _ if caseless(code) => c,
        _ => only(c.to_uppercase()).unwrap_or(c),
    }
}

/// `towlower`.
pub(super) fn lower(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_lowercase();
    }
    match u32::from(c) {
        0x130 => 'i',
        code if caseless(code) => c,
        _ => only(c.to_lowercase()).unwrap_or(c),
    }
}

/// `iswalpha`.
pub(super) fn is_alphabetic(c: char) -> bool {
    let code = u32::from(c);
    let after = ALPHABETIC.partition_point(|(first, _)| *first <= code);
    after > 0 && code <= ALPHABETIC[after - 1].1
}

/// `iswalnum`.
pub(super) fn is_alphanumeric(c: char) -> bool {
    c.is_ascii_digit() || is_alphabetic(c)
}

fn caseless(code: u32) -> bool {
    CASELESS.iter().any(|(first, last)| (*first..=*last).contains(&code))
}

fn only(mut letters: impl Iterator<Item = char>) -> Option<char> {
    let first = letters.next()?;
    letters.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_is_glibcs() {
        let upper: String = "straße ŉ ǆ ᾳ ɤ µ ı ÿ".chars().map(upper).collect();
        assert_eq!(upper, "STRAßE ŉ Ǆ ᾼ ɤ Μ I Ÿ");
        let lower: String = "İ Ǆ ẞ Ω ᾼ".chars().map(lower).collect();
        assert_eq!(lower, "i ǆ ß ω ᾳ");
    }

    #[test]
    fn letters_are_glibcs() {
        assert!(is_alphabetic('ß') && is_alphabetic('٣') && is_alphanumeric('7'));
        assert!(!is_alphabetic('7') && !is_alphanumeric('_') && !is_alphanumeric('€'));
    }
}
