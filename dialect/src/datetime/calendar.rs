//! The proleptic Gregorian calendar.
//!
//! In come days since 2000-01-01 and years, months and days; out come the same. Years are astronomical: 0 is 1 BC.

/// Microseconds of a day.
pub(super) const DAY_MICROSECONDS: i64 = 86_400_000_000;
/// 4714-11-24 BC, where julian days begin.
pub(super) const FIRST_DATE: i32 = -2_451_545;
/// 5874897-12-31.
pub(super) const LAST_DATE: i32 = 2_147_483_493 - 2_451_545;
/// 4714-11-24 00:00 BC.
const FIRST_TIMESTAMP: i64 = FIRST_DATE as i64 * DAY_MICROSECONDS;
/// 294277-01-01 00:00, the first moment that isn't one.
const END_TIMESTAMP: i64 = 9_223_371_331_200_000_000;

/// Whether a finite date is within PostgreSQL's bounds.
pub(super) fn is_date(date: i64) -> bool {
    (i64::from(FIRST_DATE)..=i64::from(LAST_DATE)).contains(&date)
}

/// Whether a finite timestamp is within PostgreSQL's bounds.
pub(super) fn is_timestamp(timestamp: i64) -> bool {
    (FIRST_TIMESTAMP..END_TIMESTAMP).contains(&timestamp)
}

/// Days since 2000-01-01 of a year, month (1 to 12) and day, which may lie outside of the month.
pub(super) fn days_from_date(year: i32, month: u8, day: i32) -> i64 {
    // Years begin in March, so that the leap day is a year's last one; eras of 400 years are all equal.
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_of_year = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * month_of_year + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    // 2000-03-01 begins an era.
    era * 146_097 + day_of_era - 5 * 146_097 + 60
}

/// Year, month and day of days since 2000-01-01.
pub(super) fn date_from_days(days: i32) -> (i32, u8, u8) {
    let days = i64::from(days) - 60;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_of_year = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_of_year + 2) / 5 + 1) as u8;
    let month = (if month_of_year < 10 { month_of_year + 3 } else { month_of_year - 9 }) as u8;
    let year = year_of_era + (era + 5) * 400 + i64::from(month <= 2);
    (year as i32, month, day)
}

fn is_leap(year: i32) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// How many days a month has.
pub(super) fn days_in_month(year: i32, month: u8) -> u8 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// 0 is Sunday.
pub(super) fn weekday(days: i32) -> i32 {
    // 2000-01-01 was a Saturday.
    (days.rem_euclid(7) + 6) % 7
}

/// The day on which the ISO week of a day begins: its Monday.
pub(super) fn week_start(days: i32) -> i32 {
    days - (weekday(days) + 6) % 7
}

/// ISO 8601's year and week of a day.
pub(super) fn iso_week(days: i32) -> (i32, i32) {
    // A week belongs to the year that its Thursday is in.
    let thursday = week_start(days) + 3;
    let (year, _, _) = date_from_days(thursday);
    let first = days_from_date(year, 1, 1) as i32;
    (year, (thursday - first) / 7 + 1)
}
