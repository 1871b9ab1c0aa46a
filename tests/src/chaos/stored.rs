//! What the cluster has of all records at the end, and what that says of outcomes that nobody knew.

use std::collections::{BTreeSet, HashMap};

use charthold_client::{Client, Error, Order};

use super::history::{Function, Operation, Status};
use super::sweep::Violation;
use super::workload::place;

/// Records read at once.
const AT_ONCE: usize = 16;

/// A record's versions, from 1 on: the value, or nothing where it was deleted.
pub type Versions = Vec<Option<String>>;

pub async fn read(client: &Client, operations: &[Operation]) -> HashMap<String, Versions> {
    let keys = operations.iter().map(|operation| operation.key.clone()).collect::<BTreeSet<_>>();
    let mut keys = keys.into_iter();
    let (mut stored, mut reading) = (HashMap::new(), tokio::task::JoinSet::new());
    loop {
        while reading.len() < AT_ONCE
            && let Some(key) = keys.next()
        {
            let client = client.clone();
            reading.spawn(async move { (versions(&client, &key).await, key) });
        }
        let Some(read) = reading.join_next().await else { return stored };
        let (versions, key) = read.unwrap();
        stored.insert(key, versions);
    }
}

async fn versions(client: &Client, key: &str) -> Versions {
    let (chart, record) = place(key);
    let headers = match client.history_in(&chart, &record, Order::OldestFirst).all().await {
        Ok(headers) => headers,
        Err(Error::NotFound { .. }) => Vec::new(),
        Err(error) => panic!("the history of {key}: {error}"),
    };
    for (number, header) in (1..).zip(&headers) {
        assert_eq!(header.version, number, "the history of {key} has a gap");
    }
    headers.into_iter().map(|header| (!header.deleted).then_some(header.author)).collect()
}

/// Gives each write of unknown outcome its version, or says that it did not happen. What contradicts the history is a
/// violation: a write that was acknowledged and is not there, one that failed and is, a version that nobody wrote.
pub fn resolve(operations: &mut [Operation], stored: &HashMap<String, Versions>) -> Vec<Violation> {
    let mut violations = Vec::new();
    // Which write a version is of.
    let mut claimed = HashMap::<(String, u64), usize>::new();
    let at = |operation: &Operation, version: u64| {
        let versions = stored.get(&operation.key)?;
        versions.get(usize::try_from(version).ok()?.checked_sub(1)?)
    };
    for (index, operation) in operations.iter().enumerate().filter(|(_, operation)| operation.wrote()) {
        let value = (operation.function != Function::Del).then_some(&operation.value);
        if at(operation, operation.version).is_none_or(|found| found.as_ref() != value) {
            violations.push(Violation::new("an acknowledged write is not there", operation));
        } else if claimed.insert((operation.key.clone(), operation.version), index).is_some() {
            violations.push(Violation::new("two writes have one version", operation));
        }
    }
    let mut by_value = HashMap::new();
    for (key, versions) in stored {
        for (version, value) in (1..).zip(versions) {
            if let Some(value) = value {
                by_value.insert((key.as_str(), value.as_str()), version);
            }
        }
    }
    // In the order of their calls: of two deletes that expected one version, the first is taken for the one that
    // happened, which forbids least.
    let mut unknown = (0..operations.len()).filter(|index| operations[*index].status != Status::Ok).collect::<Vec<_>>();
    unknown.sort_by_key(|index| operations[*index].called_ns);
    for index in unknown {
        let operation = &operations[index];
        let version = match operation.function {
            Function::Get => continue,
            Function::Put | Function::Cas => by_value.get(&(operation.key.as_str(), operation.value.as_str())).copied(),
            Function::Del => operation.expected.map(|expected| expected + 1).filter(|version| {
                operation.status == Status::Info
                    && at(operation, *version) == Some(&None)
                    && !claimed.contains_key(&(operation.key.clone(), *version))
            }),
        };
        let Some(version) = version else {
            operations[index].status = Status::Fail;
            continue;
        };
        if operation.status == Status::Fail {
            violations.push(Violation::new("a write that certainly did not happen did", operation));
        }
        claimed.insert((operation.key.clone(), version), index);
        let operation = &mut operations[index];
        (operation.status, operation.hit, operation.version) = (Status::Ok, true, version);
    }
    for (key, versions) in stored {
        for (version, value) in (1..).zip(versions) {
            if !claimed.contains_key(&(key.clone(), version)) {
                violations.push(Violation {
                    what: "nobody wrote this version",
                    key: key.clone(),
                    detail: format!("{version}: {value:?}"),
                });
            }
        }
    }
    violations
}
