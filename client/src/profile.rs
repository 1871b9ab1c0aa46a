//! Where a cluster is and who calls it: reading the file that says so.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, connect};

/// Where a cluster is and who calls it: a small TOML file, or made in code.
///
/// ```toml
/// endpoints   = ["a1.example:7400", "b1.example:7400"]   # gateways, the nearest first
/// authority   = "service-ca.crt"                         # what signs the gateways' certificates
/// certificate = "client.crt"                             # says who calls
/// key         = "client.key"
/// tenant      = "0123456789abcdef0123456789abcdef"       # optional
/// ```
///
/// ```
/// use charthold_client::Profile;
///
/// let profile = Profile {
///     endpoints: vec!["a1.example:7400".into(), "b1.example:7400".into()],
///     authority: "/etc/ehr/service-ca.crt".into(),
///     certificate: "/etc/ehr/client.crt".into(),
///     key: "/etc/ehr/client.key".into(),
///     tenant: None,
/// };
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Gateways as `host:port`. The first that works is used, so put the nearest first; at least two sites, so that
    /// the loss of one is survived.
    pub endpoints: Vec<String>,
    /// The certificate of the cluster's service authority, PEM.
    pub authority: PathBuf,
    /// The caller's certificate (chain), PEM: who calls, and for which tenant.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The tenant's uid, for the caller's own use: what counts is the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

impl Profile {
    /// Reads a profile. Relative paths in it are relative to the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::Config(format!("cannot read profile {}: {error}", path.display())))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).map_err(|why| Error::Config(format!("profile {}: {why}", path.display())))
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let mut profile: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for file in [&mut profile.authority, &mut profile.certificate, &mut profile.key] {
            *file = folder.join(&*file);
        }
        profile.check()?;
        Ok(profile)
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if self.endpoints.is_empty() {
            return Err("endpoints is empty: name at least one gateway as host:port".into());
        }
        match self.endpoints.iter().find(|endpoint| connect::host_of(endpoint).is_none()) {
            Some(bad) => Err(format!("endpoint {bad:?} is not host:port")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str =
        "endpoints = ['a:7400', '[::1]:7400']\nauthority = 'ca.crt'\ncertificate = '/abs/c.crt'\nkey = 'c.key'\n";

    #[test]
    fn relative_paths_start_at_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.toml");
        std::fs::write(&path, GOOD).unwrap();
        let profile = Profile::load(&path).unwrap();
        assert_eq!(profile.authority, folder.path().join("ca.crt"));
        assert_eq!(profile.certificate, Path::new("/abs/c.crt"));
        assert_eq!(profile.tenant, None);
        assert_eq!(Profile::parse(&toml::to_string(&profile).unwrap(), Path::new("/")).unwrap(), profile);
    }

    #[test]
    fn mistakes_are_named() {
        let check = |text: &str, expected: &str| {
            let error = Profile::parse(text, Path::new("")).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(&GOOD.replace("key =", "keys ="), "unknown field");
        check(&GOOD.replace("a:7400", "a"), "\"a\" is not host:port");
        check(&GOOD.replace("a:7400", "https://a:7400"), "is not host:port");
        check(&GOOD.replace("['a:7400', '[::1]:7400']", "[]"), "at least one gateway");
        assert!(matches!(Profile::load("/nonexistent"), Err(Error::Config(_))));
    }
}
