//! Files that change: lists of what is revoked, authorities that come and go, and connections that were open before.

use super::*;

impl Cluster {
    /// Makes or renews the lists, with these revoked. Gives the files with their list.
    fn listed(&self, files: &TlsFiles, kind: &str, revoked: &[PathBuf]) -> TlsFiles {
        self.authority.revoke(&self.path("ca"), revoked).unwrap();
        TlsFiles { crl: Some(self.path("ca").join(format!("{kind}.crl"))), ..files.clone() }
    }
}

/// The other end finds its connection cut.
async fn is_cut(stream: &mut (impl AsyncReadExt + Unpin)) {
    assert!(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_revoked_client_is_cut_and_refused() {
    let cluster = Cluster::new("c1");
    let service = cluster.listed(&TlsFiles::in_folder(&cluster.node("a1"), "service"), "service", &[]);
    let mut listener = ServiceListener::bind(ANY_PORT, &service, ServiceLimits::default()).unwrap();
    let (address, certificates) = (listener.local_address(), listener.certificates());
    let ada = cluster.operator(Validity::default());
    let bob = cluster.path("bob");
    cluster.authority.operator("bob", &bob, Validity::default()).unwrap();
    let bob = client_files(&bob);
    let (client, open) = tokio::join!(connect(address, Some(&ada), b"h2"), listener.next());
    let (_client, open) = (client.unwrap(), open.unwrap());
    let (client, open_too) = tokio::join!(connect(address, Some(&bob), b"h2"), listener.next());
    let (mut other, mut open_too) = (client.unwrap(), open_too.unwrap());

    cluster.listed(&service, "service", std::slice::from_ref(&ada.cert));
    let reloaded = certificates.reload(&service).unwrap();
    assert_eq!(reloaded, Reloaded { certificate_changed: false, cut: 1 });
    tokio::time::timeout(PATIENCE, open.ending().cut()).await.unwrap();
    let mut open = open;
    is_cut(&mut open).await;
    assert!(refused(address, Some(&ada), b"h2").await);
    other.write_all(b"x").await.unwrap();
    other.flush().await.unwrap();
    assert_eq!(open_too.read_u8().await.unwrap(), b'x', "bob's is as open as before");
    check_in(&mut listener, &bob).await;
    // Renewed without a name: what was revoked stays so.
    cluster.listed(&service, "service", &[]);
    assert_eq!(certificates.reload(&service).unwrap().cut, 0, "told once");
    assert!(refused(address, Some(&ada), b"h2").await);
}

#[tokio::test]
async fn a_revoked_peer_is_refused_in_both_directions() {
    let cluster = Cluster::new("c1");
    let files = cluster.listed(&TlsFiles::in_folder(&cluster.node("a1"), "peer"), "peer", &[]);
    let (a, b) = (PeerTransport::bind(ANY_PORT, &files).unwrap(), cluster.peer("b1"));
    let to = |peer: &PeerTransport| peer.local_address().to_string();
    check_meet(&a, &b).await;
    let (dialled, accepted) = tokio::join!(a.dial(to(&b)), b.accept());
    let (called, caller) = tokio::join!(a.accept(), b.dial(to(&a)));
    cluster.listed(&files, "peer", &[cluster.path("b1").join("peer.crt")]);
    assert_eq!(a.reload(&files).unwrap(), Reloaded { certificate_changed: false, cut: 2 });
    for mut stream in [dialled.unwrap().0, called.unwrap().0] {
        is_cut(&mut stream).await;
    }
    drop((accepted, caller));
    assert!(a.dial(to(&b)).await.is_err());
    assert!(
        refused(a.local_address(), Some(&TlsFiles::in_folder(&cluster.path("b1"), "peer")), b"charthold-peer/1").await
    );
    assert!(!a.condition().revoked && a.condition().lists_due_at.is_some());

    // A list that names the node itself counts for the others all the same.
    cluster.listed(&files, "peer", std::slice::from_ref(&files.cert));
    a.reload(&files).unwrap();
    assert!(a.condition().revoked);
}

#[tokio::test]
async fn another_certificate_outdates_what_is_open() {
    let cluster = Cluster::new("c1");
    let mut listener = cluster.listener(ServiceLimits::default());
    let (a, b) = (cluster.peer("n1"), cluster.peer("n2"));
    let (address, certificates) = (listener.local_address(), listener.certificates());
    let client = cluster.operator(Validity::default());
    let (_client, open) = tokio::join!(connect(address, Some(&client), b"h2"), listener.next());
    let open = open.unwrap();
    let (dialled, accepted) = tokio::join!(a.dial(b.local_address().to_string()), b.accept());
    let renewed =
        Cluster { folder: tempfile::tempdir().unwrap(), authority: Authority::load(&cluster.path("ca")).unwrap() };
    let same = certificates.reload(&TlsFiles::in_folder(&cluster.path("a1"), "service")).unwrap();
    assert_eq!(same, Reloaded { certificate_changed: false, cut: 0 });
    let changed = certificates.reload(&TlsFiles::in_folder(&renewed.node("a1"), "service")).unwrap();
    assert_eq!(changed, Reloaded { certificate_changed: true, cut: 0 });
    tokio::time::timeout(PATIENCE, open.ending().outdated()).await.unwrap();
    assert!(!open.ending().cut.is_cancelled());
    assert!(a.reload(&TlsFiles::in_folder(&renewed.node("n1"), "peer")).unwrap().certificate_changed);
    is_cut(&mut dialled.unwrap().0).await;
    drop(accepted);
    check_meet(&a, &b).await;
}

#[tokio::test]
async fn authorities_overlap_and_the_old_one_goes() {
    let (old, new) = (Cluster::new("c1"), Cluster::new("c1"));
    let files = TlsFiles::in_folder(&old.node("a1"), "service");
    let mut listener = ServiceListener::bind(ANY_PORT, &files, ServiceLimits::default()).unwrap();
    let (address, certificates) = (listener.local_address(), listener.certificates());
    let (before, after) = (old.operator(Validity::default()), new.operator(Validity::default()));
    let read = |cluster: &Cluster| std::fs::read(cluster.path("ca").join("service-ca.crt")).unwrap();
    assert!(refused(address, Some(&after), b"h2").await);

    std::fs::write(&files.ca, [read(&old), read(&new)].concat()).unwrap();
    certificates.reload(&files).unwrap();
    let (_client, open) = tokio::join!(connect(address, Some(&before), b"h2"), listener.next());
    check_in(&mut listener, &after).await;
    // Half of a change: the old authority is gone, and the own certificate still of it.
    std::fs::write(&files.ca, read(&new)).unwrap();
    assert!(matches!(certificates.reload(&files), Err(TlsError::Refused { .. })));
    check_in(&mut listener, &before).await;
    let own = TlsFiles { ca: files.ca.clone(), ..TlsFiles::in_folder(&new.node("a1"), "service") };
    assert_eq!(certificates.reload(&own).unwrap(), Reloaded { certificate_changed: true, cut: 1 });
    is_cut(&mut open.unwrap()).await;
    assert!(refused(address, Some(&before), b"h2").await);
    check_in(&mut listener, &after).await;
}

#[tokio::test]
async fn what_expires_is_cut_when_it_is_looked_at() {
    let cluster = Cluster::new("c1");
    let mut listener = cluster.listener(ServiceLimits::default());
    let (address, certificates) = (listener.local_address(), listener.certificates());
    let soon = SystemTime::now() + Duration::from_secs(3);
    let files = cluster.operator(Validity { not_before: SystemTime::now() - PATIENCE, not_after: soon });
    let (_client, open) = tokio::join!(connect(address, Some(&files), b"h2"), listener.next());
    let expires = async {
        while certificates.recheck() == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, expires).await.unwrap();
    is_cut(&mut open.unwrap()).await;
    assert!(SystemTime::now() >= soon);
}

#[test]
fn lists_that_say_nothing_of_an_authority_are_refused() {
    let (cluster, other) = (Cluster::new("c1"), Cluster::new("c1"));
    let files = cluster.listed(&TlsFiles::in_folder(&cluster.node("a1"), "peer"), "peer", &[]);
    files.load().unwrap();
    other.authority.revoke(&other.path("ca"), &[]).unwrap();
    let others = TlsFiles { crl: Some(other.path("ca").join("peer.crl")), ..files.clone() };
    assert!(matches!(others.load().map(drop), Err(TlsError::ListMissing { .. })));
    // Two authorities, two lists.
    let read = |cluster: &Cluster, file: &str| std::fs::read(cluster.path("ca").join(file)).unwrap();
    std::fs::write(&files.ca, [read(&cluster, "peer-ca.crt"), read(&other, "peer-ca.crt")].concat()).unwrap();
    assert!(matches!(files.load().map(drop), Err(TlsError::ListMissing { .. })));
    let both = cluster.path("both.crl");
    std::fs::write(&both, [read(&other, "peer.crl"), read(&cluster, "peer.crl")].concat()).unwrap();
    TlsFiles { crl: Some(both.clone()), ..files.clone() }.load().unwrap();
    std::fs::write(&both, "").unwrap();
    assert!(matches!(TlsFiles { crl: Some(both), ..files }.load().map(drop), Err(TlsError::Malformed { .. })));
}
