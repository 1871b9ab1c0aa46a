//! Limits on what comes in. Every bad field of a request is named at once; values are not repeated.

use std::collections::HashSet;
use std::fmt::Display;

use charthold_proto::v1::chart_ref::Kind as ChartKind;
use charthold_proto::v1::mutation::Operation;
use charthold_proto::v1::precondition::Condition;
use charthold_proto::v1::{
    ChartRef, CommitRequest, IndexTerm, Mutation, Put, RecordRef, RequestContext, UploadPartRequest,
};
use tonic_types::FieldViolation;

use super::error::GatewayError;

pub const ID_BYTES_MAX: usize = 128;
pub const MUTATIONS_MAX: usize = 512;
pub const COMMIT_BYTES_MAX: usize = 4 << 20;
pub const BATCH_RECORDS_MAX: usize = 1_000;
pub const PAGE_ROWS_MAX: usize = 1_000;
const PAGE_ROWS_DEFAULT: usize = 100;
const CONTEXT_BYTES_MAX: usize = 256;
const DATE_BYTES_MAX: usize = 64;
const LABELS_MAX: usize = 16;
const TERMS_MAX: usize = 8;
/// Each is a proposal of its own before the commit.
const COMMIT_TERMS_MAX: usize = 64;
const TERM_VALUE_BYTES_MAX: usize = 256;

/// Gathers what is wrong. What has no fault costs no text: names and descriptions are written out when there is one.
#[derive(Default)]
pub struct Violations(Vec<FieldViolation>);

impl Violations {
    pub fn add(&mut self, field: impl Display, description: impl Display) {
        self.0.push(FieldViolation::new(field.to_string(), description.to_string()));
    }

    pub fn check(&mut self, good: bool, field: impl Display, description: impl Display) {
        if !good {
            self.add(field, description);
        }
    }

    pub fn into_result(self) -> Result<(), GatewayError> {
        if self.0.is_empty() { Ok(()) } else { Err(GatewayError::Invalid(self.0)) }
    }

    /// 1 to 128 bytes without control characters.
    pub fn id(&mut self, field: impl Display + Copy, value: &str) {
        self.check(!value.is_empty(), field, "is required");
        self.text(field, value, ID_BYTES_MAX);
    }

    fn text(&mut self, field: impl Display + Copy, value: &str, bytes_max: usize) {
        self.check(value.len() <= bytes_max, field, format_args!("is longer than {bytes_max} bytes"));
        // A terminal that shows an audited value must not be steered by it.
        self.check(!value.chars().any(char::is_control), field, "has control characters");
    }

    pub fn context(&mut self, context: Option<&RequestContext>) {
        let Some(context) = context else { return self.add("context", "is required") };
        self.check(!context.actor.is_empty(), "context.actor", "is required");
        let fields = [
            ("context.actor", &context.actor),
            ("context.on_behalf_of", &context.on_behalf_of),
            ("context.purpose_of_use", &context.purpose_of_use),
            ("context.reason", &context.reason),
            ("context.session", &context.session),
            ("context.device", &context.device),
            ("context.origin", &context.origin),
        ];
        for (field, value) in fields {
            self.text(field, value, CONTEXT_BYTES_MAX);
        }
    }

    pub fn chart(&mut self, chart: Option<&ChartRef>) {
        let Some(chart) = chart else { return self.add("chart", "is required") };
        let known = matches!(chart.kind(), ChartKind::Patient | ChartKind::Shared);
        self.check(known, "chart.kind", "is neither PATIENT nor SHARED");
        self.id("chart.id", &chart.id);
    }

