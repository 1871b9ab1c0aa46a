//! A node that cannot serve says so to whoever asks `grpc.health.v1`: a load balancer, a probe.

use charthold_tests::harness::{Cluster, Options, until};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::wire::Wire;

async fn wait_for(wire: &Wire, service: &str, wanted: ServingStatus) {
    until(&format!("\"{service}\" is {wanted:?}"), || async {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = wire.ask::<HealthCheckResponse>("grpc.health.v1.Health/Check", &request).await;
        let found = answer.map_err(|status| status.to_string())?.status();
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serving_means_that_a_majority_answers() {
    let mut cluster = Cluster::prepare(Options::default());
    cluster.restart_all();
    let wire = Wire::connect(&cluster, 0, "operator");
    wait_for(&wire, "charthold.v1.Cluster", ServingStatus::Serving).await;
    wait_for(&wire, "", ServingStatus::NotServing).await;
    cluster.initialize().await;
    for service in ["", "charthold.v1.Charts", "charthold.v1.Tenants"] {
        wait_for(&wire, service, ServingStatus::Serving).await;
    }
    // One of three is not missed; two are, though this node still knows who led.
    cluster.kill(1);
    wait_for(&wire, "", ServingStatus::Serving).await;
    cluster.kill(2);
    wait_for(&wire, "", ServingStatus::NotServing).await;
    wait_for(&wire, "charthold.v1.Charts", ServingStatus::NotServing).await;
    cluster.restart(1);
    wait_for(&wire, "", ServingStatus::Serving).await;
}
