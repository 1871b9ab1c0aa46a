//! A certificate that is revoked counts no more within seconds: its connections are cut, streams too, and it makes no
//! others. Nobody else notices, and no node is told.

use std::path::Path;

use charthold_client::{Chart, Client, Error, Put, RecordId, Role};
use charthold_tests::harness::{Cluster, Options, until};

/// More than the windows and buffers of a stream hold, so that it is still open when its certificate is revoked.
const RECORDS: usize = 24;
const RECORD_BYTES: usize = 900_000;

/// Revocation lists are not in the harness's configuration: without them there is nothing to honour.
async fn start(sites: usize) -> Cluster {
    let mut cluster = Cluster::prepare(Options { sites, ..Options::default() });
    cluster.authority().revoke(&cluster.folder().join("authority"), &[]).unwrap();
    for node in 0..sites {
        let config = std::fs::read_to_string(cluster.config(node)).unwrap();
        let config = ["peer", "service"].into_iter().fold(config, |config, kind| {
            config.replace(&format!("{kind}.key\" }}"), &format!("{kind}.key\", crl = \"certs/{kind}.crl\" }}"))
        });
        std::fs::write(cluster.config(node), config).unwrap();
    }
    hand_out(&cluster);
    cluster.restart_all();
    cluster.initialize().await;
    cluster
}

fn hand_out(cluster: &Cluster) {
    for node in 0..cluster.size() {
        for list in ["peer.crl", "service.crl"] {
            let to = cluster.node_folder(node).join("certs").join(list);
            let new = to.with_extension("new");
            std::fs::copy(cluster.folder().join("authority").join(list), &new).unwrap();
            std::fs::rename(new, to).unwrap();
        }
    }
}

/// Through the command line, as an operator does.
async fn revoke(cluster: &Cluster, certificate: &Path) {
    let (authorities, certificate) = (cluster.folder().join("authority"), certificate.to_str().unwrap());
    cluster.cli(&["cert", "revoke", "--ca", authorities.to_str().unwrap(), "--cert", certificate]).await.ok();
    hand_out(cluster);
}

async fn get(client: &Client) -> Result<(), Error> {
    client.get(&Chart::patient("p1"), &RecordId::new("Note", "n1")).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_client_is_cut_and_others_go_on() {
    let cluster = start(1).await;
    let client = cluster.client();
    let chart = Chart::patient("p1");
    for number in 0..RECORDS {
        let (record, body) = (RecordId::new("Note", format!("n{number}")), vec![b'x'; RECORD_BYTES]);
        client.put(&chart, &record, Put::new("text/plain", body)).await.unwrap();
    }
    let stolen = cluster.service("stolen", &[Role::Reader]).await;
    let mut stream = stolen.read_chart(&chart).await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    get(&stolen).await.unwrap();

    revoke(&cluster, &cluster.folder().join("stolen/client.crt")).await;
    until("the revoked client is refused", || async {
        match get(&stolen).await {
            Err(Error::Unauthenticated { why }) if why.contains("Revoked") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let mut rest = Vec::new();
    while let Some(record) = stream.next().await {
        rest.push(record);
    }
    assert!(rest.last().is_some_and(Result::is_err), "the stream went on to its end");
    assert!(rest.len() < RECORDS, "most of the chart was not sent");
    get(&client).await.unwrap();
    client.put(&chart, &RecordId::new("Note", "n0"), Put::fhir("{}")).await.unwrap();

    // What was revoked stays so when the lists are renewed.
    let authorities = cluster.folder().join("authority");
    cluster.cli(&["cert", "revoke", "--ca", authorities.to_str().unwrap()]).await.ok();
    hand_out(&cluster);
    until("the lists are reloaded again", || async {
        let log = std::fs::read_to_string(cluster.log(0)).unwrap();
        let reloaded = log.lines().filter(|line| line.contains("certificates reloaded") && line.contains("service"));
        if reloaded.count() >= 2 { Ok(()) } else { Err(log) }
    })
    .await;
    assert!(matches!(get(&stolen).await, Err(Error::Unauthenticated { .. })));
    get(&client).await.unwrap();
}

/// The other two go on as a majority; the revoked one is let in nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_cut_off() {
    let cluster = start(3).await;
    let client = cluster.client();
    let (chart, record) = (Chart::patient("p1"), RecordId::new("Note", "n1"));
    client.put(&chart, &record, Put::fhir("{}")).await.unwrap();
    revoke(&cluster, &cluster.node_folder(2).join("certs/peer.crt")).await;
    until("both others refuse the node", || async {
        let log = std::fs::read_to_string(cluster.log(2)).unwrap();
        let own = log.contains("this node's own certificate is revoked");
        let refused = log.matches("cannot reach peer").count() >= 2;
        if own && refused { Ok(()) } else { Err(log) }
    })
    .await;
    for node in [0, 1] {
        let client = cluster.client_at(node);
        until("the others serve", || async {
            client.put(&chart, &record, Put::fhir("{}")).await.map_err(|e| e.to_string())
        })
        .await;
    }
    let alone = cluster.client_at(2).with_deadline(std::time::Duration::from_secs(3));
    until("the revoked node serves nobody", || async {
        match get(&alone).await {
            Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
