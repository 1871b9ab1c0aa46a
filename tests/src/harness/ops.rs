//! A node's ops port, as a probe or Prometheus sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::Cluster;

const ANSWER_MAX: Duration = Duration::from_secs(30);

/// An answer of HTTP/1.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Cluster {
    /// GET of a path on a node's ops port; nothing while it does not listen.
    pub fn ops(&self, node: usize, path: &str) -> Option<Page> {
        self.ops_request(node, &format!("GET {path} HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n"))
    }

    /// Any bytes, and what is answered until the node closes the connection.
    pub fn ops_request(&self, node: usize, request: &str) -> Option<Page> {
        let mut stream = TcpStream::connect(self.ops_endpoint(node)).ok()?;
        stream.set_read_timeout(Some(ANSWER_MAX)).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8(answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Page { status, head: head.to_owned(), body: body.to_owned() })
    }

    pub fn metrics(&self, node: usize) -> Metrics {
        let page = self.ops(node, "/metrics").expect("the ops port answers");
        assert_eq!(page.status, 200, "{}", page.body);
        Metrics::parse(&page.body)
    }
}

/// A page of metrics, read as Prometheus reads it.
#[derive(Default)]
pub struct Metrics {
    /// Name and type.
    pub types: BTreeMap<String, String>,
    /// Names with a description.
    pub described: BTreeSet<String>,
    pub samples: Vec<Sample>,
    pub text: String,
}

#[derive(Debug, Clone)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Metrics {
    fn parse(text: &str) -> Self {
        let mut page = Self { text: text.to_owned(), ..Self::default() };
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                page.types.insert(name.to_owned(), kind.to_owned());
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                page.described.insert(rest.split(' ').next().expect("a name").to_owned());
            } else if !line.is_empty() && !line.starts_with('#') {
                page.samples.push(Sample::parse(line));
            }
        }
        page
    }

    /// The sum of all samples with this name whose labels are among theirs.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        };
        self.samples.iter().filter(wanted).map(|sample| sample.value).sum()
    }
}

impl Sample {
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
        let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("open labels: {line}"));
        let pairs = labels.split("\",").filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("a bad label: {line}"));
            (key.to_owned(), value.trim_end_matches('"').to_owned())
        });
        Self { name: name.to_owned(), labels: pairs.collect(), value }
    }
}
