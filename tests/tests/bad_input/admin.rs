//! What operators and admins may not ask for.

use charthold_proto::v1;
use charthold_tests::harness::{CLUSTER, Cluster};
use prost::Message;
use tonic::Code;
use uuid::Uuid;

use super::wire::{Refusal, Wire};

fn context() -> Option<v1::RequestContext> {
    Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() })
}

fn long_context() -> Option<v1::RequestContext> {
    Some(v1::RequestContext { actor: "test".to_owned(), reason: "x".repeat(257), ..Default::default() })
}

fn create(name: &str) -> v1::CreateTenantRequest {
    v1::CreateTenantRequest { context: context(), request_id: Uuid::now_v7().to_string(), name: name.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_fields_of_tenants_and_grants_are_named() {
    let cluster = Cluster::start(1).await;
    let operator = Wire::connect(&cluster, 0, "operator");
    let request_id = || Uuid::now_v7().to_string();
    let principal = format!("spiffe://{CLUSTER}/tenant/{}/service/somebody", cluster.tenant());
    let of_no_tenant = principal.replace(cluster.tenant(), &"7".repeat(32));
    let add = v1::AddGrantRequest {
        context: context(),
        request_id: request_id(),
        principal: principal.clone(),
        roles: vec![v1::Role::Reader as i32],
    };
    let remove = v1::RemoveGrantRequest { context: context(), request_id: request_id(), principal };
    let list = v1::ListGrantsRequest { context: context(), ..Default::default() };
    let cases: [(&str, Vec<u8>, &str); 15] = [
        ("CreateTenant", create("").encode_to_vec(), "name"),
        ("CreateTenant", create(&"x".repeat(129)).encode_to_vec(), "name"),
        ("CreateTenant", create("a\u{1b}[2J").encode_to_vec(), "name"),
        ("CreateTenant", v1::CreateTenantRequest { context: None, ..create("a") }.encode_to_vec(), "context"),
        (
            "CreateTenant",
            v1::CreateTenantRequest { request_id: "x".into(), ..create("a") }.encode_to_vec(),
            "request_id",
        ),
        ("AddGrant", v1::AddGrantRequest { roles: vec![], ..add.clone() }.encode_to_vec(), "roles"),
        ("AddGrant", v1::AddGrantRequest { roles: vec![99], ..add.clone() }.encode_to_vec(), "roles"),
        ("AddGrant", v1::AddGrantRequest { principal: "ada".into(), ..add.clone() }.encode_to_vec(), "principal"),
        (
            "AddGrant",
            v1::AddGrantRequest { principal: of_no_tenant.clone(), ..add.clone() }.encode_to_vec(),
            "principal",
        ),
        ("AddGrant", v1::AddGrantRequest { request_id: String::new(), ..add.clone() }.encode_to_vec(), "request_id"),
        ("AddGrant", v1::AddGrantRequest { context: long_context(), ..add }.encode_to_vec(), "context.reason"),
        (
            "RemoveGrant",
            v1::RemoveGrantRequest { principal: of_no_tenant, ..remove.clone() }.encode_to_vec(),
            "principal",
        ),
        ("RemoveGrant", v1::RemoveGrantRequest { context: long_context(), ..remove }.encode_to_vec(), "context.reason"),
        (
            "ListGrants",
            v1::ListGrantsRequest { tenant_uid: "ada".into(), ..list.clone() }.encode_to_vec(),
            "tenant_uid",
        ),
        ("ListGrants", v1::ListGrantsRequest { page_token: "ada".into(), ..list }.encode_to_vec(), "page_token"),
    ];
    for (method, request, field) in cases {
        let answer = operator.call(&format!("charthold.v1.Tenants/{method}"), request.into()).await;
        let refusal = Refusal::of(&answer.err().unwrap_or_else(|| panic!("{method} {field} was done")));
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{refusal:?}");
        assert!(refusal.fields.iter().any(|(name, _)| name == field), "{method} {field}: {refusal:?}");
    }
    assert_eq!(cluster.operator().admin().list_tenants().await.unwrap().len(), 1, "none was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_made_once_for_one_request() {
    let cluster = Cluster::start(1).await;
    let operator = Wire::connect(&cluster, 0, "operator");
    let request = create("clinic");
    let make = async |request: &v1::CreateTenantRequest| {
        let made = operator.ask::<v1::CreateTenantResponse>("charthold.v1.Tenants/CreateTenant", request).await;
        made.map(|made| made.tenant.unwrap_or_default().uid).map_err(|status| Refusal::of(&status))
    };
    let uid = make(&request).await.unwrap();
    assert_eq!(make(&request).await.unwrap(), uid);
    let reused = make(&v1::CreateTenantRequest { name: "other".to_owned(), ..request }).await.unwrap_err();
    assert_eq!((reused.code, reused.reason.as_str()), (Code::InvalidArgument, "REQUEST_ID_REUSED"));
    let old =
        v1::CreateTenantRequest { request_id: "01800000-0000-7000-8000-000000000000".to_owned(), ..create("old") };
    let expired = make(&old).await.unwrap_err();
    assert_eq!((expired.code, expired.reason.as_str()), (Code::FailedPrecondition, "REQUEST_EXPIRED"));
    let names: Vec<_> =
        cluster.operator().admin().list_tenants().await.unwrap().into_iter().map(|tenant| tenant.name).collect();
    assert!(names.len() == 2 && names.contains(&"clinic".to_owned()), "{names:?}");
}
