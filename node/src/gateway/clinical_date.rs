//! Clinical dates: what interval of time a partial ISO 8601 date covers.
//!
//! Headers hold dates as they were put. Here they become comparable: half-open intervals of microseconds since 1970,
//! in UTC. What is no date is none, never an error: it is for the caller to refuse it or to call the record undated.

use jiff::civil::{Date, DateTime, Time, date};
use jiff::{Span, ToSpan};

const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);
const SECOND_US: i64 = 1_000_000;

/// Half open, in microseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    pub begins_us: i64,
    pub ends_us: i64,
}

/// `YYYY`, `YYYY-MM`, `YYYY-MM-DD`, or that with `Thh:mm`, `:ss`, a fraction and a zone (`Z`, `+hh:mm`, `-hh:mm`).
pub fn interval(text: &str) -> Option<Interval> {
    match text.split_once('T') {
        None => of_date(text),
        Some((date, time)) => of_moment(whole_date(date)?, time),
    }
}

fn of_date(text: &str) -> Option<Interval> {
    let (first, covers) = match text.len() {
        4 => (Date::new(year(text)?, 1, 1).ok()?, 1.year()),
        7 => (Date::new(year(text.get(..4)?)?, part(text, 4, '-')?, 1).ok()?, 1.month()),
        _ => (whole_date(text)?, 1.day()),
    };
    of_span(first.to_datetime(Time::midnight()), covers, 0)
}

fn whole_date(text: &str) -> Option<Date> {
    let fits = text.len() == 10;
    let date = Date::new(year(text.get(..4)?)?, part(text, 4, '-')?, part(text, 7, '-')?).ok();
    date.filter(|_| fits)
}

fn of_moment(date: Date, text: &str) -> Option<Interval> {
    let zone_at = text.find(['Z', '+', '-']).unwrap_or(text.len());
    let (clock, zone) = text.split_at(zone_at);
    let hour = two_digits(clock.get(..2)?)?;
    let minute = part(clock, 2, ':')?;
    let (second, micros, covers) = match clock.len() {
        5 => (0, 0, 1.minute()),
        8 => (part(clock, 5, ':')?, 0, 1.second()),
        _ => (part(clock, 5, ':')?, fraction_us(clock.get(8..)?)?, 1.microsecond()),
    };
    let time = Time::new(hour, minute, second, micros * 1_000).ok()?;
    of_span(date.to_datetime(time), covers, offset_s(zone)?)
}

/// Of the digits after the point, what microseconds hold.
fn fraction_us(text: &str) -> Option<i32> {
    let digits = text.strip_prefix('.').filter(|digits| !digits.is_empty())?;
    let all = digits.bytes().all(|byte| byte.is_ascii_digit());
    let padded = digits.bytes().map(|byte| i32::from(byte.wrapping_sub(b'0'))).chain(std::iter::repeat(0));
    all.then(|| padded.take(6).fold(0, |sum, digit| sum * 10 + digit))
}

/// How far the zone's clocks are ahead. None is named: UTC.
fn offset_s(zone: &str) -> Option<i64> {
    let (sign, clock) = match zone.split_at_checked(1) {
        None | Some(("Z", "")) => return Some(0),
        Some(("+", clock)) => (1, clock),
        Some(("-", clock)) => (-1, clock),
        Some(_) => return None,
    };
    let (hours, minutes) = (two_digits(clock.get(..2)?)?, part(clock, 2, ':')?);
    let fits = clock.len() == 5 && hours < 24 && minutes < 60;
    fits.then(|| sign * (i64::from(hours) * 3_600 + i64::from(minutes) * 60))
}

fn of_span(begins: DateTime, covers: Span, offset_s: i64) -> Option<Interval> {
    let since_epoch_us = |at: DateTime| i64::try_from(at.duration_since(EPOCH).as_micros()).ok();
    let begins_us = since_epoch_us(begins)? - offset_s * SECOND_US;
    // The last year of the calendar has no next one.
    let ends = begins.checked_add(covers).ok().and_then(since_epoch_us);
    Some(Interval { begins_us, ends_us: ends.map_or(i64::MAX, |ends_us| ends_us - offset_s * SECOND_US) })
}

fn year(text: &str) -> Option<i16> {
    let digits = text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// The two digits that follow a separator at `at`.
fn part(text: &str, at: usize, separator: char) -> Option<i8> {
    two_digits(text.get(at..)?.strip_prefix(separator)?.get(..2)?)
}

fn two_digits(text: &str) -> Option<i8> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = SECOND_US;
    const DAY: i64 = 86_400 * SECOND;

    #[track_caller]
    fn check(text: &str, begins_us: i64, covers_us: i64) {
        let found = interval(text).unwrap();
        assert_eq!((found.begins_us, found.ends_us - found.begins_us), (begins_us, covers_us), "{text}");
    }

    #[test]
    fn a_date_covers_what_it_names() {
        check("1970", 0, 365 * DAY);
        check("1972", 730 * DAY, 366 * DAY);
        check("1970-02", 31 * DAY, 28 * DAY);
        check("1970-01-02", DAY, DAY);
        check("1970-01-02T01:01", DAY + 3_660 * SECOND, 60 * SECOND);
        check("1970-01-01T00:00:01", SECOND, SECOND);
        check("1970-01-01T00:00:01Z", SECOND, SECOND);
        check("1970-01-01T00:00:01.5Z", SECOND + SECOND / 2, 1);
        check("1970-01-01T00:00:00.0000019Z", 1, 1);
        check("1970-01-01T02:00:00+02:00", 0, SECOND);
        check("1969-12-31T19:30-04:30", 0, 60 * SECOND);
        assert_eq!(interval("9999-12-31").unwrap().ends_us, i64::MAX);
    }

    #[test]
    fn what_is_no_date_is_none() {
        for other in [
            "",
            "24",
            "2024-5",
            "2024-13",
            "2024-00-01",
            "2023-02-29",
            "2024-05-32",
            "2024T08:30",
            "2024-05-17T",
            "2024-05-17T8:30",
            "2024-05-17T24:00",
            "2024-05-17T08:30:00.",
            "2024-05-17T08:30:00+0200",
            "2024-05-17T08:30:00Zx",
            "2024-05-17 08:30",
            "２０２４",
            "+024",
            "2024-+1",
            "2024-05-17T08:30:00+é:00",
            "2024-05-17T08:30:00.1x",
            "yesterday",
        ] {
            assert!(interval(other).is_none(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9T:+.Z-]{0,30}|\\PC{0,20}") {
            if let Some(found) = interval(&text) {
                prop_assert!(found.begins_us < found.ends_us);
            }
        }

        #[test]
        fn what_is_narrower_lies_within(year in 1_000..9_999, month in 1..=12, day in 1..=28, hour in 0..24) {
            let texts = [
                format!("{year}"),
                format!("{year}-{month:02}"),
                format!("{year}-{month:02}-{day:02}"),
                format!("{year}-{month:02}-{day:02}T{hour:02}:59"),
                format!("{year}-{month:02}-{day:02}T{hour:02}:59:59"),
                format!("{year}-{month:02}-{day:02}T{hour:02}:59:59.999"),
            ];
            let found = texts.each_ref().map(|text| interval(text).unwrap());
            for pair in found.windows(2) {
                prop_assert!(pair[0].begins_us <= pair[1].begins_us && pair[1].ends_us <= pair[0].ends_us);
            }
        }
    }
}
