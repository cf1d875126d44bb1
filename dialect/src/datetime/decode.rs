//! Free-form dates and times, field by field.
//!
//! In comes text, out come the parts of a moment. This follows PostgreSQL's `ParseDateTime` and `DecodeDateTime`
//! (datetime.c) with DateStyle MDY: the text is cut into fields by their first characters, and each field takes the
//! meaning that those before it left. Which texts are accepted, and as what, is what clients rely on, quirks
//! included.

use super::calendar;
use super::{TimeZone, abbreviation};

/// What a text says.
pub(super) enum Decoded {
    Infinity,
    NegativeInfinity,
    Epoch,
    /// `now`, `today` and kin.
    Clock(String),
    Moment(Moment),
}

/// A day that exists, a time of it, and where.
pub(super) struct Moment {
    pub year: i32,
    pub month: u8,
    pub day: u8,
    /// Microseconds since midnight; a day or more is possible.
    pub time: i64,
    pub zone: Option<Zone>,
}

pub(super) enum Zone {
    /// Seconds east of UTC.
    Offset(i32),
    Named(TimeZone),
}

/// What is wrong with a text.
pub(super) enum Fault {
    Format,
    Field,
    /// Month or day is out of range; another DateStyle might read it.
    MonthOrDay,
    Displacement,
    UnknownZone(String),
}

const MAX_FIELDS: usize = 25;
const MAX_LENGTH: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Number,
    Date,
    Time,
    Zone,
    Word,
}

/// `ParseDateTime`: the fields and what they look like.
fn split(text: &str) -> Result<Vec<(Kind, String)>, Fault> {
    let text = text.as_bytes();
    let mut fields = Vec::new();
    let mut at = 0;
    let peek = |at: usize| text.get(at).copied().unwrap_or(0);
    let run = |at: &mut usize, accept: &dyn Fn(u8) -> bool, field: &mut String| {
        while *at < text.len() && accept(text[*at]) {
            field.push(text[*at].to_ascii_lowercase().into());
            *at += 1;
        }
    };
    let digit = |byte: u8| byte.is_ascii_digit();
    while at < text.len() {
        let first = text[at];
        if matches!(first, b' ' | b'\t'..=b'\r') {
            at += 1;
            continue;
        }
        let mut field = String::new();
        let kind = if first.is_ascii_digit() {
            run(&mut at, &digit, &mut field);
            match peek(at) {
                b':' => {
                    run(&mut at, &|byte| digit(byte) || matches!(byte, b':' | b'.'), &mut field);
                    Kind::Time
                }
                delimiter @ (b'-' | b'/' | b'.') => {
                    field.push(delimiter.into());
                    at += 1;
                    if peek(at).is_ascii_digit() {
                        run(&mut at, &digit, &mut field);
                        if peek(at) == delimiter {
                            run(&mut at, &|byte| digit(byte) || byte == delimiter, &mut field);
                            Kind::Date
                        } else if delimiter == b'.' {
                            Kind::Number
                        } else {
                            Kind::Date
                        }
                    } else {
                        let part = |byte: u8| byte.is_ascii_alphanumeric() || byte == delimiter;
                        run(&mut at, &part, &mut field);
                        Kind::Date
                    }
                }
                _ => Kind::Number,
            }
        } else if first == b'.' {
            run(&mut at, &|byte| byte == b'.' || digit(byte), &mut field);
            Kind::Number
        } else if first.is_ascii_alphabetic() {
            run(&mut at, &|byte| byte.is_ascii_alphabetic(), &mut field);
            let next = peek(at);
            let date = matches!(next, b'-' | b'/' | b'.')
                || ((next == b'+' || next.is_ascii_digit()) && Word::parse(&field).is_none());
            if date {
                let part = |byte: u8| {
                    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'/' | b'_' | b'.' | b':')
                };
                run(&mut at, &part, &mut field);
                Kind::Date
            } else {
                Kind::Word
            }
        } else if matches!(first, b'+' | b'-') {
            field.push(first.into());
            at += 1;
            while matches!(peek(at), b' ' | b'\t'..=b'\r') {
                at += 1;
            }
            if peek(at).is_ascii_digit() {
                run(&mut at, &|byte| digit(byte) || matches!(byte, b':' | b'.' | b'-'), &mut field);
                Kind::Zone
            } else if peek(at).is_ascii_alphabetic() {
                run(&mut at, &|byte| byte.is_ascii_alphabetic(), &mut field);
                Kind::Word
            } else {
                return Err(Fault::Format);
            }
        } else if first.is_ascii_punctuation() {
            at += 1;
            continue;
        } else {
            return Err(Fault::Format);
        };
        fields.push((kind, field));
        if fields.len() > MAX_FIELDS {
            return Err(Fault::Format);
        }
    }
    Ok(fields)
}

