//! A node that cannot serve says so to whoever asks `grpc.health.v1`: a load balancer, a probe.

use bytes::Bytes;
use charthold_tests::harness::{Cluster, Options, until};
use prost::Message as _;
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

/// Whoever watches hears of a stop first; then calls end, then the process. Nobody who only watches holds it up.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_says_so_before_its_port_closes() {
    let mut cluster = Cluster::start(3).await;
    let wire = Wire::connect(&cluster, 0, "client");
    let services = ["", "charthold.v1.Charts", "charthold.v1.Tenants", "charthold.v1.Cluster"];
    let mut watches = Vec::new();
    for service in services {
        wait_for(&wire, service, ServingStatus::Serving).await;
        let request = HealthCheckRequest { service: service.to_owned() }.encode_to_vec().into();
        watches.push(wire.open("grpc.health.v1.Health/Watch", request).await.unwrap());
    }
    let mut statuses = Vec::new();
    for watch in &mut watches {
        statuses.push(status(&watch.message().await.unwrap().unwrap()));
    }
    assert_eq!(statuses, [ServingStatus::Serving; 4]);
    cluster.process(0).signal(rustix::process::Signal::TERM);
    for (service, watch) in services.into_iter().zip(&mut watches) {
        let answer = watch.message().await.unwrap().unwrap_or_else(|| panic!("\"{service}\" ended without a word"));
        assert_eq!(status(&answer), ServingStatus::NotServing, "\"{service}\"");
        // An end of the stream, or of the connection.
        assert!(!matches!(watch.message().await, Ok(Some(_))), "\"{service}\" goes on");
    }
    assert!(cluster.process(0).wait().success());
    let log = std::fs::read_to_string(cluster.log(0)).unwrap();
    assert!(!log.contains("some calls did not end in time"), "{log}");
}

fn status(answer: &Bytes) -> ServingStatus {
    HealthCheckResponse::decode(answer.clone()).unwrap().status()
}
