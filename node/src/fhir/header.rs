//! What a record's header says about a resource, so that a list needs no bodies: when it happened, and its status.
//!
//! A guess that serves lists: a field that is absent, too long or not of the expected shape is left out, never refused.

use super::json::{JsonError, Scanner, decode};

/// Where FHIR R4 resources say when something happened to the patient, best first. Names differ enough between types
/// that one order serves all. A `.` goes into an object. Not the birth date: it is nobody's event.
const DATE_PATHS: [&str; 22] = [
    "effectiveDateTime",
    "effectiveInstant",
    "effectivePeriod.start",
    "performedDateTime",
    "performedPeriod.start",
    "occurrenceDateTime",
    "occurrencePeriod.start",
    "onsetDateTime",
    "onsetPeriod.start",
    "period.start",
    "servicedDate",
    "servicedPeriod.start",
    "billablePeriod.start",
    "started",
    "startDate",
    "whenHandedOver",
    "authoredOn",
    "date",
    "issued",
    "recordedDate",
    "recorded",
    "created",
];
const STATUS_PATHS: [&str; 3] = ["status", "lifecycleStatus", "clinicalStatus.coding.code"];

const DATE_BYTES_MAX: usize = 64;
const STATUS_BYTES_MAX: usize = 128;

#[derive(Default)]
pub(super) struct HeaderFields {
    pub clinical_date: String,
    pub status: String,
}

/// Of one resource, any JSON object that a scanner has accepted.
pub(super) fn header_fields(resource: &str) -> Result<HeaderFields, JsonError> {
    let mut date = Best::new(&DATE_PATHS, is_date);
    let mut status = Best::new(&STATUS_PATHS, is_status);
    Scanner::new(resource).members::<JsonError>(|scanner, name| {
        let span = scanner.value()?;
        date.offer(name, span)?;
        status.offer(name, span)
    })?;
    Ok(HeaderFields { clinical_date: date.found, status: status.found })
}

/// The value at the first of several paths that holds an acceptable one, in whatever order they come.
struct Best {
    paths: &'static [&'static str],
    accept: fn(&str) -> bool,
    rank: usize,
    found: String,
}

impl Best {
    fn new(paths: &'static [&'static str], accept: fn(&str) -> bool) -> Self {
        Self { paths, accept, rank: paths.len(), found: String::new() }
    }

    fn offer(&mut self, name: &str, span: &str) -> Result<(), JsonError> {
        let Some(name) = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) else { return Ok(()) };
        for (rank, path) in self.paths[..self.rank].iter().enumerate() {
            let (first, rest) = path.split_once('.').unwrap_or((path, ""));
            if first == name
                && let Some(text) = text_at(span, rest)?
                && (self.accept)(&text)
            {
                self.rank = rank;
                self.found = text;
                break;
            }
        }
        Ok(())
    }
}

/// The string at a path below a value; of an array, its first item counts.
fn text_at(span: &str, path: &str) -> Result<Option<String>, JsonError> {
    let mut scanner = Scanner::new(span);
    match scanner.peek() {
        Some(b'"') if path.is_empty() => Ok(decode(span).map(|text| text.into_owned())),
        Some(b'[') => {
            let mut found = None;
            scanner.items::<JsonError>(|scanner, index| {
                let item = scanner.value()?;
                if index == 0 {
                    found = text_at(item, path)?;
                }
                Ok(())
            })?;
            Ok(found)
        }
        Some(b'{') if !path.is_empty() => {
            let (first, rest) = path.split_once('.').unwrap_or((path, ""));
            let mut found = None;
            scanner.members::<JsonError>(|scanner, name| {
                let value = scanner.value()?;
                if decode(name).as_deref() == Some(first) {
                    found = text_at(value, rest)?;
                }
                Ok(())
            })?;
            Ok(found)
        }
        _ => Ok(None),
    }
}