/// A word that PostgreSQL's token table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Month(u8),
    Weekday,
    Am,
    Pm,
    Ad,
    Bc,
    /// `t`: a time follows.
    TimeFollows,
    /// `j`, `jd`, `julian`: a julian day follows.
    JulianFollows,
    /// `y`, `mon`, `d`, `h`, `mm`, `s`: what PostgreSQL reads as a label of the next number. Not read here.
    Label,
    Ignored,
    Infinity,
    NegativeInfinity,
    Epoch,
    /// `now`, `today`, `tomorrow`, `yesterday`.
    Clock,
    /// `allballs`: midnight UTC.
    Midnight,
    /// `dst`: summer time of the zone before it. Not read here.
    Summer,
}

impl Word {
    fn parse(word: &str) -> Option<Self> {
        // The table's words have ten characters at most, and only those are compared.
        Some(match word.get(..10).unwrap_or(word) {
            "jan" | "january" => Word::Month(1),
            "feb" | "february" => Word::Month(2),
            "mar" | "march" => Word::Month(3),
            "apr" | "april" => Word::Month(4),
            "may" => Word::Month(5),
            "jun" | "june" => Word::Month(6),
            "jul" | "july" => Word::Month(7),
            "aug" | "august" => Word::Month(8),
            "sep" | "sept" | "september" => Word::Month(9),
            "oct" | "october" => Word::Month(10),
            "nov" | "november" => Word::Month(11),
            "dec" | "december" => Word::Month(12),
            "sun" | "sunday" | "mon" | "monday" | "tue" | "tues" | "tuesday" | "wed" | "weds"
            | "wednesday" | "thu" | "thur" | "thurs" | "thursday" | "fri" | "friday" | "sat" | "saturday" => {
                Word::Weekday
            }
            "am" => Word::Am,
            "pm" => Word::Pm,
            "ad" => Word::Ad,
            "bc" => Word::Bc,
            "t" => Word::TimeFollows,
            "j" | "jd" | "julian" => Word::JulianFollows,
            "d" | "h" | "m" | "mm" | "s" | "y" => Word::Label,
            "at" | "on" => Word::Ignored,
            "infinity" => Word::Infinity,
            "-infinity" => Word::NegativeInfinity,
            "epoch" => Word::Epoch,
            "now" | "today" | "tomorrow" | "yesterday" => Word::Clock,
            "allballs" => Word::Midnight,
            "dst" => Word::Summer,
            _ => return None,
        })
    }
}

/// Which parts are known.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Known(u8);

impl Known {
    const YEAR: Known = Known(1);
    const MONTH: Known = Known(2);
    const DAY: Known = Known(4);
    const TIME: Known = Known(8);
    const ZONE: Known = Known(16);
    const DAY_OF_YEAR: Known = Known(32);
    const WEEKDAY: Known = Known(64);
    const DATE: Known = Known(7);

    fn has(self, other: Known) -> bool {
        self.0 & other.0 == other.0
    }

    fn overlaps(self, other: Known) -> bool {
        self.0 & other.0 != 0
    }

    fn with(self, other: Known) -> Known {
        Known(self.0 | other.0)
    }

    /// The date's parts among them.
    fn date(self) -> Known {
        Known(self.0 & Known::DATE.0)
    }
}

/// What a field before asks of the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Nothing,
    Time,
    Julian,
}

/// What is known so far.
struct Decoder {
    known: Known,
    year: i32,
    month: i32,
    day: i32,
    day_of_year: i32,
    hour: i32,
    minute: i32,
    second: i32,
    microsecond: i64,
    zone: Option<Zone>,
    afternoon: Option<bool>,
    before_christ: bool,
    two_digit_year: bool,
    month_in_words: bool,
    julian: bool,
    awaited: Awaited,
}

