//! What clients saw, one line an operation, so that any checker can read it:
//!
//! ```text
//! {"c":3,"k":"p17/n9","f":"put","a":"3-41","x":"","st":"ok","o":"","hit":true,"v":7,"t0":12,"t1":15}
//! ```
//!
//! | member | what |
//! | --- | --- |
//! | `c` | client; after an outcome that it does not know it goes on under another number |
//! | `k` | record |
//! | `f` | `put`, `get`, `cas` (put if the version is `x`), `del` (delete if the version is `x`) |
//! | `a` | value that is written, unique in the run; "" when none is |
//! | `x` | version that is expected, in decimal digits |
//! | `st` | `ok`: answered; `info`: not known whether it happened; `fail`: certainly nothing happened |
//! | `o` | value that was read |
//! | `hit` | `get`: there was one; the others: it was written, not refused for its precondition |
//! | `v` | version that was written or read; of a miss, the version that deleted the record; 0: none, or not told |
//! | `t0`, `t1` | call and return, in ns of one monotonic clock; `t1` is `null` for ever. Of a read that may be stale, `t0` is as much earlier |

use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Function {
    Put,
    Get,
    Cas,
    Del,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Info,
    Fail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    #[serde(rename = "c")]
    pub client: u64,
    #[serde(rename = "k")]
    pub key: String,
    #[serde(rename = "f")]
    pub function: Function,
    #[serde(rename = "a")]
    pub value: String,
    #[serde(rename = "x", with = "digits")]
    pub expected: Option<u64>,
    #[serde(rename = "st")]
    pub status: Status,
    #[serde(rename = "o")]
    pub output: String,
    pub hit: bool,
    #[serde(rename = "v")]
    pub version: u64,
    #[serde(rename = "t0")]
    pub called_ns: u64,
    #[serde(rename = "t1")]
    pub returned_ns: Option<u64>,
}

impl Operation {
    pub fn is_write(&self) -> bool {
        self.function != Function::Get
    }

    /// A write that happened, as far as is known.
    pub fn wrote(&self) -> bool {
        self.is_write() && self.status == Status::Ok && self.hit
    }

    /// For ever, if it is not known when.
    pub fn returned(&self) -> u64 {
        self.returned_ns.unwrap_or(u64::MAX)
    }
}

mod digits {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(number: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&number.map(|number| number.to_string()).unwrap_or_default())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
    }
}

/// Takes operations from all clients.
pub struct Recorder {
    begin: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Recorder {
    pub fn new(begin: Instant) -> Self {
        Self { begin, operations: Mutex::default() }
    }

    pub fn now_ns(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }

    pub fn add(&self, operation: Operation) {
        self.operations.lock().unwrap().push(operation);
    }

    pub fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut self.operations.lock().unwrap())
    }
}

pub fn write(path: &Path, operations: &[Operation]) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for operation in operations {
        serde_json::to_writer(&mut file, operation)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_its_description_says() {
        let line = r#"{"c":3,"k":"p17/n9","f":"cas","a":"3-41","x":"6","st":"info","o":"","hit":false,"v":0,"t0":12,"t1":null}"#;
        let operation: Operation = serde_json::from_str(line).unwrap();
        assert_eq!((operation.function, operation.expected, operation.returned()), (Function::Cas, Some(6), u64::MAX));
        assert_eq!(serde_json::to_string(&operation).unwrap(), line);
    }
}
