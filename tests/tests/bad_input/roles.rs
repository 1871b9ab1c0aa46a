//! Every method, asked by everybody: a method without a row in the table fails here.
//!
//! For a new method: a row in `TABLE`, and its request in `Everybody::request`. All that follows is by the table, also
//! what `tenants.rs` asks.

use std::collections::BTreeSet;

use bytes::Bytes;
use charthold::seal::Token;
use charthold::tls::{Principal, Validity};
use charthold_client::{Chart, Client, Put, RecordId, Role};
use charthold_proto::v1;
use charthold_tests::harness::{CLUSTER, Cluster};
use prost::Message;
use rcgen::ExtendedKeyUsagePurpose;
use tonic::Code;
use tonic::Code::{FailedPrecondition, InvalidArgument, NotFound, Ok as Done, PermissionDenied as No, Unavailable};
use uuid::Uuid;

use super::certificates::odd;
use super::wire::{Refusal, Wire};

/// Who asks, in the order of the table's columns.
pub const ROLES: [&str; 8] = [
    "nobody",       // a service of the tenant, without a grant
    "reader",       //
    "writer",       //
    "admin",        // TENANT_ADMIN alone
    "operator",     //
    "ungranted",    // an operator's certificate, without a grant
    "other",        // a service of another tenant, with all roles there
    "of-no-tenant", // of a tenant that does not exist
];

/// Who is nobody here, though the authority of the services signed for it: every method says so, whatever it is.
const STRANGERS: [(&str, &[&str]); 2] =
    [("foreign-operator", &["spiffe://elsewhere/operator/operator"]), ("unrecognised", &[])];

/// Stands in what the tenant keeps, and nowhere else.
pub const CANARY: &str = "CANARY-of-the-first-tenant";

/// What everybody is told. The other tenant's reader reads its own tenant's chart of the same name: nothing is there.
pub const TABLE: &[(&str, [Code; 8])] = &[
    ("charthold.v1.Charts/Commit", [No, No, Done, No, No, No, Done, No]),
    ("charthold.v1.Charts/Get", [No, Done, No, No, No, No, NotFound, No]),
    ("charthold.v1.Charts/BatchGet", [No, Done, No, No, No, No, Done, No]),
    ("charthold.v1.Charts/List", [No, Done, No, No, No, No, Done, No]),
    ("charthold.v1.Charts/History", [No, Done, No, No, No, No, NotFound, No]),
    ("charthold.v1.Charts/ReadChart", [No, Done, No, No, No, No, Done, No]),
    ("charthold.v1.Charts/FindCharts", [No, Done, No, No, No, No, Done, No]),
    ("charthold.v1.Charts/UploadPart", [No, No, Done, No, No, No, Done, No]),
    ("charthold.v1.Charts/ReadDocument", [No, Done, No, No, No, No, NotFound, No]),
    // The stream is anybody's who has a grant; each of its calls is judged by itself, see pipeline.rs.
    ("charthold.v1.Charts/Pipeline", [No, Done, Done, Done, Done, No, Done, No]),
    // Once it is initialized nobody's grant is looked at: there is nothing left to do for anybody.
    ("charthold.v1.Cluster/Init", [No, No, No, No, FailedPrecondition, FailedPrecondition, No, No]),
    ("charthold.v1.Cluster/Status", [No, No, No, No, Done, No, No, No]),
    ("charthold.v1.Cluster/Topology", [No, Done, Done, Done, Done, No, Done, No]),
    // Nobody listens there, and no node has that name.
    ("charthold.v1.Cluster/AddNode", [No, No, No, No, Unavailable, No, No, No]),
    ("charthold.v1.Cluster/RemoveNode", [No, No, No, No, InvalidArgument, No, No, No]),
    ("charthold.v1.Cluster/DrainNode", [No, No, No, No, Done, No, No, No]),
    ("charthold.v1.Cluster/SplitShard", [No, No, No, No, FailedPrecondition, No, No, No]),
    ("charthold.v1.Cluster/PlanShards", [No, No, No, No, Done, No, No, No]),
    ("charthold.v1.Cluster/PlaceShards", [No, No, No, No, Done, No, No, No]),
    ("charthold.v1.Cluster/CheckRows", [No, No, No, No, Done, No, No, No]),
    ("charthold.v1.Cluster/RaiseFormat", [No, No, No, No, Done, No, No, No]),
    ("charthold.v1.Tenants/CreateTenant", [No, No, No, No, Done, No, No, No]),
    ("charthold.v1.Tenants/ListTenants", [No, No, No, No, Done, No, No, No]),
    ("charthold.v1.Tenants/AddGrant", [No, No, No, Done, Done, No, No, No]),
    ("charthold.v1.Tenants/ListGrants", [No, No, No, Done, Done, No, No, No]),
    ("charthold.v1.Tenants/RemoveGrant", [No, No, No, Done, Done, No, No, No]),
];

