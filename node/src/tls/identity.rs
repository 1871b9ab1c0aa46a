//! The identity in a certificate: exactly one URI among its subject alternative names.
//!
//! ```text
//! charthold://<cluster>/node/<name>/keyed                 a node, in a certificate of the peer authority
//! charthold://<cluster>/node/<name>/keyless
//! spiffe://<cluster>/tenant/<32 hex>/service/<name>       a client, in a certificate of the service authority
//! spiffe://<cluster>/operator/<name>
//!
//! <cluster>   1 to 32 of a-z 0-9 . _ -, the first a letter or digit
//! <name>      1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit
//! <32 hex>    the tenant's uid in lower case
//! ```
//!
//! One identity has one spelling: no escapes, no alternative case, no ports, queries or trailing slashes. Grants are
//! found by a keyed hash of the URI, so a second spelling would be a second principal.
//!
//! Must not know: whether the certificate was verified. Callers hand in the end-entity certificate of a handshake that
//! succeeded (or is being verified), nothing else.

use std::fmt;

use charthold_replica::peer::transport::PeerIdentity;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::seal::Token;

/// Keeps an authority's common name ("charthold … service authority") within X.520's 64 characters.
pub const CLUSTER_NAME_BYTES_MAX: usize = 32;
pub const NAME_BYTES_MAX: usize = 64;

const PEER_SCHEME: &str = "charthold://";
const PRINCIPAL_SCHEME: &str = "spiffe://";

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate cannot be parsed")]
    Certificate,
    #[error("the certificate carries no URI as subject alternative name")]
    NoUri,
    #[error("the certificate carries more than one URI as subject alternative name")]
    ManyUris,
    #[error("the certificate's URI is not charthold://<cluster>/node/<name>/keyed or …/keyless")]
    NotPeer,
    #[error(
        "the certificate's URI is not spiffe://<cluster>/tenant/<32 hex>/service/<name> or \
         spiffe://<cluster>/operator/<name>"
    )]
    NotPrincipal,
    #[error("a peer certificate must be valid for server and for client authentication")]
    NotForPeers,
    #[error("the certificate belongs to another cluster")]
    OtherCluster,
    #[error("a cluster name is 1 to 32 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit")]
    ClusterName,
    #[error("a name is 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-', beginning with a letter or digit")]
    Name,
}

/// A client, as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    Service { cluster: String, tenant: Token, name: String },
    Operator { cluster: String, name: String },
}

impl Principal {
    pub fn service(cluster: &str, tenant: &Token, name: &str) -> Result<Self, IdentityError> {
        let (cluster, name) = (check_cluster(cluster)?, check_name(name)?);
        Ok(Self::Service { cluster: cluster.into(), tenant: *tenant, name: name.into() })
    }

    pub fn operator(cluster: &str, name: &str) -> Result<Self, IdentityError> {
        let (cluster, name) = (check_cluster(cluster)?, check_name(name)?);
        Ok(Self::Operator { cluster: cluster.into(), name: name.into() })
    }

    pub fn parse(uri: &str) -> Result<Self, IdentityError> {
        let rest = uri.strip_prefix(PRINCIPAL_SCHEME).ok_or(IdentityError::NotPrincipal)?;
        let parts: Vec<&str> = rest.splitn(6, '/').collect();
        match parts[..] {
            [cluster, "tenant", tenant, "service", name] => {
                let tenant = parse_tenant(tenant).ok_or(IdentityError::NotPrincipal)?;
                Self::service(cluster, &tenant, name)
            }
            [cluster, "operator", name] => Self::operator(cluster, name),
            _ => Err(IdentityError::NotPrincipal),
        }
        .map_err(|_| IdentityError::NotPrincipal)
    }

    pub fn uri(&self) -> String {
        match self {
            Self::Service { cluster, tenant, name } => {
                format!("{PRINCIPAL_SCHEME}{cluster}/tenant/{}/service/{name}", hex::encode(tenant))
            }
            Self::Operator { cluster, name } => format!("{PRINCIPAL_SCHEME}{cluster}/operator/{name}"),
        }
    }

    pub fn cluster(&self) -> &str {
        match self {
            Self::Service { cluster, .. } | Self::Operator { cluster, .. } => cluster,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri())
    }
}

/// What the service port knows of a client: its certificate is from the service authority, and may name a principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientIdentity {
    Known(Principal),
    /// Connected, so that the gateway can say in plain words why no request is served.
    Unrecognized,
}