/// A FHIR date, dateTime or instant: `YYYY`, `YYYY-MM`, `YYYY-MM-DD`, or that and `T` and a time.
fn is_date(text: &str) -> bool {
    let (date, time) = text.split_once('T').map_or((text, None), |(date, time)| (date, Some(time)));
    let shape: Vec<u8> = date.bytes().map(|byte| if byte.is_ascii_digit() { b'9' } else { byte }).collect();
    let whole = shape == b"9999-99-99";
    let in_range = |part: Option<&str>, max: u8| {
        part.is_none_or(|part| part.parse::<u8>().is_ok_and(|number| (1..=max).contains(&number)))
    };
    text.len() <= DATE_BYTES_MAX
        && (whole || (time.is_none() && (shape == b"9999-99" || shape == b"9999")))
        && in_range(date.get(5..7), 12)
        && in_range(date.get(8..10), 31)
        && time.is_none_or(is_time)
}

/// `hh:mm`, then seconds with a fraction and a zone, both optional here: servers differ.
fn is_time(time: &str) -> bool {
    let zone_at = time.find(['Z', '+', '-']).unwrap_or(time.len());
    let (clock, zone) = time.split_at(zone_at);
    let shape: Vec<u8> = clock.bytes().map(|byte| if byte.is_ascii_digit() { b'9' } else { byte }).collect();
    let clock_fits = match shape.strip_prefix(b"99:99") {
        Some(b"" | b":99") => true,
        Some(rest) => rest
            .strip_prefix(b":99.")
            .is_some_and(|digits| !digits.is_empty() && digits.iter().all(|byte| *byte == b'9')),
        None => false,
    };
    let zone_fits = zone.is_empty()
        || zone == "Z"
        || (zone.len() == 6
            && zone[1..].bytes().enumerate().all(|(at, byte)| match at {
                2 => byte == b':',
                _ => byte.is_ascii_digit(),
            }));
    clock_fits && zone_fits
}

fn is_status(text: &str) -> bool {
    !text.is_empty() && text.len() <= STATUS_BYTES_MAX && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check(resource: &str, date: &str, status: &str) {
        let found = header_fields(resource).unwrap();
        assert_eq!((found.clinical_date.as_str(), found.status.as_str()), (date, status), "{resource}");
    }

    #[test]
    fn takes_the_best_field_in_any_order() {
        check(r#"{"issued":"2020-01-02","effectiveDateTime":"2020-01-01","status":"final"}"#, "2020-01-01", "final");
        check(r#"{"effectiveDateTime":"2020-01-01","issued":"2020-01-02"}"#, "2020-01-01", "");
        check(r#"{"period":{"end":"2021","start":"2020-05"},"status":"active"}"#, "2020-05", "active");
        check(r#"{"clinicalStatus":{"coding":[{"code":"resolved"},{"code":"x"}]}}"#, "", "resolved");
        check(r#"{"lifecycleStatus":"active","startDate":"2001"}"#, "2001", "active");
        check(r#"{"birthDate":"1968-08-16","contained":[{"status":"x","date":"2020"}]}"#, "", "");
    }

    #[test]
    fn leaves_out_what_does_not_fit() {
        let long = format!(r#"{{"date":"2020-01-01T00:00:00.{}Z","status":"{}"}}"#, "1".repeat(64), "s".repeat(129));
        check(&long, "", "");
        check(r#"{"status":"a\u0007b","date":17,"period":"x"}"#, "", "");
        check(r#"{"effectiveDateTime":"yesterday","issued":"2020-01-02"}"#, "2020-01-02", "");
        check(r#"{"status":["final"],"effectivePeriod":[]}"#, "", "final");
        check(r#"{"status":"\ud800"}"#, "", "");
    }

    #[test]
    fn knows_a_date() {
        for date in [
            "2024",
            "2024-05",
            "2024-05-17",
            "2024-05-17T08:30",
            "2024-05-17T08:30:00",
            "2024-05-17T08:30:00.123Z",
            "2024-05-17T08:30:00+02:00",
            "2024-05-17T08:30:00.5-05:00",
        ] {
            assert!(is_date(date), "{date}");
        }
        for other in [
            "",
            "24",
            "2024-5",
            "2024-13",
            "2024-00-01",
            "2024-05-32",
            "2024T08:30",
            "2024-05-17T",
            "2024-05-17T8:30",
            "2024-05-17T08:30:00.",
            "2024-05-17T08:30:00+0200",
            "2024-05-17T08:30:00Zx",
            "2024-05-17 08:30",
            "２０２４",
            "2024-05-17T08:30:00+é:00",
        ] {
            assert!(!is_date(other), "{other}");
        }
    }
}
