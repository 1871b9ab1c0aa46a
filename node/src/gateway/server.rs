//! The gRPC services of the client port, with health and reflection. How connections are served is in [`connections`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use charthold_proto::v1::FILE_DESCRIPTOR_SET;
use charthold_proto::v1::charts_server::ChartsServer;
use charthold_proto::v1::cluster_server::ClusterServer;
use charthold_proto::v1::tenants_server::TenantsServer;
use charthold_replica::{DIRECTORY, all_shards};
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tower::ServiceBuilder;
use tower::util::MapResponseLayer;

use super::Gateway;
use super::admission::AdmissionLayer;
use super::charts::ChartsService;
use super::cluster::ClusterService;
use super::connections;
use super::malformed;
use super::tenants::TenantsService;
use crate::tls::ServiceListener;

const MESSAGE_BYTES_MAX: usize = 8 << 20;
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
const HEALTH_BARRIER_MAX: Duration = Duration::from_secs(2);

/// Serves until `stop` is done, then lets running calls end.
pub async fn serve(gateway: Arc<Gateway>, listener: ServiceListener, stop: impl Future<Output = ()>) {
    let (health, health_service) = tonic_health::server::health_reporter();
    let watch = tokio::spawn(report_health(Arc::clone(&gateway), health));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("invariant: the descriptors were compiled with the crate");
    let mut services = Routes::builder();
    services
        .add_service(health_service)
        .add_service(reflection)
        .add_service(limited_charts(&gateway))
        .add_service(TenantsServer::new(TenantsService(Arc::clone(&gateway))))
        .add_service(ClusterServer::new(ClusterService(gateway)));
    let service = ServiceBuilder::new()
        .layer(MapResponseLayer::new(malformed::explain))
        .layer(AdmissionLayer::default())
        .service(services.routes().prepare());
    connections::serve(listener, service, stop).await;
    watch.abort();
}

fn limited_charts(gateway: &Arc<Gateway>) -> ChartsServer<ChartsService> {
    ChartsServer::new(ChartsService(Arc::clone(gateway)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Serving means: the cluster is initialized, its root key is ours, and every shard just answered a read barrier.
async fn report_health(gateway: Arc<Gateway>, health: tonic_health::server::HealthReporter) {
    health.set_service_status("charthold.v1.Cluster", ServingStatus::Serving).await;
    loop {
        let began = Instant::now();
        let barriers = all_shards().map(|shard| gateway.replica.barrier(shard, began + HEALTH_BARRIER_MAX));
        let passed = futures::future::join_all(barriers).await;
        if passed[usize::from(DIRECTORY)].is_ok() {
            gateway.access.note_current(began);
        }
        let keyed = matches!(gateway.check_root_key(), Ok(Some(())));
        let serves = keyed && passed.iter().all(Result::is_ok);
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", "charthold.v1.Charts", "charthold.v1.Tenants"] {
            health.set_service_status(service, status).await;
        }
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}