impl ClientIdentity {
    pub(super) fn of_certificate(der: &[u8]) -> Self {
        with_single_uri(der, |_, uri| Principal::parse(uri)).map_or(Self::Unrecognized, Self::Known)
    }
}

/// The node that a peer certificate names.
pub(super) fn peer_of_certificate(der: &[u8]) -> Result<PeerIdentity, IdentityError> {
    with_single_uri(der, |certificate, uri| {
        let usage = certificate.extended_key_usage().map_err(|_| IdentityError::Certificate)?;
        // The chain check lets a certificate without any extended key usage pass; peers are both sides, and say so.
        match usage {
            Some(usage) if usage.value.client_auth && usage.value.server_auth => parse_peer_uri(uri),
            _ => Err(IdentityError::NotForPeers),
        }
    })
}

pub fn peer_uri(peer: &PeerIdentity) -> String {
    let kind = if peer.keyed { "keyed" } else { "keyless" };
    format!("{PEER_SCHEME}{}/node/{}/{kind}", peer.cluster, peer.name)
}

pub fn parse_peer_uri(uri: &str) -> Result<PeerIdentity, IdentityError> {
    let rest = uri.strip_prefix(PEER_SCHEME).ok_or(IdentityError::NotPeer)?;
    let parts: Vec<&str> = rest.splitn(5, '/').collect();
    let (cluster, name, keyed) = match parts[..] {
        [cluster, "node", name, "keyed"] => (cluster, name, true),
        [cluster, "node", name, "keyless"] => (cluster, name, false),
        _ => return Err(IdentityError::NotPeer),
    };
    let cluster = check_cluster(cluster).map_err(|_| IdentityError::NotPeer)?.to_owned();
    let name = check_name(name).map_err(|_| IdentityError::NotPeer)?.to_owned();
    Ok(PeerIdentity { cluster, name, keyed })
}

/// A tenant's uid as 32 lower-case hex digits.
pub fn parse_tenant(text: &str) -> Option<Token> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let mut tenant = Token::default();
    hex::decode_to_slice(text, &mut tenant).ok()?;
    Some(tenant)
}

pub fn check_cluster(name: &str) -> Result<&str, IdentityError> {
    let valid = is_name(name, CLUSTER_NAME_BYTES_MAX) && !name.bytes().any(|byte| byte.is_ascii_uppercase());
    if valid { Ok(name) } else { Err(IdentityError::ClusterName) }
}

pub fn check_name(name: &str) -> Result<&str, IdentityError> {
    if is_name(name, NAME_BYTES_MAX) { Ok(name) } else { Err(IdentityError::Name) }
}