/// Reads a text that may be a date, a time of it, a zone.
pub(super) fn decode(text: &str) -> Result<Decoded, Fault> {
    if text.len() > MAX_LENGTH {
        return Err(Fault::Format);
    }
    let fields = split(text)?;
    let mut decoder = Decoder {
        known: Known::default(),
        year: 0,
        month: 0,
        day: 0,
        day_of_year: 0,
        hour: 0,
        minute: 0,
        second: 0,
        microsecond: 0,
        zone: None,
        afternoon: None,
        before_christ: false,
        two_digit_year: false,
        month_in_words: false,
        julian: false,
        awaited: Awaited::Nothing,
    };
    // A special value is one only if nothing else says when.
    let mut special = None;
    for (kind, field) in &fields {
        let found = match kind {
            Kind::Date => decoder.date_field(field)?,
            Kind::Time => decoder.time_field(field)?,
            Kind::Zone => decoder.zone_field(field)?,
            Kind::Number => decoder.number_field(field)?,
            Kind::Word => match decoder.word_field(field)? {
                Found::Nothing => continue,
                Found::Known(known) => known,
                Found::Special(word) => {
                    if special.replace(word).is_some() {
                        return Err(Fault::Format);
                    }
                    continue;
                }
            },
        };
        if decoder.known.overlaps(found) {
            return Err(Fault::Format);
        }
        decoder.known = decoder.known.with(found);
    }
    if decoder.awaited != Awaited::Nothing {
        return Err(Fault::Format);
    }
    let zone = decoder.zone.take();
    // What stands beside a special value is checked, and then means nothing.
    let date = decoder.finish()?;
    Ok(match special {
        Some(Word::Clock) => Decoded::Clock(text.trim().to_owned()),
        Some(Word::Infinity) => Decoded::Infinity,
        Some(Word::NegativeInfinity) => Decoded::NegativeInfinity,
        Some(_) => Decoded::Epoch,
        None => {
            let Finished { year, month, day, time } = date.ok_or(Fault::Format)?;
            Decoded::Moment(Moment { year, month, day, time, zone })
        }
    })
}

/// A date that exists, and a time.
struct Finished {
    year: i32,
    month: u8,
    day: u8,
    time: i64,
}

enum Found {
    Nothing,
    Known(Known),
    Special(Word),
}

/// C's `strtol`: leading digits, 0 for none, and the rest. `None` if they don't fit an int.
fn leading_integer(text: &str) -> Option<(i32, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let value = if end == 0 { 0 } else { text[..end].parse().ok()? };
    Some((value, &text[end..]))
}

/// Microseconds of a fraction that begins with its point.
fn fraction(text: &str) -> Result<i64, Fault> {
    if text == "." {
        return Ok(0);
    }
    if !text[1..].bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Fault::Format);
    }
    let value: f64 = text.parse().map_err(|_| Fault::Format)?;
    Ok((value * 1e6).round_ties_even() as i64)
}

impl Decoder {
    fn date_field(&mut self, field: &str) -> Result<Known, Fault> {
        if self.awaited == Awaited::Julian {
            return self.julian_day(field);
        }
        let placed = self.known.has(Known::MONTH.with(Known::DAY));
        if self.awaited == Awaited::Nothing && !placed {
            return self.date(field);
        }
        // The date is known, so this is a zone's name with punctuation in it, or a time run together with an offset.
        if self.awaited == Awaited::Nothing && !field.starts_with(|first: char| first.is_ascii_digit()) {
            let zone = TimeZone::named(field).ok_or_else(|| Fault::UnknownZone(field.to_owned()))?;
            self.zone = Some(Zone::Named(zone));
            return Ok(Known::ZONE);
        }
        self.awaited = Awaited::Nothing;
        if self.known.has(Known::TIME) {
            return Err(Fault::Format);
        }
        let (time, offset) = field.split_at(field.find('-').ok_or(Fault::Format)?);
        self.zone = Some(Zone::Offset(displacement(offset)?));
        Ok(self.run_together(time, self.known)?.with(Known::ZONE))
    }