    pub fn record(&mut self, field: impl Display + Copy, record: Option<&RecordRef>) {
        let Some(record) = record else { return self.add(field, "is required") };
        self.id(format_args!("{field}.type"), &record.r#type);
        self.id(format_args!("{field}.id"), &record.id);
    }

    fn put(&mut self, field: impl Display + Copy, put: &Put, body_bytes_max: usize) {
        let size = put.body.len();
        let description = format_args!("is longer than {body_bytes_max} bytes");
        self.check(size <= body_bytes_max, format_args!("{field}.put.body"), description);
        if let Some(document) = &put.document {
            self.check(size == 0, format_args!("{field}.put.body"), "is there beside a document");
            let valid = uuid_v7(&document.upload_id).is_some();
            self.check(valid, format_args!("{field}.put.document.upload_id"), "is no UUID of version 7");
        }
        self.text(format_args!("{field}.put.content_type"), &put.content_type, ID_BYTES_MAX);
        self.text(format_args!("{field}.put.clinical_date"), &put.clinical_date, DATE_BYTES_MAX);
        self.text(format_args!("{field}.put.status"), &put.status, ID_BYTES_MAX);
        self.text(format_args!("{field}.put.author"), &put.author, ID_BYTES_MAX);
        let many = format_args!("{field}.put.labels");
        self.check(put.labels.len() <= LABELS_MAX, many, format_args!("are more than {LABELS_MAX}"));
        put.labels.iter().for_each(|label| self.text(many, label, ID_BYTES_MAX));
        let many = format_args!("{field}.put.index_terms");
        self.check(put.index_terms.len() <= TERMS_MAX, many, format_args!("are more than {TERMS_MAX}"));
        for (index, term) in put.index_terms.iter().enumerate().take(TERMS_MAX) {
            self.term(format_args!("{many}[{index}]"), Some(term));
        }
    }

    /// What a record can be found by.
    pub fn term(&mut self, field: impl Display + Copy, term: Option<&IndexTerm>) {
        let Some(term) = term else { return self.add(field, "is required") };
        self.id(format_args!("{field}.system"), &term.system);
        let value = format_args!("{field}.value");
        self.check(!term.value.is_empty(), value, "is required");
        self.text(value, &term.value, TERM_VALUE_BYTES_MAX);
    }

    fn mutation(&mut self, field: impl Display + Copy, mutation: &Mutation, body_bytes_max: usize) {
        self.record(format_args!("{field}.record"), mutation.record.as_ref());
        let condition = mutation.precondition.as_ref().and_then(|precondition| precondition.condition);
        let conditional = format_args!("{field}.precondition");
        match condition {
            Some(Condition::MustNotExist(false)) => self.add(conditional, "must_not_exist is true or not there"),
            Some(Condition::Version(0)) => self.add(conditional, "version counts from 1"),
            _ => {}
        }
        match &mutation.operation {
            None => self.add(field, "has no operation: put, delete or check"),
            Some(Operation::Put(put)) => self.put(field, put, body_bytes_max),
            Some(Operation::Delete(_)) => {
                let contradiction = matches!(condition, Some(Condition::MustNotExist(_)));
                self.check(!contradiction, conditional, "a delete of what must not exist");
            }
            Some(Operation::Check(_)) => {
                self.check(condition.is_some(), conditional, "a check needs one");
            }
        }
    }
}

/// A UUIDv7 in its text form.
pub fn request_id(text: &str) -> Result<[u8; 16], GatewayError> {
    let invalid = |description| GatewayError::field("request_id", description);
    if text.is_empty() {
        return Err(invalid("is required: a UUIDv7, the same when the request is repeated"));
    }
    let id = uuid::Uuid::try_parse(text).map_err(|_| invalid("is no UUID"))?;
    match id.get_version_num() {
        7 => Ok(id.into_bytes()),
        _ => Err(invalid("is a UUID of another version than 7")),
    }
}

fn uuid_v7(text: &str) -> Option<[u8; 16]> {
    uuid::Uuid::try_parse(text).ok().filter(|id| id.get_version_num() == 7).map(uuid::Uuid::into_bytes)
}

/// An upload's id.
pub fn upload_id(text: &str) -> Result<[u8; 16], GatewayError> {
    uuid_v7(text).ok_or_else(|| GatewayError::field("upload_id", "is no UUID of version 7"))
}

/// A part of a document. All are full but the last, so that any byte's part is known.
pub fn upload_part(request: &UploadPartRequest, part_bytes: usize, bytes_max: u64) -> Result<[u8; 16], GatewayError> {
    let mut violations = Violations::default();
    violations.context(request.context.as_ref());
    violations.chart(request.chart.as_ref());
    let size = request.data.len();
    match request.last {
        true => violations.check(size <= part_bytes, "data", format_args!("is longer than {part_bytes} bytes")),
        false => {
            violations.check(size == part_bytes, "data", format_args!("is not {part_bytes} bytes, and not the last"))
        }
    }
    let end = u64::from(request.part) * part_bytes as u64 + size as u64;
    violations.check(end <= bytes_max, "part", format_args!("makes a document of more than {bytes_max} bytes"));
    violations.into_result()?;
    upload_id(&request.upload_id)
}

/// A commit, all of it but the request id.
pub fn commit(request: &CommitRequest, body_bytes_max: usize) -> Result<(), GatewayError> {
    let mut violations = Violations::default();
    violations.context(request.context.as_ref());
    violations.chart(request.chart.as_ref());
    let count = request.mutations.len();
    let description = format_args!("are {count}, of 1 to {MUTATIONS_MAX}");
    violations.check((1..=MUTATIONS_MAX).contains(&count), "mutations", description);
    let (mut targets, mut uploads) = (HashSet::new(), HashSet::new());
    let (mut size, mut terms) = (0, 0);
    for (index, mutation) in request.mutations.iter().enumerate().take(MUTATIONS_MAX) {
        let field = format_args!("mutations[{index}]");
        violations.mutation(field, mutation, body_bytes_max);
        if let Some(record) = &mutation.record {
            let fresh = targets.insert((&record.r#type, &record.id));
            violations.check(fresh, format_args!("{field}.record"), "is the target of an earlier mutation too");
        }
        if let Some(Operation::Put(put)) = &mutation.operation {
            size += put.body.len();
            terms += put.index_terms.len();
            if let Some(document) = &put.document {
                let fresh = uploads.insert(&document.upload_id);
                violations.check(fresh, format_args!("{field}.put.document"), "is an earlier mutation's too");
            }
        }
    }
    let description = format_args!("have bodies of more than {COMMIT_BYTES_MAX} bytes together");
    violations.check(size <= COMMIT_BYTES_MAX, "mutations", description);
    let description = format_args!("have more than {COMMIT_TERMS_MAX} index terms together");
    violations.check(terms <= COMMIT_TERMS_MAX, "mutations", description);
    violations.into_result()
}

/// Rows of a page.
pub fn page_size(asked: u32) -> Result<usize, GatewayError> {
    match asked as usize {
        0 => Ok(PAGE_ROWS_DEFAULT),
        size if size <= PAGE_ROWS_MAX => Ok(size),
        _ => Err(GatewayError::field("page_size", format!("is more than {PAGE_ROWS_MAX}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use charthold_proto::v1::{Check, Delete, DocumentRef, Precondition};

    use super::*;

    fn put(id: &str, body: usize) -> Mutation {
        Mutation {
            record: Some(RecordRef { r#type: "Observation".to_owned(), id: id.to_owned() }),
            precondition: None,
            operation: Some(Operation::Put(Put { body: vec![0; body].into(), ..Default::default() })),
        }
    }

    fn request(mutations: Vec<Mutation>) -> CommitRequest {
        CommitRequest {
            context: Some(RequestContext { actor: "dr".to_owned(), ..Default::default() }),
            request_id: String::new(),
            chart: Some(ChartRef { kind: ChartKind::Patient as i32, id: "p".to_owned() }),
            mutations,
        }
    }

    /// The fields that are refused.
    #[track_caller]
    fn check(request: CommitRequest, expected: &[&str]) {
        let found = match commit(&request, 1_000) {
            Ok(()) => Vec::new(),
            Err(GatewayError::Invalid(violations)) => violations.into_iter().map(|v| v.field).collect(),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn good_commits_pass() {
        check(request(vec![put("a", 1_000), put("b", 0)]), &[]);
        check(request((0..512).map(|i| put(&i.to_string(), 1)).collect()), &[]);
    }

    #[test]
    fn every_bad_field_is_named() {
        check(request(vec![]), &["mutations"]);
        check(request((0..513).map(|i| put(&i.to_string(), 1)).collect()), &["mutations"]);
        check(request(vec![put("a", 1_001)]), &["mutations[0].put.body"]);
        check(request(vec![put("a", 1), put("a", 1)]), &["mutations[1].record"]);
        check(request(vec![put("", 1)]), &["mutations[0].record.id"]);
        check(request(vec![put(&"x".repeat(129), 1)]), &["mutations[0].record.id"]);
        check(request(vec![put("a\u{1b}[31m", 1)]), &["mutations[0].record.id"]);
        let nothing = CommitRequest { context: None, chart: None, ..request(vec![put("a", 1)]) };
        check(nothing, &["context", "chart"]);
    }

    #[test]
    fn index_terms_are_few_and_short() {
        let with = |system: &str, value: &str, count: usize| {
            let term = IndexTerm { system: system.to_owned(), value: value.to_owned() };
            let put = Put { index_terms: vec![term; count], ..Default::default() };
            Mutation { operation: Some(Operation::Put(put)), ..put_of("a") }
        };
        let field = |name: &str| format!("mutations[0].put.index_terms{name}");
        check(request(vec![with(&"s".repeat(128), &"v".repeat(256), 8)]), &[]);
        check(request(vec![with("s", "v", 9)]), &[&field("")]);
        check(request(vec![with("", "", 1)]), &[&field("[0].system"), &field("[0].value")]);
        check(request(vec![with(&"s".repeat(129), &"v".repeat(257), 1)]), &[&field("[0].system"), &field("[0].value")]);
        check(request(vec![with("s", "v\n", 1)]), &[&field("[0].value")]);
        let many = (0..9).map(|number| Mutation { record: put_of(&number.to_string()).record, ..with("s", "v", 8) });
        check(request(many.collect()), &["mutations"]);
    }

    fn put_of(id: &str) -> Mutation {
        put(id, 1)
    }

    #[test]
    fn a_document_stands_alone_and_once() {
        let with = |id: &str, upload: &str, body: &'static [u8]| {
            let document = Some(DocumentRef { upload_id: upload.to_owned() });
            let put_document = Put { document, body: body.into(), ..Default::default() };
            Mutation { operation: Some(Operation::Put(put_document)), ..put(id, 1) }
        };
        let upload = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
        check(request(vec![with("a", upload, b"")]), &[]);
        check(request(vec![with("a", upload, b"x")]), &["mutations[0].put.body"]);
        check(request(vec![with("a", "x", b"")]), &["mutations[0].put.document.upload_id"]);
        check(request(vec![with("a", upload, b""), with("b", upload, b"")]), &["mutations[1].put.document"]);
    }

    #[test]
    fn parts_are_full_but_the_last() {
        let check = |part: u32, size: usize, last: bool, expected: &[&str]| {
            let whole = request(vec![]);
            let upload_id = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f".to_owned();
            let data = vec![0; size].into();
            let request = UploadPartRequest { context: whole.context, chart: whole.chart, upload_id, part, data, last };
            let found = match upload_part(&request, 10, 25) {
                Ok(_) => Vec::new(),
                Err(GatewayError::Invalid(violations)) => violations.into_iter().map(|v| v.field).collect(),
                Err(other) => panic!("{other}"),
            };
            assert_eq!(found, expected, "part {part} of {size} bytes");
        };
        check(0, 10, false, &[]);
        check(0, 0, true, &[]);
        check(2, 5, true, &[]);
        check(2, 6, true, &["part"]);
        check(2, 10, false, &["part"]);
        check(0, 9, false, &["data"]);
        check(0, 11, true, &["data"]);
    }

    #[test]
    fn operations_and_conditions_must_make_sense() {
        let with = |operation: Option<Operation>, condition: Option<Condition>| {
            let precondition = condition.map(|condition| Precondition { condition: Some(condition) });
            request(vec![Mutation { operation, precondition, ..put("a", 1) }])
        };
        check(with(None, None), &["mutations[0]"]);
        check(with(Some(Operation::Check(Check {})), None), &["mutations[0].precondition"]);
        check(with(Some(Operation::Check(Check {})), Some(Condition::Version(1))), &[]);
        let delete = || Some(Operation::Delete(Delete {}));
        check(with(delete(), Some(Condition::MustNotExist(true))), &["mutations[0].precondition"]);
        check(with(delete(), Some(Condition::Version(0))), &["mutations[0].precondition"]);
    }

    #[test]
    fn request_ids_are_uuids_of_version_7() {
        assert!(request_id("017f22e2-79b0-7cc3-98c4-dc0c0c07398f").is_ok());
        for bad in ["", "x", "2c1d43b8-e6d7-4dd0-9a0b-2d4b1d9f0f3c", "017f22e2-79b0-7cc3-98c4-dc0c0c07398"] {
            assert!(request_id(bad).is_err(), "{bad}");
        }
    }
}