fn is_name(name: &str, bytes_max: usize) -> bool {
    name.len() <= bytes_max
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// Two URIs would be two identities, and which of them counts would be a matter of order: refused.
fn with_single_uri<T>(
    der: &[u8],
    then: impl FnOnce(&X509Certificate<'_>, &str) -> Result<T, IdentityError>,
) -> Result<T, IdentityError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Certificate)?;
    if !rest.is_empty() {
        return Err(IdentityError::Certificate);
    }
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Certificate)?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names[..]);
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().ok_or(IdentityError::NoUri)?;
    if uris.next().is_some() {
        return Err(IdentityError::ManyUris);
    }
    then(&certificate, uri)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const TENANT: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn principals_have_the_documented_spelling() {
        let service = Principal::parse(&format!("spiffe://c1/tenant/{TENANT}/service/ehr.intake")).unwrap();
        let Principal::Service { cluster, tenant, name } = &service else { panic!("{service}") };
        assert_eq!((cluster.as_str(), tenant[1], name.as_str()), ("c1", 0x11, "ehr.intake"));
        let operator = Principal::parse("spiffe://c1/operator/Ada").unwrap();
        assert_eq!(operator, Principal::operator("c1", "Ada").unwrap());
        assert_eq!(operator.cluster(), "c1");
    }

    #[test]
    fn everything_else_is_no_principal() {
        let long = "x".repeat(65);
        let cases = [
            String::new(),
            "spiffe://".into(),
            "spiffe://c1".into(),
            "spiffe://c1/operator".into(),
            "spiffe://c1/operator/".into(),
            "spiffe://c1/operator/a/".into(),
            "spiffe://c1/operator/a/b".into(),
            "spiffe://c1//operator/a".into(),
            "spiffe:///operator/a".into(),
            "spiffe://C1/operator/a".into(),
            "SPIFFE://c1/operator/a".into(),
            "https://c1/operator/a".into(),
            " spiffe://c1/operator/a".into(),
            "spiffe://c1/operator/a ".into(),
            "spiffe://c1/operator/a%20b".into(),
            "spiffe://c1/operator/..".into(),
            "spiffe://c1/operator/a?b".into(),
            "spiffe://c1:7400/operator/a".into(),
            "spiffe://u@c1/operator/a".into(),
            "spiffe://c1/operator/ä".into(),
            "spiffe://c1/operator/a\0".into(),
            "spiffe://c1/OPERATOR/a".into(),
            format!("spiffe://c1/operator/{long}"),
            format!("spiffe://{long}/operator/a"),
            format!("spiffe://c1/tenant/{TENANT}/service"),
            format!("spiffe://c1/tenant/{TENANT}/service/"),
            format!("spiffe://c1/tenant/{TENANT}/operator/a"),
            format!("spiffe://c1/tenant/{}/service/a", TENANT.to_uppercase()),
            format!("spiffe://c1/tenant/{}/service/a", &TENANT[1..]),
            format!("spiffe://c1/tenant/{TENANT}0/service/a"),
            format!("spiffe://c1/tenant/{TENANT}/service/a/b"),
            "spiffe://c1/tenant//service/a".into(),
            "charthold://c1/node/a1/keyed".into(),
        ];
        for case in cases {
            assert_eq!(Principal::parse(&case), Err(IdentityError::NotPrincipal), "{case:?}");
        }
    }

    #[test]
    fn everything_else_is_no_peer() {
        for case in [
            "",
            "charthold://",
            "charthold://c1/node/a1",
            "charthold://c1/node/a1/",
            "charthold://c1/node/a1/keyed/",
            "charthold://c1/node/a1/keyed/x",
            "charthold://c1/node/a1/KEYED",
            "charthold://c1/node//keyed",
            "charthold:///node/a1/keyed",
            "charthold://c1/nodes/a1/keyed",
            "charthold://c1/node/a/1/keyed",
            "charthold://c1/node/-a1/keyed",
            "charthold://C1/node/a1/keyed",
            "spiffe://c1/node/a1/keyed",
            "spiffe://c1/operator/a",
        ] {
            assert_eq!(parse_peer_uri(case).map(|_| ()), Err(IdentityError::NotPeer), "{case:?}");
        }
    }

    #[test]
    fn damaged_certificates_are_refused() {
        for der in [&[][..], &[0x30], &[0x30, 0x03, 0x02, 0x01, 0x01], &[0xff; 64]] {
            assert!(peer_of_certificate(der).is_err());
            assert_eq!(ClientIdentity::of_certificate(der), ClientIdentity::Unrecognized);
        }
    }

    fn cluster() -> impl Strategy<Value = String> {
        "[a-z0-9][a-z0-9._-]{0,31}"
    }

    fn name() -> impl Strategy<Value = String> {
        "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
    }

    proptest! {
        #[test]
        fn principals_round_trip(cluster in cluster(), name in name(), tenant in any::<[u8; 16]>()) {
            for principal in [
                Principal::service(&cluster, &tenant, &name).unwrap(),
                Principal::operator(&cluster, &name).unwrap(),
            ] {
                prop_assert_eq!(Principal::parse(&principal.uri()), Ok(principal));
            }
        }

        #[test]
        fn peers_round_trip(cluster in cluster(), name in name(), keyed in any::<bool>()) {
            let uri = peer_uri(&PeerIdentity { cluster: cluster.clone(), name: name.clone(), keyed });
            let peer = parse_peer_uri(&uri).unwrap();
            prop_assert_eq!((&peer.cluster, &peer.name, peer.keyed), (&cluster, &name, keyed));
        }

        /// Whatever parses is spelled as we would spell it: no two URIs for one identity.
        #[test]
        fn one_identity_has_one_spelling(
            uri in "(spiffe|charthold)://[a-zA-Z0-9._%/-]{0,8}/(tenant|operator|node)/[a-fA-F0-9]{0,33}\
                   (/(service|keyed|keyless)(/[ -~]{0,8})?)?"
        ) {
            if let Ok(principal) = Principal::parse(&uri) {
                prop_assert_eq!(principal.uri(), &uri[..]);
            }
            if let Ok(peer) = parse_peer_uri(&uri) {
                prop_assert_eq!(peer_uri(&peer), uri);
            }
        }

        #[test]
        fn no_input_panics(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            let _ = (Principal::parse(&text), parse_peer_uri(&text), parse_tenant(&text));
            let _ = (peer_of_certificate(&bytes), ClientIdentity::of_certificate(&bytes));
        }
    }
}
