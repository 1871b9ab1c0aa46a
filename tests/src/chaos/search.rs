//! The second opinion: a search for an order (Wing and Gong 1993, Lowe 2017), which knows nothing of the versions that
//! answers carry but what a precondition says of them.
//!
//! It takes exponential time in what overlaps, so it is for records with few operations: the cold ones.

use std::collections::HashMap;

use todc_utils::{Action, History, Specification, WGLChecker};

use super::history::{Function, Operation, Status};
use super::sweep::Violation;

const OPERATIONS_MAX: usize = 200;

pub struct Opinion {
    /// Records that were few enough operations.
    pub keys: usize,
    pub violations: Vec<Violation>,
}

/// Of a history whose unknown outcomes are resolved.
pub fn check(operations: &[Operation]) -> Opinion {
    let mut by_key = HashMap::<&str, Vec<&Operation>>::new();
    for operation in operations.iter().filter(|operation| operation.status == Status::Ok) {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    by_key.retain(|_, operations| operations.len() <= OPERATIONS_MAX);
    let wrong = by_key.iter().filter(|(_, operations)| !is_linearizable(operations));
    let violation = |(key, operations): (&&str, &Vec<&Operation>)| Violation {
        what: "no order explains these operations",
        key: (*key).to_owned(),
        detail: serde_json::to_string(operations).unwrap_or_default(),
    };
    Opinion { keys: by_key.len(), violations: wrong.map(violation).collect() }
}

fn is_linearizable(operations: &[&Operation]) -> bool {
    // What begins when something else ends may have overlapped: it comes first.
    let mut actions = Vec::with_capacity(operations.len() * 2);
    for (process, operation) in operations.iter().enumerate() {
        actions.push((operation.called_ns, false, process));
        actions.push((operation.returned(), true, process));
    }
    actions.sort_unstable();
    let action = |(_, is_return, process): (u64, bool, usize)| {
        let operation = operations[process].clone();
        (process, if is_return { Action::Response(operation) } else { Action::Call(operation) })
    };
    WGLChecker::<Register>::is_linearizable(History::from_actions(actions.into_iter().map(action).collect()))
}

/// A record: which version it has, and its value unless it is absent or deleted.
struct Register;

impl Specification for Register {
    type State = (u64, Option<String>);
    type Operation = Operation;

    fn init() -> Self::State {
        (0, None)
    }

    fn apply(operation: &Operation, state: &Self::State) -> (bool, Self::State) {
        let (version, value) = state;
        let holds = operation.expected.is_none_or(|expected| value.is_some() && *version == expected);
        let written = |value| (version + 1, value);
        match operation.function {
            Function::Get => {
                (operation.hit == value.is_some() && value.as_deref().unwrap_or("") == operation.output, state.clone())
            }
            _ if !operation.hit => (!holds, state.clone()),
            Function::Put | Function::Cas => (holds, written(Some(operation.value.clone()))),
            Function::Del => (holds, written(None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Operation {
        serde_json::from_str(text).unwrap()
    }

    fn violations(lines: &[&str]) -> usize {
        let operations = lines.iter().map(|text| line(text)).collect::<Vec<_>>();
        check(&operations).violations.len()
    }

    const PUT: &str = r#"{"c":1,"k":"p/r","f":"put","a":"1-1","x":"","st":"ok","o":"","hit":true,"v":1,"t0":0,"t1":1}"#;
    const CAS: &str =
        r#"{"c":1,"k":"p/r","f":"cas","a":"1-2","x":"1","st":"ok","o":"","hit":true,"v":2,"t0":2,"t1":9}"#;

    #[test]
    fn an_order_is_found_where_there_is_one() {
        let old = r#"{"c":2,"k":"p/r","f":"get","a":"","x":"","st":"ok","o":"1-1","hit":true,"v":1,"t0":3,"t1":4}"#;
        let new = r#"{"c":2,"k":"p/r","f":"get","a":"","x":"","st":"ok","o":"1-2","hit":true,"v":2,"t0":5,"t1":6}"#;
        assert_eq!(violations(&[PUT, CAS, old, new]), 0);
    }

    #[test]
    fn a_read_that_goes_back_is_found() {
        let new = r#"{"c":2,"k":"p/r","f":"get","a":"","x":"","st":"ok","o":"1-2","hit":true,"v":2,"t0":3,"t1":4}"#;
        let old = r#"{"c":3,"k":"p/r","f":"get","a":"","x":"","st":"ok","o":"1-1","hit":true,"v":1,"t0":5,"t1":6}"#;
        assert_eq!(violations(&[PUT, CAS, new, old]), 1);
    }

    #[test]
    fn two_writes_on_one_precondition_are_found() {
        let second = r#"{"c":2,"k":"p/r","f":"del","a":"","x":"1","st":"ok","o":"","hit":true,"v":2,"t0":3,"t1":4}"#;
        assert_eq!(violations(&[PUT, CAS, second]), 1);
    }
}