#[test]
fn the_table_has_every_method() {
    let described = prost_types::FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = BTreeSet::new();
    for file in described.file.iter().filter(|file| file.package().starts_with("charthold")) {
        for service in &file.service {
            let name = |method: &prost_types::MethodDescriptorProto| {
                format!("{}.{}/{}", file.package(), service.name(), method.name())
            };
            methods.extend(service.method.iter().map(name));
        }
    }
    let rows: BTreeSet<String> = TABLE.iter().map(|(method, _)| (*method).to_owned()).collect();
    let (missing, gone): (Vec<_>, Vec<_>) = (methods.difference(&rows).collect(), rows.difference(&methods).collect());
    assert!(missing.is_empty(), "without a row in TABLE and a request in Everybody::request: {missing:?}");
    assert!(gone.is_empty(), "in TABLE, but no method: {gone:?}");
}

/// What a gateway serves, asked by reflection as any client may: nothing but what the table is of, health and
/// reflection itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_serves_what_the_table_is_of() {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Ask {
        #[prost(string, tag = "7")]
        list_services: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Answer {
        #[prost(message, optional, tag = "6")]
        services: Option<Services>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Services {
        #[prost(message, repeated, tag = "1")]
        service: Vec<Service>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Service {
        #[prost(string, tag = "1")]
        name: String,
    }
    let cluster = Cluster::start(1).await;
    let caller = Wire::connect(&cluster, 0, "client");
    let method = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let answers = caller.call(method, Ask { list_services: "*".to_owned() }.encode_to_vec().into()).await.unwrap();
    let services = Answer::decode(answers[0].clone()).unwrap().services.unwrap().service;
    let found: BTreeSet<&str> = services.iter().map(|service| service.name.as_str()).collect();
    let mut expected: BTreeSet<&str> = TABLE.iter().map(|(method, _)| method.split('/').next().unwrap()).collect();
    expected.extend(["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]);
    assert_eq!(found, expected);
}

/// A cluster of one node, a tenant that keeps a record, another tenant, and all of `ROLES`.
pub struct Everybody {
    pub cluster: Cluster,
    pub other_tenant: String,
    callers: Vec<Wire>,
}

impl Everybody {
    pub async fn start() -> Self {
        let cluster = Cluster::start(1).await;
        let chart = Chart::patient("p1");
        let kept = Put { author: CANARY.to_owned(), ..Put::new("text/plain", CANARY) };
        cluster.client().put(&chart, &RecordId::new("Note", "n1"), kept).await.unwrap();
        for (name, roles) in [
            ("nobody", &[][..]),
            ("reader", &[Role::Reader]),
            ("writer", &[Role::Writer]),
            ("admin", &[Role::TenantAdmin]),
        ] {
            cluster.service(name, roles).await;
        }
        let operator = cluster.operator().admin();
        let other_tenant = operator.create_tenant("other").await.unwrap().uid;
        let principal = issue(&cluster, "other", &other_tenant);
        operator.add_grant(&principal, &[Role::Reader, Role::Writer, Role::TenantAdmin]).await.unwrap();
        issue(&cluster, "of-no-tenant", &"7".repeat(32));
        cluster.authority().operator("ungranted", &cluster.folder().join("ungranted"), Validity::default()).unwrap();
        let callers = ROLES.iter().map(|role| Wire::connect(&cluster, 0, role)).collect();
        Self { cluster, other_tenant, callers }
    }

    pub fn caller(&self, role: &str) -> &Wire {
        &self.callers[ROLES.iter().position(|name| *name == role).unwrap()]
    }

    fn tenants_service(&self, name: &str) -> String {
        format!("spiffe://{CLUSTER}/tenant/{}/service/{name}", self.cluster.tenant())
    }

    /// A request that nothing but the caller's grants could be wrong with.
    pub fn request(&self, method: &str) -> Bytes {
        let context = Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() });
        let chart = Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: "p1".to_owned() });
        let record = Some(v1::RecordRef { r#type: "Note".to_owned(), id: "n1".to_owned() });
        let request_id = Uuid::now_v7().to_string();
        let principal = self.tenants_service("somebody");
        let put = v1::Put { content_type: "text/plain".to_owned(), body: "new".into(), ..Default::default() };
        let mutation = v1::Mutation {
            record: Some(v1::RecordRef { r#type: "Note".to_owned(), id: request_id.clone() }),
            precondition: None,
            operation: Some(v1::mutation::Operation::Put(put)),
        };
        let bytes = match method.split_once('/').unwrap().1 {
            "Commit" => v1::CommitRequest { context, request_id, chart, mutations: vec![mutation] }.encode_to_vec(),
            "Get" => v1::GetRequest { context, chart, record, ..Default::default() }.encode_to_vec(),
            "BatchGet" => {
                let records = record.into_iter().collect();
                v1::BatchGetRequest { context, chart, records, ..Default::default() }.encode_to_vec()
            }
            "List" => v1::ListRequest { context, chart, ..Default::default() }.encode_to_vec(),
            "History" => v1::HistoryRequest { context, chart, record, ..Default::default() }.encode_to_vec(),
            "ReadChart" => v1::ReadChartRequest { context, chart, ..Default::default() }.encode_to_vec(),
            "FindCharts" => {
                let term = Some(v1::IndexTerm { system: "mrn".to_owned(), value: "4711".to_owned() });
                v1::FindChartsRequest { context, term, ..Default::default() }.encode_to_vec()
            }
            "UploadPart" => {
                let (upload_id, data) = (request_id, "new".into());
                v1::UploadPartRequest { context, chart, upload_id, part: 0, data, last: true }.encode_to_vec()
            }
            "Pipeline" => {
                let call = v1::GetRequest { context, chart, record, ..Default::default() };
                let call = Some(v1::pipeline_request::Call::Get(call));
                v1::PipelineRequest { id: 1, call, ..Default::default() }.encode_to_vec()
            }
            "ReadDocument" => v1::ReadDocumentRequest { context, chart, record, ..Default::default() }.encode_to_vec(),
            "Init" => v1::InitRequest { context, expected_nodes: 1, shards: 0 }.encode_to_vec(),
            "Status" => v1::StatusRequest { context, all_nodes: true }.encode_to_vec(),
            "Topology" => v1::TopologyRequest { context }.encode_to_vec(),
            "AddNode" => {
                let peer_endpoint = "127.0.0.1:1".to_owned();
                v1::AddNodeRequest { context, request_id, peer_endpoint }.encode_to_vec()
            }
            "RemoveNode" => v1::RemoveNodeRequest { context, request_id, node: "z9".to_owned() }.encode_to_vec(),
            "DrainNode" => v1::DrainNodeRequest { context, node: "a1".to_owned(), undo: true }.encode_to_vec(),
            "SplitShard" => v1::SplitShardRequest { context, request_id, shard: 99 }.encode_to_vec(),
            "PlanShards" => v1::PlanShardsRequest { context, replicas: 0, leave_nodes: Vec::new() }.encode_to_vec(),
            "PlaceShards" => {
                v1::PlaceShardsRequest { context, request_id, placements: Vec::new(), replicas: 0 }.encode_to_vec()
            }
            "CheckRows" => v1::CheckRowsRequest { context, shard: 0 }.encode_to_vec(),
            "RaiseFormat" => v1::RaiseFormatRequest { context, request_id }.encode_to_vec(),
            "CreateTenant" => {
                v1::CreateTenantRequest { context, request_id, name: "one more".to_owned() }.encode_to_vec()
            }
            "ListTenants" => v1::ListTenantsRequest { context, ..Default::default() }.encode_to_vec(),
            "AddGrant" => {
                let roles = vec![v1::Role::Reader as i32];
                v1::AddGrantRequest { context, request_id, principal, roles }.encode_to_vec()
            }
            "ListGrants" => {
                let tenant_uid = self.cluster.tenant().to_owned();
                v1::ListGrantsRequest { context, tenant_uid, ..Default::default() }.encode_to_vec()
            }
            "RemoveGrant" => v1::RemoveGrantRequest { context, request_id, principal }.encode_to_vec(),
            other => panic!("no request of {other} here"),
        };
        bytes.into()
    }
}

/// A certificate of a tenant's service in a folder of the cluster's; gives the principal.
fn issue(cluster: &Cluster, name: &str, tenant: &str) -> String {
    let mut uid = Token::default();
    hex::decode_to_slice(tenant, &mut uid).unwrap();
    cluster.authority().service(&uid, name, &cluster.folder().join(name), Validity::default()).unwrap();
    Principal::service(CLUSTER, &uid, name).unwrap().uri()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_may_what_the_table_says_and_nothing_else() {
    let everybody = Everybody::start().await;
    let mut wrong = Vec::new();
    for (method, expected) in TABLE {
        for ((role, caller), expected) in ROLES.iter().zip(&everybody.callers).zip(expected) {
            let answer = caller.call(method, everybody.request(method)).await;
            let found = answer.as_ref().err().map_or(Done, tonic::Status::code);
            if found != *expected {
                wrong.push(format!("{method} by {role}: {found:?}, expected {expected:?}"));
            }
            if let (No, Err(status)) = (found, &answer) {
                let refusal = Refusal::of(status);
                // No word about whether there is such a chart, record or tenant.
                assert_eq!((refusal.reason.as_str(), refusal.message.as_str()), ("NO_GRANT", "no grant allows this"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let kept = everybody.cluster.client().get(&Chart::patient("p1"), &RecordId::new("Note", "n1")).await.unwrap();
    assert_eq!(kept.body.as_ref(), CANARY.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_refuses_who_is_no_principal_of_this_cluster() {
    let everybody = Everybody::start().await;
    for (name, uris) in STRANGERS {
        odd(&everybody.cluster, "service", name, uris, &[ExtendedKeyUsagePurpose::ClientAuth]);
        let caller = Wire::connect(&everybody.cluster, 0, name);
        for (method, _) in TABLE {
            let answer = caller.call(method, everybody.request(method)).await;
            let refusal = Refusal::of(&answer.err().unwrap_or_else(|| panic!("{method} by {name} was done")));
            let found = (refusal.code, refusal.reason.as_str());
            assert_eq!(found, (Code::Unauthenticated, "BAD_CERTIFICATE"), "{method} by {name}");
        }
    }
}

/// A denied call says the same whether there is something or not, and whether it makes sense or not.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_learns_nothing() {
    let everybody = Everybody::start().await;
    let nobody = everybody.caller("nobody");
    let chart = |id: &str| Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: id.to_owned() });
    let requests = [
        v1::GetRequest { chart: chart("p1"), ..Default::default() },
        v1::GetRequest { chart: chart("p2"), ..Default::default() },
        v1::GetRequest::default(),
    ];
    for request in requests {
        let status = nobody.ask::<v1::GetResponse>("charthold.v1.Charts/Get", &request).await.err().unwrap();
        assert_eq!((status.code(), status.message()), (No, "no grant allows this"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_learns_no_version() {
    let everybody = Everybody::start().await;
    let condition = |version| Some(v1::Precondition { condition: Some(v1::precondition::Condition::Version(version)) });
    let check = |precondition| v1::CommitRequest {
        context: Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() }),
        request_id: Uuid::now_v7().to_string(),
        chart: Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: "p1".to_owned() }),
        mutations: vec![v1::Mutation {
            record: Some(v1::RecordRef { r#type: "Note".to_owned(), id: "n1".to_owned() }),
            precondition,
            operation: Some(v1::mutation::Operation::Check(v1::Check {})),
        }],
    };
    let mismatch = async |caller: &Wire| {
        let answer = caller.ask::<v1::CommitResponse>("charthold.v1.Charts/Commit", &check(condition(9))).await;
        let status = answer.err().unwrap();
        let details = tonic_types::StatusExt::get_error_details(&status);
        assert_eq!(status.code(), Code::Aborted);
        details.error_info().unwrap().metadata.get("version").cloned()
    };
    assert_eq!(mismatch(everybody.caller("writer")).await, None, "a writer does not read");
    assert_eq!(mismatch(&Wire::connect(&everybody.cluster, 0, "client")).await.as_deref(), Some("1"));
}

/// A client under a certificate that has no profile.
pub fn client_of(cluster: &Cluster, folder: &str) -> Client {
    let folder = cluster.folder().join(folder);
    let profile = charthold_client::Profile {
        endpoints: vec![cluster.endpoint(0)],
        authority: folder.join("service-ca.crt"),
        certificate: folder.join("client.crt"),
        key: folder.join("client.key"),
        tenant: None,
    };
    Client::connect(&profile).unwrap().with_context(charthold_client::RequestContext::new("test"))
}

/// A grant that is taken away stops working, on every gateway, within seconds; an operator can be nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn grants_end_and_do_not_mix() {
    let everybody = Everybody::start().await;
    let cluster = &everybody.cluster;
    let operator = cluster.operator().admin();
    let reader = everybody.tenants_service("reader");
    operator.remove_grant(&reader).await.unwrap();
    charthold_tests::harness::until("the reader is denied", || async {
        let answer = everybody.caller("reader").call("charthold.v1.Charts/List", everybody.request("x/List")).await;
        answer.err().filter(|status| status.code() == No).map(|_| ()).ok_or_else(|| "still reads".to_owned())
    })
    .await;
    let operator_itself = format!("spiffe://{CLUSTER}/operator/operator");
    for (principal, role) in
        [(&operator_itself, Role::Reader), (&operator_itself, Role::Writer), (&reader, Role::Operator)]
    {
        let error = operator.add_grant(principal, &[role]).await.unwrap_err().to_string();
        assert!(error.contains("an operator can be OPERATOR only, and nobody else can"), "{error}");
    }
    let nonsense = ["", "ada", "spiffe://elsewhere/operator/ada", "charthold://test/node/a1/keyed"];
    for principal in nonsense {
        let error = operator.add_grant(principal, &[Role::Operator]).await.unwrap_err().to_string();
        assert!(error.contains("principal: is "), "{error}");
    }
}
