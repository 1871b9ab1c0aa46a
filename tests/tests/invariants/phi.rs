//! Types that may hold something of a patient, or a key, cannot be printed or serialized by accident.

use std::collections::BTreeSet;
use std::marker::PhantomData;

use charthold::{fhir, seal};
use charthold_client as client;
use charthold_proto::{internal, v1};
use prost::Message;

use super::source::under;

/// Whether a type has a trait, asked of the compiler: the inherent constant is there only where the bound holds, and
/// comes before the trait's.
macro_rules! has {
    ($type:ty, $bound:path) => {{
        struct Asked<T>(PhantomData<T>);
        #[allow(dead_code)]
        trait Otherwise {
            const HAS: bool = false;
        }
        impl<T> Otherwise for Asked<T> {}
        #[allow(dead_code)]
        impl<T: $bound> Asked<T> {
            const HAS: bool = true;
        }
        <Asked<$type>>::HAS
    }};
}

macro_rules! assert_has_none {
    ([$($type:ty),+ $(,)?], $bounds:tt) => {$( assert_has_none!(@ $type, $bounds); )+};
    (@ $type:ty, [$($bound:path),+]) => {$(
        assert!(!has!($type, $bound), "{} has {}", stringify!($type), stringify!($bound));
    )+};
}

#[test]
fn the_question_is_answered_rightly() {
    assert!(has!(String, std::fmt::Display) && has!(String, serde::Serialize));
    assert!(!has!(Vec<u8>, std::fmt::Display) && !has!(std::thread::Thread, serde::Serialize));
}

/// The list below is of all messages of the API: one that is new has to be put into it.
macro_rules! public_messages {
    ($($name:ident),+ $(,)?) => {
        const PUBLIC_MESSAGES: &[&str] = &[$(stringify!($name)),+];
        #[test]
        fn messages_cannot_be_printed() {
            assert_has_none!([$(v1::$name),+], [std::fmt::Debug, std::fmt::Display, serde::Serialize]);
            assert_has_none!([v1::mutation::Operation], [std::fmt::Debug, std::fmt::Display, serde::Serialize]);
        }
    };
}

public_messages![
    AddGrantRequest,
    AddGrantResponse,
    AddNodeRequest,
    AddNodeResponse,
    AnswerContext,
    BatchGetRequest,
    BatchGetResponse,
    BatchGetResult,
    Certificate,
    ChartMatch,
    ChartRef,
    Check,
    CheckRowsRequest,
    CheckRowsResponse,
    CommitRequest,
    CommitResponse,
    CreateTenantRequest,
    CreateTenantResponse,
    Delete,
    DocumentRef,
    DrainNodeRequest,
    DrainNodeResponse,
    FindChartsRequest,
    FindChartsResponse,
    FollowerLag,
    Freshness,
    GetRequest,
    GetResponse,
    Grant,
    HistoryRequest,
    HistoryResponse,
    IndexTerm,
    InitRequest,
    InitResponse,
    LeaderHint,
    ListGrantsRequest,
    ListGrantsResponse,
    ListRequest,
    ListResponse,
    ListTenantsRequest,
    ListTenantsResponse,
    Mutation,
    NodeInfo,
    NodeStatus,
    PipelineRequest,
    PipelineResponse,
    PlaceShardsRequest,
    PlaceShardsResponse,
    PlanShardsRequest,
    PlanShardsResponse,
    PlannedShard,
    Precondition,
    Put,
    RaiseFormatRequest,
    RaiseFormatResponse,
    ReadChartRequest,
    ReadChartResponse,
    ReadDocumentRequest,
    ReadDocumentResponse,
    Record,
    RecordHeader,
    RecordRef,
    RemoveGrantRequest,
    RemoveGrantResponse,
    RemoveNodeRequest,
    RemoveNodeResponse,
    RequestContext,
    Root,
    RowsCheck,
    ShardPlacement,
    ShardSlots,
    ShardStatus,
    SlotRange,
    SplitShardRequest,
    SplitShardResponse,
    StatusRequest,
    StatusResponse,
    Tenant,
    TopologyRequest,
    TopologyResponse,
    UploadPartRequest,
    UploadPartResponse,
];

#[test]
fn no_message_of_the_api_is_left_out() {
    let described = prost_types::FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).unwrap();
    let ours = described.file.iter().filter(|file| file.package() == "charthold.v1");
    let names: BTreeSet<&str> = ours.flat_map(|file| file.message_type.iter().map(|message| message.name())).collect();
    assert_eq!(names, PUBLIC_MESSAGES.iter().copied().collect());
}

/// What is inside envelopes, and what carries keys and envelopes.
#[test]
fn the_insides_of_envelopes_cannot_be_printed() {
    assert_has_none!(
        [
            internal::ClearHeader,
            internal::ClearContext,
            internal::ClearGrant,
            internal::ClearIndexTerm,
            internal::AuditEvent,
            internal::AuditedMutation,
            internal::PageToken,
            internal::Commit,
            internal::Mutation,
            internal::PutPart,
            internal::PartRow,
            internal::PutTenant,
            internal::EnsureChartKey,
        ],
        [std::fmt::Debug, std::fmt::Display, serde::Serialize]
    );
}