    /// `DecodeDate`: parts with separators between.
    fn date(&mut self, field: &str) -> Result<Known, Fault> {
        let mut parts = Vec::new();
        let bytes = field.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            while at < bytes.len() && !bytes[at].is_ascii_alphanumeric() {
                at += 1;
            }
            if at == bytes.len() {
                return Err(Fault::Format);
            }
            let start = at;
            let numeric = bytes[at].is_ascii_digit();
            while at < bytes.len()
                && bytes[at].is_ascii_alphanumeric()
                && bytes[at].is_ascii_digit() == numeric
            {
                at += 1;
            }
            parts.push(&field[start..at]);
            // One character after a part is skipped, whatever it is.
            at += 1;
        }
        let mut known = self.known;
        let mut month_in_words = false;
        for part in parts.iter().filter(|part| part.starts_with(|first: char| first.is_ascii_alphabetic())) {
            match Word::parse(part) {
                Some(Word::Ignored) => {}
                Some(Word::Month(month)) if !known.overlaps(Known::MONTH) => {
                    self.month = month.into();
                    month_in_words = true;
                    known = known.with(Known::MONTH);
                }
                _ => return Err(Fault::Format),
            }
        }
        for part in parts.iter().filter(|part| part.starts_with(|first: char| first.is_ascii_digit())) {
            let found = self.number(part, month_in_words, known)?;
            if known.overlaps(found) {
                return Err(Fault::Format);
            }
            known = known.with(found);
        }
        if known.0 & !(Known::DAY_OF_YEAR.0 | Known::ZONE.0) != Known::DATE.0 {
            return Err(Fault::Format);
        }
        Ok(Known(known.0 & !self.known.0))
    }

    fn time_field(&mut self, field: &str) -> Result<Known, Fault> {
        if !matches!(self.awaited, Awaited::Nothing | Awaited::Time) {
            return Err(Fault::Format);
        }
        self.awaited = Awaited::Nothing;
        let (hour, rest) = leading_integer(field).ok_or(Fault::Field)?;
        let rest = rest.strip_prefix(':').ok_or(Fault::Format)?;
        let (minute, rest) = leading_integer(rest).ok_or(Fault::Field)?;
        (self.hour, self.minute, self.second, self.microsecond) = (hour, minute, 0, 0);
        if rest.starts_with('.') {
            // Minutes and seconds.
            (self.hour, self.minute, self.second) = (0, hour, minute);
            self.microsecond = fraction(rest)?;
        } else if let Some(rest) = rest.strip_prefix(':') {
            let (second, rest) = leading_integer(rest).ok_or(Fault::Field)?;
            self.second = second;
            if rest.starts_with('.') {
                self.microsecond = fraction(rest)?;
            } else if !rest.is_empty() {
                return Err(Fault::Format);
            }
        } else if !rest.is_empty() {
            return Err(Fault::Format);
        }
        let beyond = self.minute > 59 || self.second > 60 || self.hour > 24;
        if beyond || self.time() > calendar::DAY_MICROSECONDS {
            return Err(Fault::Field);
        }
        Ok(Known::TIME)
    }

    fn time(&self) -> i64 {
        let minutes = i64::from(self.hour) * 60 + i64::from(self.minute);
        (minutes * 60 + i64::from(self.second)) * 1_000_000 + self.microsecond
    }

    fn zone_field(&mut self, field: &str) -> Result<Known, Fault> {
        self.zone = Some(Zone::Offset(displacement(field)?));
        Ok(Known::ZONE)
    }

    fn number_field(&mut self, field: &str) -> Result<Known, Fault> {
        match std::mem::replace(&mut self.awaited, Awaited::Nothing) {
            Awaited::Julian => return self.julian_day(field),
            Awaited::Time => {
                let found = self.run_together(field, self.known.with(Known::DATE))?;
                return if found == Known::TIME { Ok(found) } else { Err(Fault::Format) };
            }
            Awaited::Nothing => {}
        }
        let point = field.find('.');
        if point.is_some() && !self.known.overlaps(Known::DATE) {
            return self.date(field);
        }
        if point.is_some_and(|point| point > 2) {
            return self.run_together(field, self.known);
        }
        if field.len() >= 6 && !(self.known.overlaps(Known::DATE) && self.known.has(Known::TIME)) {
            return self.run_together(field, self.known);
        }
        self.number(field, self.month_in_words, self.known)
    }

    /// A julian day, maybe with a fraction that is the time.
    fn julian_day(&mut self, field: &str) -> Result<Known, Fault> {
        self.awaited = Awaited::Nothing;
        let (day, rest) = leading_integer(field).ok_or(Fault::Field)?;
        let date = i64::from(day) - 2_451_545;
        if !calendar::is_date(date) {
            return Err(Fault::Field);
        }
        let (year, month, day) = calendar::date_from_days(date as i32);
        (self.year, self.month, self.day) = (year, month.into(), day.into());
        self.julian = true;
        if rest.is_empty() {
            return Ok(Known::DATE);
        }
        if !rest.starts_with('.') || !rest[1..].bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Fault::Format);
        }
        let part: f64 = if rest == "." { 0.0 } else { rest.parse().map_err(|_| Fault::Format)? };
        let time = (part * calendar::DAY_MICROSECONDS as f64) as i64;
        self.microsecond = time % 1_000_000;
        let seconds = (time / 1_000_000) as i32;
        (self.hour, self.minute, self.second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        Ok(Known::DATE.with(Known::TIME))
    }

    /// `DecodeNumber`: a number that takes the next place that is free.
    fn number(&mut self, field: &str, month_in_words: bool, known: Known) -> Result<Known, Fault> {
        let (value, rest) = leading_integer(field).ok_or(Fault::Field)?;
        if rest.len() == field.len() {
            return Err(Fault::Format);
        }
        if rest.starts_with('.') {
            if field.len() - rest.len() > 2 {
                return self.run_together(field, known.with(Known::DATE));
            }
            self.microsecond = fraction(rest)?;
        } else if !rest.is_empty() {
            return Err(Fault::Format);
        }
        let date = known.date();
        if field.len() == 3 && date == Known::YEAR && (1..=366).contains(&value) {
            self.day_of_year = value;
            return Ok(Known::DAY_OF_YEAR.with(Known::MONTH).with(Known::DAY));
        }
        let long = field.len() >= 3;
        let found = match date {
            Known(0) if long => Known::YEAR,
            Known(0) => Known::MONTH,
            Known::YEAR => Known::MONTH,
            Known::MONTH if month_in_words && long => Known::YEAR,
            Known::MONTH => Known::DAY,
            Known::DAY => Known::MONTH,
            date if date == Known::YEAR.with(Known::MONTH) => {
                if month_in_words && long && self.two_digit_year {
                    // DD-MON-YYYY: what looked like the year was the day.
                    self.day = self.year;
                    self.year = value;
                    self.two_digit_year = false;
                    return Ok(Known::DAY);
                }
                Known::DAY
            }
            date if date == Known::MONTH.with(Known::DAY) => Known::YEAR,
            Known::DATE => return self.run_together(field, known),
            _ => return Err(Fault::Format),
        };
        match found {
            Known::YEAR => {
                self.year = value;
                self.two_digit_year = field.len() <= 2;
            }
            Known::MONTH => self.month = value,
            _ => self.day = value,
        }
        Ok(found)
    }

    /// `DecodeNumberField`: a date or a time without separators.
    fn run_together(&mut self, field: &str, known: Known) -> Result<Known, Fault> {
        let atoi = |part: &str| leading_integer(part).map_or(-1, |(value, _)| value);
        let mut digits = field;
        if let Some(point) = field.find('.') {
            self.microsecond = fraction(&field[point..])?;
            digits = &field[..point];
        } else if !known.has(Known::DATE) && field.len() >= 6 {
            let (rest, day) = field.split_at(field.len() - 2);
            let (year, month) = rest.split_at(rest.len() - 2);
            (self.year, self.month, self.day) = (atoi(year), atoi(month), atoi(day));
            self.two_digit_year = year.len() == 2;
            return Ok(Known::DATE);
        }
        if known.has(Known::TIME) {
            return Err(Fault::Format);
        }
        let (hour, minute, second) = match digits.len() {
            6 => (atoi(&digits[..2]), atoi(&digits[2..4]), atoi(&digits[4..])),
            4 => (atoi(&digits[..2]), atoi(&digits[2..]), 0),
            _ => return Err(Fault::Format),
        };
        (self.hour, self.minute, self.second) = (hour, minute, second);
        Ok(Known::TIME)
    }

    fn word_field(&mut self, field: &str) -> Result<Found, Fault> {
        if let Some(offset) = abbreviation::offset(field) {
            self.zone = Some(Zone::Offset(offset));
            return Ok(Found::Known(Known::ZONE));
        }
        let Some(word) = Word::parse(field) else {
            let zone = TimeZone::named(field).ok_or(Fault::Format)?;
            self.zone = Some(Zone::Named(zone));
            return Ok(Found::Known(Known::ZONE));
        };
        match word {
            Word::Ignored => return Ok(Found::Nothing),
            Word::Month(month) => {
                let first_number_was_the_day = self.known.has(Known::MONTH)
                    && !self.month_in_words
                    && !self.known.has(Known::DAY)
                    && (1..=31).contains(&self.month);
                let found = if first_number_was_the_day {
                    self.day = self.month;
                    Known::DAY
                } else {
                    Known::MONTH
                };
                self.month_in_words = true;
                self.month = month.into();
                return Ok(Found::Known(found));
            }
            Word::Weekday => return Ok(Found::Known(Known::WEEKDAY)),
            Word::Am => self.afternoon = Some(false),
            Word::Pm => self.afternoon = Some(true),
            Word::Ad => self.before_christ = false,
            Word::Bc => self.before_christ = true,
            Word::TimeFollows => {
                if !self.known.has(Known::DATE) || self.awaited != Awaited::Nothing {
                    return Err(Fault::Format);
                }
                self.awaited = Awaited::Time;
            }
            Word::JulianFollows => {
                if self.awaited != Awaited::Nothing {
                    return Err(Fault::Format);
                }
                self.awaited = Awaited::Julian;
            }
            Word::Midnight => {
                (self.hour, self.minute, self.second) = (0, 0, 0);
                self.zone = Some(Zone::Offset(0));
                return Ok(Found::Known(Known::TIME.with(Known::ZONE)));
            }
            Word::Label | Word::Summer => return Err(Fault::Format),
            Word::Infinity | Word::NegativeInfinity | Word::Epoch | Word::Clock => {
                return Ok(Found::Special(word));
            }
        }
        Ok(Found::Nothing)
    }

    /// `ValidateDate` and what follows it. `None` if parts of a date are missing.
    fn finish(mut self) -> Result<Option<Finished>, Fault> {
        if self.known.has(Known::YEAR) && !self.julian {
            if self.before_christ {
                if self.year <= 0 {
                    return Err(Fault::Field);
                }
                self.year = 1 - self.year;
            } else if self.two_digit_year {
                self.year += if self.year < 70 { 2000 } else { 1900 };
            } else if self.year <= 0 {
                return Err(Fault::Field);
            }
        }
        if self.known.has(Known::DAY_OF_YEAR) {
            let date = calendar::days_from_date(self.year, 1, 1) + i64::from(self.day_of_year) - 1;
            let date = i32::try_from(date).map_err(|_| Fault::Field)?;
            let (year, month, day) = calendar::date_from_days(date);
            (self.year, self.month, self.day) = (year, month.into(), day.into());
        }
        let month = u8::try_from(self.month).ok().filter(|month| (1..=12).contains(month));
        let day = u8::try_from(self.day).ok().filter(|day| (1..=31).contains(day));
        if (self.known.has(Known::MONTH) && month.is_none()) || (self.known.has(Known::DAY) && day.is_none())
        {
            return Err(Fault::MonthOrDay);
        }
        if let (true, Some(month), Some(day)) = (self.known.has(Known::DATE), month, day)
            && day > calendar::days_in_month(self.year, month)
        {
            return Err(Fault::Field);
        }
        if let Some(afternoon) = self.afternoon {
            if self.hour > 12 {
                return Err(Fault::Field);
            }
            self.hour = self.hour % 12 + if afternoon { 12 } else { 0 };
        }
        let (true, Some(month), Some(day)) = (self.known.has(Known::DATE), month, day) else {
            return Ok(None);
        };
        Ok(Some(Finished { year: self.year, month, day, time: self.time() }))
    }
}

/// `DecodeTimezone`: seconds east of UTC of `+hh`, `-hh:mm`, `+hhmm` or `+hh:mm:ss`.
fn displacement(text: &str) -> Result<i32, Fault> {
    let (sign, digits) = text.split_at(1);
    let (mut hours, rest) = leading_integer(digits).ok_or(Fault::Displacement)?;
    let (mut minutes, mut seconds) = (0, 0);
    let mut rest = rest;
    if let Some(after) = rest.strip_prefix(':') {
        (minutes, rest) = leading_integer(after).ok_or(Fault::Displacement)?;
        if let Some(after) = rest.strip_prefix(':') {
            (seconds, rest) = leading_integer(after).ok_or(Fault::Displacement)?;
        }
    } else if rest.is_empty() && text.len() > 3 {
        minutes = hours % 100;
        hours /= 100;
    }
    if hours > 15 || minutes > 59 || seconds > 59 {
        return Err(Fault::Displacement);
    }
    if !rest.is_empty() {
        return Err(Fault::Format);
    }
    let offset = (hours * 60 + minutes) * 60 + seconds;
    Ok(if sign == "-" { -offset } else { offset })
}
