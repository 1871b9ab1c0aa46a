//! Profiles: the file that says how to reach a cluster, and as whom.
//!
//! Owns: writing one, for `charthold dev`, and reading it with an error that names the file. The format is the client
//! library's.

use std::path::Path;

use charthold_client::{Client, Profile};

use super::exit::CliError;

pub(crate) fn load(path: &Path) -> Result<Profile, CliError> {
    Ok(Profile::load(path)?)
}

pub(crate) fn connect(profile: &Profile) -> Result<Client, CliError> {
    Ok(Client::connect(profile)?)
}

/// A profile whose certificates lie in `folder`, which is relative to the profile: the whole can be moved.
pub(crate) fn write(path: &Path, endpoints: &[String], folder: &str, tenant: Option<&str>) -> Result<(), CliError> {
    let mut table = toml::Table::new();
    table.insert("endpoints".into(), endpoints.to_vec().into());
    for (key, file) in [("authority", "service-ca.crt"), ("certificate", "client.crt"), ("key", "client.key")] {
        table.insert(key.into(), format!("{folder}/{file}").into());
    }
    if let Some(tenant) = tenant {
        table.insert("tenant".into(), tenant.into());
    }
    std::fs::write(path, table.to_string()).map_err(|error| CliError::file(path, &error))
}
