//! What a patient can be found by: the identifiers of a Patient resource.
//!
//! As with the header's fields: what is absent, too long or not of the expected shape is left out, never refused.

use super::json::{JsonError, Scanner, decode};

/// As many as one record may have.
const IDENTIFIERS_MAX: usize = 8;
const SYSTEM_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 256;

/// `identifier` of a FHIR resource: whose numbers these are, and the number. Has no `Debug`: it names a patient.
#[derive(Clone, PartialEq, Eq)]
pub struct Identifier {
    pub system: String,
    pub value: String,
}

/// The first ones of one resource, any JSON object that a scanner has accepted.
pub(super) fn identifiers(resource: &str) -> Result<Vec<Identifier>, JsonError> {
    let mut found = Vec::new();
    Scanner::new(resource).members::<JsonError>(|scanner, name| {
        let span = scanner.value()?;
        if !span.starts_with('[') || decode(name).as_deref() != Some("identifier") {
            return Ok(());
        }
        Scanner::new(span).items::<JsonError>(|scanner, _| {
            let identifier = identifier(scanner.value()?)?;
            found.extend(identifier.filter(|it| found.len() < IDENTIFIERS_MAX && !found.contains(it)));
            Ok(())
        })
    })?;
    Ok(found)
}

fn identifier(item: &str) -> Result<Option<Identifier>, JsonError> {
    if !item.starts_with('{') {
        return Ok(None);
    }
    let (mut system, mut value) = (None, None);
    Scanner::new(item).members::<JsonError>(|scanner, name| {
        let span = scanner.value()?;
        match decode(name).as_deref() {
            Some("system") => system = usable(span, SYSTEM_BYTES_MAX),
            Some("value") => value = usable(span, VALUE_BYTES_MAX),
            _ => {}
        }
        Ok(())
    })?;
    Ok(system.zip(value).map(|(system, value)| Identifier { system, value }))
}

fn usable(span: &str, bytes_max: usize) -> Option<String> {
    let text = decode(span)?;
    let usable = (1..=bytes_max).contains(&text.len()) && !text.chars().any(char::is_control);
    usable.then(|| text.into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check(resource: &str, expected: &[(&str, &str)]) {
        let found = identifiers(resource).unwrap();
        let found: Vec<_> = found.iter().map(|it| (it.system.as_str(), it.value.as_str())).collect();
        assert_eq!(found, expected, "{resource}");
    }

    #[test]
    fn takes_what_has_a_system_and_a_value() {
        let two =
            r#"{"identifier":[{"system":"urn:mrn","value":"47"},{"type":{},"value":"4\u0037","system":"urn:x"}]}"#;
        check(two, &[("urn:mrn", "47"), ("urn:x", "47")]);
        check(r#"{"identifier":[{"value":"47"},{"system":"s"},{"system":"","value":"1"},17,[],"x",{}]}"#, &[]);
        check(r#"{"identifier":{"system":"s","value":"v"},"other":[{"system":"s","value":"v"}]}"#, &[]);
        check(r#"{"identifier":[{"system":"s","value":"v"},{"value":"v","system":"s"}]}"#, &[("s", "v")]);
        check(r#"{"identifier":[{"system":"s","value":"a\u0007b"},{"system":"s","value":7}]}"#, &[]);
        check(r#"{"contained":[{"identifier":[{"system":"s","value":"v"}]}]}"#, &[]);
    }

    #[test]
    fn takes_few_and_short_ones() {
        let item = |value: &str| format!(r#"{{"system":"s","value":"{value}"}}"#);
        let many = (0..20).map(|number| item(&number.to_string())).collect::<Vec<_>>().join(",");
        assert_eq!(identifiers(&format!(r#"{{"identifier":[{many}]}}"#)).unwrap().len(), IDENTIFIERS_MAX);
        let sizes = [item(&"v".repeat(256)), item(&"v".repeat(257))].join(",");
        assert_eq!(identifiers(&format!(r#"{{"identifier":[{sizes}]}}"#)).unwrap().len(), 1);
    }
}
