//! Whether a history is linearizable, by the versions that every answer carries.
//!
//! Each write of a record makes its next version, so the versions are the order of the writes, and a read belongs right
//! behind the write of the version that it saw. What is left to check is that no answer contradicts that order: an
//! operation never sees less than what was answered before it was called, a write makes more than that, and nothing is
//! seen before it was asked for. O(n log n), for any number of clients and of operations on one record.

use std::collections::HashMap;

use super::history::{Function, Operation, Status};
use super::stored::Versions;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub what: &'static str,
    pub key: String,
    pub detail: String,
}

impl Violation {
    pub fn new(what: &'static str, operation: &Operation) -> Self {
        let detail = serde_json::to_string(operation).unwrap_or_default();
        Self { what, key: operation.key.clone(), detail }
    }
}

/// Of a history whose unknown outcomes are resolved.
pub fn check(operations: &[Operation], stored: &HashMap<String, Versions>) -> Vec<Violation> {
    let mut by_key = HashMap::<&str, Vec<&Operation>>::new();
    for operation in operations.iter().filter(|operation| operation.status == Status::Ok) {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    let none = Versions::new();
    let check = |(key, operations)| check_one(operations, stored.get(key).unwrap_or(&none));
    by_key.into_iter().flat_map(check).collect()
}

fn check_one(mut operations: Vec<&Operation>, versions: &Versions) -> Vec<Violation> {
    let mut violations = Vec::new();
    // When each version was asked for.
    let mut called = vec![0; versions.len() + 1];
    for operation in operations.iter().filter(|operation| operation.wrote()) {
        if let Some(called) = usize::try_from(operation.version).ok().and_then(|version| called.get_mut(version)) {
            *called = operation.called_ns;
        }
    }
    for operation in &operations {
        violations.extend(contradicts_stored(operation, versions, &called).map(|what| Violation::new(what, operation)));
    }
    operations.retain(|operation| says_a_version(operation));
    operations.sort_by_key(|operation| operation.called_ns);
    let mut returned = operations.clone();
    returned.sort_by_key(|operation| operation.returned());
    let (mut returned, mut floor) = (returned.into_iter().peekable(), 0);
    for operation in operations {
        while let Some(earlier) = returned.next_if(|earlier| earlier.returned() < operation.called_ns) {
            floor = floor.max(earlier.version);
        }
        if operation.wrote() && operation.version <= floor {
            violations
                .push(Violation::new("a write has no newer version than what was answered before its call", operation));
        } else if operation.version < floor {
            violations.push(Violation::new("a stale answer: a newer version was answered before its call", operation));
        }
    }
    violations
}

/// A precondition that failed on a record that is deleted tells no version.
fn says_a_version(operation: &Operation) -> bool {
    operation.hit || operation.function == Function::Get || operation.version > 0
}

/// What an answer says that is not so, whenever it was said.
fn contradicts_stored(operation: &Operation, versions: &Versions, called: &[u64]) -> Option<&'static str> {
    if !says_a_version(operation) {
        return None;
    }
    let version = usize::try_from(operation.version).ok()?;
    let value = match version.checked_sub(1).map(|index| versions.get(index)) {
        None => None,
        Some(Some(value)) => value.as_ref(),
        Some(None) => return Some("a version was answered that is not there"),
    };
    if operation.returned() < called[version] {
        return Some("a version was answered before it was asked for");
    }
    match (operation.function, operation.hit) {
        (Function::Get, true) if value != Some(&operation.output) => {
            Some("another value than this version has was read")
        }
        (Function::Get, false) if value.is_some() => Some("a value that is there was not found"),
        (Function::Cas | Function::Del, true)
            if operation.expected.map(|expected| expected + 1) != Some(operation.version) =>
        {
            Some("a write happened though its precondition did not hold")
        }
        (Function::Cas | Function::Del, false) if operation.expected == Some(operation.version) => {
            Some("a write was refused though its precondition held")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(function: Function, version: u64, called_ns: u64, returned_ns: u64) -> Operation {
        Operation {
            client: 0,
            key: "p/r".to_owned(),
            function,
            value: if function == Function::Put { format!("v{version}") } else { String::new() },
            expected: None,
            status: Status::Ok,
            output: if function == Function::Get { format!("v{version}") } else { String::new() },
            hit: true,
            version,
            called_ns,
            returned_ns: Some(returned_ns),
        }
    }

    fn stored(count: u64) -> HashMap<String, Versions> {
        HashMap::from([("p/r".to_owned(), (1..=count).map(|version| Some(format!("v{version}"))).collect())])
    }

    fn found(operations: &[Operation], count: u64) -> Vec<&'static str> {
        check(operations, &stored(count)).into_iter().map(|violation| violation.what).collect()
    }

    fn put(version: u64, called_ns: u64, returned_ns: u64) -> Operation {
        operation(Function::Put, version, called_ns, returned_ns)
    }

    fn get(version: u64, called_ns: u64, returned_ns: u64) -> Operation {
        operation(Function::Get, version, called_ns, returned_ns)
    }

    #[test]
    fn what_overlaps_may_be_seen_or_not() {
        assert!(found(&[put(1, 0, 1), put(2, 2, 20), get(1, 3, 4), get(2, 5, 6)], 2).is_empty());
    }

    #[test]
    fn a_stale_read_is_found() {
        assert_eq!(found(&[put(1, 0, 1), put(2, 2, 3), get(1, 4, 5)], 2).len(), 1);
        // It need not be the writer who knew of the newer version.
        assert_eq!(found(&[put(1, 0, 1), put(2, 2, 20), get(2, 3, 4), get(1, 5, 6)], 2).len(), 1);
    }

    #[test]
    fn a_write_behind_a_newer_answer_is_found() {
        assert_eq!(found(&[put(2, 0, 1), put(1, 2, 3)], 2).len(), 1);
    }

    #[test]
    fn what_was_not_asked_for_yet_is_not_there() {
        let found = found(&[get(1, 0, 1), put(1, 2, 3)], 1);
        assert!(found.contains(&"a version was answered before it was asked for"), "{found:?}");
    }

    #[test]
    fn values_and_absence_are_compared() {
        let mut wrong = get(1, 2, 3);
        wrong.output = "v7".to_owned();
        assert_eq!(found(&[put(1, 0, 1), wrong], 1).len(), 1);
        let mut missed = get(1, 2, 3);
        (missed.hit, missed.output) = (false, String::new());
        assert_eq!(found(&[put(1, 0, 1), missed.clone()], 1), ["a value that is there was not found"]);
        // Never written, says who was called after the write was answered.
        missed.version = 0;
        assert_eq!(found(&[put(1, 0, 1), missed], 1).len(), 1);
    }

    #[test]
    fn preconditions_are_compared() {
        let mut cas = operation(Function::Cas, 2, 2, 3);
        (cas.value, cas.expected) = ("v2".to_owned(), Some(1));
        assert!(found(&[put(1, 0, 1), cas.clone()], 2).is_empty());
        cas.expected = Some(5);
        assert_eq!(found(&[put(1, 0, 1), cas.clone()], 2).len(), 1);
        (cas.hit, cas.version, cas.expected) = (false, 1, Some(1));
        assert_eq!(found(&[put(1, 0, 1), cas], 1).len(), 1);
    }
}