/// `Debug` they have, in their own words (see below): the rest they must not have.
#[test]
fn keys_clear_text_and_records_cannot_be_shown_or_serialized() {
    assert_has_none!(
        [
            seal::Clear,
            seal::Key,
            seal::RootKey,
            seal::TenantKeys,
            seal::ChartKeyCache,
            fhir::Entry,
            fhir::Bundle,
            fhir::ChartName,
            client::Chart,
            client::RecordId,
            client::RequestContext,
            client::Put,
            client::Mutation,
            client::Header,
            client::ListQuery,
            client::FindQuery,
            client::IndexTerm,
            client::Match,
            fhir::Identifier,
            client::Record,
            client::Page<client::Record>,
        ],
        [std::fmt::Display, serde::Serialize]
    );
    assert_has_none!([seal::Key, seal::RootKey, seal::TenantKeys, seal::Clear], [PartialEq, Into<Vec<u8>>]);
}

/// One word for whatever must not come out.
const CANARY: &str = "Quillfeather";

#[track_caller]
fn is_silent(shown: &dyn std::fmt::Debug) {
    for text in [format!("{shown:?}"), format!("{shown:#?}")] {
        let numbers = format!("{:?}", CANARY.as_bytes());
        let numbers = numbers.trim_matches(['[', ']']);
        assert!(!text.contains(CANARY) && !text.contains(numbers), "{text}");
        assert!(!text.replace([' ', '\n'], "").contains(&numbers.replace(' ', "")), "{text}");
    }
}

#[test]
fn debug_of_the_clients_types_tells_nothing() {
    let word = || CANARY.to_owned();
    let chart = client::Chart::patient(CANARY);
    let id = client::RecordId::new(CANARY, CANARY);
    let put = client::Put {
        clinical_date: word(),
        status: word(),
        author: word(),
        labels: vec![word()],
        ..client::Put::new(CANARY, CANARY)
    };
    let put = put.with_index_term(CANARY, CANARY);
    let header = client::Header {
        record: id.clone(),
        version: 1,
        deleted: false,
        content_type: word(),
        clinical_date: word(),
        status: word(),
        author: word(),
        labels: vec![word()],
        index_terms: vec![client::IndexTerm::new(CANARY, CANARY)],
        length_bytes: 7,
        committed_at: None,
        document: false,
    };
    let record = client::Record { header: header.clone(), body: CANARY.into() };
    let context = client::RequestContext {
        on_behalf_of: word(),
        purpose_of_use: word(),
        reason: word(),
        session: word(),
        device: word(),
        origin: word(),
        ..client::RequestContext::new(CANARY)
    };
    is_silent(&(&chart, &id, &put, &header, &record, &context));
    is_silent(&client::Mutation::put(id, put));
    is_silent(&client::FindQuery::new(CANARY, CANARY).of_type(CANARY));
    is_silent(&client::IndexTerm::new(CANARY, CANARY));
    is_silent(&client::Match { chart: chart.clone(), record: client::RecordId::new(CANARY, CANARY), version: 1 });
    is_silent(&client::ListQuery::of_type(CANARY).from(CANARY).until(CANARY).with_status(CANARY));
    is_silent(&Some(client::Page { items: vec![record], next: None, position: String::new() }));
}

#[test]
fn debug_of_what_seals_tells_nothing() {
    let key_bytes: [u8; 32] = *b"Quillfeather Quillfeather Quillf";
    let key = seal::Key::from_bytes(&key_bytes);
    is_silent(&seal::Clear::from(CANARY.as_bytes().to_vec()));
    is_silent(&key);
    is_silent(&seal::RootKey::new(key));
    is_silent(&seal::TenantKeys::generate([7; 16]));
    assert!(!format!("{:?}", seal::TenantKeys::generate([7; 16])).contains(", "), "it lists something");
}

#[test]
fn debug_of_what_is_imported_tells_nothing() {
    let text = format!(
        r#"{{"resourceType":"Bundle","entry":[{{"resource":{{"resourceType":"Patient","id":"{CANARY}","name":"{CANARY}"}}}}]}}"#
    );
    let bundle = fhir::read_bundle(text.as_bytes()).unwrap();
    is_silent(&bundle);
    is_silent(&bundle.entries[0].chart);
    for broken in [text.replace(']', "}"), text.replace("Bundle", CANARY), text.replace("\"id\"", "\"is\"")] {
        let error = fhir::read_bundle(broken.as_bytes()).unwrap_err();
        is_silent(&error);
        is_silent(&error.to_string());
    }
}

/// The gateway's own types hold requests; each derived `Debug` there is looked at once and written down here.
#[test]
fn the_gateway_derives_debug_only_where_it_was_looked_at() {
    let looked_at = ["pub enum GatewayError", "pub struct RootKeyMismatch"];
    let mut found = Vec::new();
    for source in under("node/src/gateway") {
        let lines: Vec<&str> = source.code.lines().map(str::trim).collect();
        for (index, _) in lines.iter().enumerate().filter(|(_, it)| it.starts_with("#[derive(") && it.contains("Debug"))
        {
            let item = lines[index + 1..].iter().find(|line| !line.starts_with("#[")).unwrap();
            found.push((source.path.clone(), item.split(['(', '{', '<']).next().unwrap().trim().to_owned()));
        }
    }
    let unknown: Vec<_> = found.iter().filter(|(_, item)| !looked_at.contains(&item.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(found.len(), looked_at.len());
}
