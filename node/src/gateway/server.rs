//! The gRPC services of the client port, with health and reflection. How connections are served is in [`connections`].

use std::sync::Arc;
use std::time::Duration;

use charthold_proto::v1::FILE_DESCRIPTOR_SET;
use charthold_proto::v1::charts_server::ChartsServer;
use charthold_proto::v1::cluster_server::ClusterServer;
use charthold_proto::v1::tenants_server::TenantsServer;
use charthold_replica::{DIRECTORY, all_shards};
use tokio::time::Instant;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceBuilder;
use tower::util::MapResponseLayer;

use super::Gateway;
use super::admission::AdmissionLayer;
use super::charts::ChartsService;
use super::cluster::ClusterService;
use super::connections;
use super::malformed;
use super::observe::Observe;
use super::pipeline::{Direct, Pipelines};
use super::tenants::TenantsService;
use crate::health::{self, Health};
use crate::telemetry::sampling::Sampler;
use crate::tls::ServiceListener;

/// The protocol's limit.
pub(super) const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Of which health is told, one by one; "" is the node as a whole.
const SERVICES: [&str; 4] = ["", CLUSTER_SERVICE, "charthold.v1.Charts", "charthold.v1.Tenants"];
const CLUSTER_SERVICE: &str = "charthold.v1.Cluster";
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
const HEALTH_BARRIER_MAX: Duration = Duration::from_secs(2);

/// Serves until `stop` is done, then lets running calls end.
pub async fn serve(
    gateway: Arc<Gateway>,
    health: Arc<Health>,
    sampler: Sampler,
    requests_bytes_max: u64,
    listener: ServiceListener,
    stop: impl Future<Output = ()>,
) {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let checks = tokio::spawn(check_health(Arc::clone(&gateway), Arc::clone(&health)));
    // Before the first call: the library's default is "serving".
    report(&health, &reporter).await;
    let mut leaving = reporter.clone();
    let reports = tokio::spawn(keep_reporting(health, reporter));
    // Who watches the health of a node that ends is told so by the end of the stream; it would hold up the end else.
    let stop = async move {
        stop.await;
        for service in SERVICES {
            leaving.clear_service_status(service).await;
        }
    };
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("invariant: the descriptors were compiled with the crate");
    let (pipelines, admission) = (Pipelines::default(), AdmissionLayer::new(requests_bytes_max));
    let charts = ChartsService(Arc::clone(&gateway), pipelines.clone());
    let mut services = Routes::builder();
    services
        .add_service(health_service)
        .add_service(reflection)
        .add_service(limited(charts.clone()))
        .add_service(TenantsServer::new(TenantsService(Arc::clone(&gateway))))
        .add_service(ClusterServer::new(ClusterService(gateway)));
    // What every call passes, however it came.
    let layers = ServiceBuilder::new()
        .layer(Observe(sampler))
        .layer(MapResponseLayer::new(malformed::explain))
        .layer(admission.clone());
    let service = layers.clone().service(services.routes().prepare());
    pipelines.lead_to(&layers.service(Direct(charts)), admission);
    connections::serve(listener, service, stop).await;
    pipelines.end();
    checks.abort();
    reports.abort();
}

fn limited(charts: ChartsService) -> ChartsServer<ChartsService> {
    ChartsServer::new(charts).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Ready means: nothing is wrong with this node, the cluster is initialized, its root key is ours, and every shard just
/// answered a read barrier.
async fn check_health(gateway: Arc<Gateway>, health: Arc<Health>) {
    loop {
        let began = Instant::now();
        let barriers = all_shards().map(|shard| gateway.replica.check_barrier(shard, began + HEALTH_BARRIER_MAX));
        let passed = futures::future::join_all(barriers).await;
        if passed[usize::from(DIRECTORY)].is_ok() {
            gateway.access.note_current(began);
        }
        let failed = all_shards().zip(&passed).find_map(|(shard, passed)| Some((shard, passed.as_ref().err()?)));
        health.set(match (health::obstacle(&gateway.replica), gateway.check_root_key(), failed) {
            (Some(obstacle), _, _) => Err(obstacle),
            (_, Err(mismatch), _) => Err(mismatch.to_string()),
            (_, Ok(None), _) if gateway.replica.members().is_empty() => {
                Err("the cluster is not initialized".to_owned())
            }
            (_, _, Some((shard, error))) => Err(format!("shard {shard}: {error}")),
            (_, Ok(None), _) => Err("the cluster is not initialized".to_owned()),
            (_, Ok(Some(())), None) => match gateway.replica.shard_to_be_opened() {
                Some(shard) => Err(format!("shard {shard} does not hold its slots yet")),
                None => Ok(()),
            },
        });
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}

/// Tells it by `grpc.health.v1`, at once when it changes.
async fn keep_reporting(health: Arc<Health>, reporter: HealthReporter) {
    loop {
        let changed = health.changed();
        report(&health, &reporter).await;
        changed.await;
    }
}

/// The cluster's own service works on a node that is not ready, so that it can be found out why; not on one that stops.
async fn report(health: &Health, reporter: &HealthReporter) {
    let ready = health.ready().is_ok();
    for service in SERVICES {
        let serves = if service == CLUSTER_SERVICE { !health.is_draining() } else { ready };
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status(service, status).await;
    }
}
