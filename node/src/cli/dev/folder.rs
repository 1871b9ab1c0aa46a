//! What `charthold dev` keeps on disk.
//!
//! ```text
//! DIR/dev.toml        how many sites, which ports, the tenant: what makes a second start resume the first
//! DIR/dev.lock        held while `dev` runs
//! DIR/authority/      both certificate authorities
//! DIR/root.key        shared by all nodes
//! DIR/a1/ b1/ c1/     a node: config.toml  certs/  data/  node.log  node.pid
//! DIR/operator/       an operator's certificate, and DIR/operator.toml its profile
//! DIR/client/         a service's certificate, and DIR/client.toml its profile
//! ```
//!
//! A folder of certificates appears whole or not at all (made under another name, then renamed), so that a start that
//! was cut short can be repeated. All paths in the files are relative: DIR can be moved while nothing runs.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::exit::CliError;
use crate::cli::profile;
use crate::seal::Token;
use crate::tls::{Authority, AuthorityError, Validity};

const CLUSTER: &str = "dev";
const SITES_DEFAULT: u8 = 3;
const BASE_PORT_DEFAULT: u16 = 7400;
/// Between the ports of two nodes, so that their numbers are easy to tell.
const PORT_STEP: u16 = 10;
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The names of the operator and of the service in their certificates.
const CLIENT_NAME: &str = "dev";

/// What was decided at the first start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    pub sites: u8,
    /// So many of them, the last ones, have no keys.
    #[serde(default)]
    pub keyless: u8,
    pub base_port: u16,
    /// The tenant's uid, once it is there and its client has its grant.
    pub tenant: Option<String>,
}

/// One node of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlannedNode {
    pub name: String,
    pub site: String,
    /// Without keys it opens no port for clients.
    pub keyed: bool,
    pub client: SocketAddr,
    pub peer: SocketAddr,
    pub ops: SocketAddr,
}

impl Plan {
    pub fn nodes(&self) -> Vec<PlannedNode> {
        let address = |port: u16| SocketAddr::new(LOOPBACK, port);
        let node = |index: u8| {
            let site = char::from(b'a' + index).to_string();
            let port = self.base_port + u16::from(index) * PORT_STEP;
            PlannedNode {
                name: format!("{site}1"),
                site,
                keyed: index < self.sites.saturating_sub(self.keyless),
                client: address(port),
                peer: address(port + 1),
                ops: address(port + 2),
            }
        };
        (0..self.sites).map(node).collect()
    }

    /// Those that talk to clients.
    pub fn keyed_nodes(&self) -> Vec<PlannedNode> {
        self.nodes().into_iter().filter(|node| node.keyed).collect()
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.keyed_nodes().iter().map(|node| node.client.to_string()).collect()
    }
}

/// The folder, locked: there is one `dev` on it at a time.
pub(super) struct Folder {
    path: PathBuf,
    pub plan: Plan,
    _lock: File,
}

impl Folder {
    /// Opens or makes it. What was decided at the first start can't be changed by a later one.
    pub fn open(path: &Path, sites: Option<u8>, keyless: Option<u8>, base_port: Option<u16>) -> Result<Self, CliError> {
        std::fs::create_dir_all(path).map_err(|error| CliError::file(path, &error))?;
        let path = path.canonicalize().map_err(|error| CliError::file(path, &error))?;
        let lock = lock(&path)?;
        let file = path.join("dev.toml");
        let plan = match std::fs::read_to_string(&file) {
            Ok(text) => {
                let plan: Plan = toml::from_str(&text)
                    .map_err(|error| CliError::Failed(format!("{}: {}", file.display(), error.message())))?;
                check_same(&path, "--sites", sites.map(u16::from), plan.sites.into())?;
                check_same(&path, "--keyless", keyless.map(u16::from), plan.keyless.into())?;
                check_same(&path, "--base-port", base_port, plan.base_port)?;
                plan
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Plan {
                sites: sites.unwrap_or(SITES_DEFAULT),
                keyless: keyless.unwrap_or(0),
                base_port: base_port.unwrap_or(BASE_PORT_DEFAULT),
                tenant: None,
            },
            Err(error) => return Err(CliError::file(&file, &error)),
        };
        if 2 * plan.keyless >= plan.sites {
            let what = "--keyless: sites without keys must be fewer than those with keys";
            return Err(CliError::Usage(what.to_owned()));
        }
        let folder = Self { path, plan, _lock: lock };
        folder.save()?;
        Ok(folder)
    }

    pub fn save(&self) -> Result<(), CliError> {
        let text = toml::to_string(&self.plan).map_err(|error| CliError::Failed(format!("dev.toml: {error}")))?;
        write_whole(&self.path.join("dev.toml"), &text)
    }

    /// Everything that the nodes need to start, and the operator's profile.
    pub fn prepare(&self) -> Result<(), CliError> {
        once(&self.path.join("authority"), |folder| Authority::create(CLUSTER, folder).map(drop))?;
        let root = self.path.join("root.key");
        if !root.exists() {
            crate::seal::create_root_key_file(&root).map_err(|error| CliError::Failed(error.to_string()))?;
        }
        let authority = self.authority()?;
        for node in self.plan.nodes() {
            let folder = self.node(&node);
            std::fs::create_dir_all(&folder).map_err(|error| CliError::file(&folder, &error))?;
            once(&folder.join("certs"), |certs| {
                authority.node(
                    &node.name,
                    node.keyed,
                    &["localhost".to_owned()],
                    &[LOOPBACK],
                    certs,
                    Validity::default(),
                )
            })?;
            let config = folder.join("config.toml");
            // Kept when it is there: somebody may have tried a setting in it.
            if !config.exists() {
                write_whole(&config, &self.node_config(&node))?;
            }
        }
        once(&self.path.join("operator"), |folder| authority.operator(CLIENT_NAME, folder, Validity::default()))?;
        profile::write(&self.operator_profile(), &self.plan.endpoints(), "operator", None)
    }

    /// The certificate and the profile of a service of this tenant. Returns the principal to grant roles to.
    pub fn prepare_client(&self, tenant: &str) -> Result<String, CliError> {
        let uid = parse_tenant(tenant)?;
        let authority = self.authority()?;
        once(&self.path.join("client"), |folder| authority.service(&uid, CLIENT_NAME, folder, Validity::default()))?;
        profile::write(&self.client_profile(), &self.plan.endpoints(), "client", Some(tenant))?;
        crate::tls::Principal::service(CLUSTER, &uid, CLIENT_NAME)
            .map(|principal| principal.uri())
            .map_err(|error| CliError::Failed(error.to_string()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn node(&self, node: &PlannedNode) -> PathBuf {
        self.path.join(&node.name)
    }

    pub fn operator_profile(&self) -> PathBuf {
        self.path.join("operator.toml")
    }

    pub fn client_profile(&self) -> PathBuf {
        self.path.join("client.toml")
    }

    fn authority(&self) -> Result<Authority, CliError> {
        Authority::load(&self.path.join("authority")).map_err(|error| CliError::Failed(error.to_string()))
    }

    fn node_config(&self, node: &PlannedNode) -> String {
        let others: Vec<String> = self.plan.nodes().into_iter().filter(|other| other != node).map(join).collect();
        let certificates = |port| {
            format!(
                "{port} = {{ ca = \"certs/{port}-ca.crt\", cert = \"certs/{port}.crt\", key = \"certs/{port}.key\" }}\n"
            )
        };
        let keys = match node.keyed {
            true => format!("{}\n[keys]\nroot = \"file:../root.key\"\n", certificates("service")),
            false => String::new(),
        };
        format!(
            "name = \"{name}\"\nsite = \"{site}\"\ndata = \"data\"\njoin = [{others}]\n\n\
             [listen]\nclient = \"{client}\"\npeer = \"{peer}\"\nops = \"{ops}\"\n\n\
             [tls]\n{peer_tls}{keys}\n\
             # Small: all nodes share this machine's disk.\n[disk]\nreserve_bytes = 268435456\n",
            name = node.name,
            site = node.site,
            others = others.join(", "),
            client = node.client,
            peer = node.peer,
            ops = node.ops,
            peer_tls = certificates("peer"),
        )
    }
}

fn join(node: PlannedNode) -> String {
    format!("\"{}\"", node.peer)
}

pub(crate) fn parse_tenant(uid: &str) -> Result<Token, CliError> {
    let mut token = Token::default();
    hex::decode_to_slice(uid, &mut token)
        .map_err(|_| CliError::Failed("a tenant's uid has 32 hexadecimal digits".to_owned()))?;
    Ok(token)
}

fn lock(path: &Path) -> Result<File, CliError> {
    let name = path.join("dev.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&name);
    let file = file.map_err(|error| CliError::file(&name, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(CliError::Failed(format!("{}: another `charthold dev` runs on this folder", path.display())))
        }
        Err(TryLockError::Error(error)) => Err(CliError::file(&name, &error)),
    }
}

fn check_same(path: &Path, flag: &str, asked: Option<u16>, recorded: u16) -> Result<(), CliError> {
    match asked {
        Some(asked) if asked != recorded => Err(CliError::Usage(format!(
            "{} was made with {flag} {recorded}: leave {flag} out, or name another folder with --data",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Makes a folder unless it is there; whole or not at all.
fn once(folder: &Path, make: impl FnOnce(&Path) -> Result<(), AuthorityError>) -> Result<(), CliError> {
    if folder.exists() {
        return Ok(());
    }
    let unfinished = folder.with_extension("unfinished");
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished).map_err(|error| CliError::file(&unfinished, &error))?;
    }
    make(&unfinished).map_err(|error| CliError::Failed(error.to_string()))?;
    std::fs::rename(&unfinished, folder).map_err(|error| CliError::file(folder, &error))
}

/// The file has its old content or the new one, whenever this is cut short.
fn write_whole(path: &Path, text: &str) -> Result<(), CliError> {
    let unfinished = path.with_extension("unfinished");
    let write = || {
        let mut file = File::create(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)
    };
    write().map_err(|error| CliError::file(path, &error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ports_and_names() {
        let plan = Plan { sites: 3, keyless: 0, base_port: 7400, tenant: None };
        let nodes = plan.nodes();
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["a1", "b1", "c1"]);
        assert_eq!((nodes[1].site.as_str(), nodes[1].peer.to_string()), ("b", "127.0.0.1:7411".to_owned()));
        assert_eq!(plan.endpoints(), ["127.0.0.1:7400", "127.0.0.1:7410", "127.0.0.1:7420"]);
    }

    #[test]
    fn a_second_start_resumes_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(dir.path(), Some(1), None, Some(9000)).unwrap();
        folder.plan.tenant = Some("ab".repeat(16));
        folder.save().unwrap();
        let held = Folder::open(dir.path(), None, None, None).err().unwrap();
        assert!(held.to_string().contains("another `charthold dev`"), "{held}");
        let plan = folder.plan.clone();
        drop(folder);

        assert_eq!(Folder::open(dir.path(), None, None, None).unwrap().plan, plan);
        assert_eq!(Folder::open(dir.path(), Some(1), Some(0), Some(9000)).unwrap().plan, plan);
        assert_eq!(Folder::open(dir.path(), Some(3), None, None).err().unwrap().exit_code(), 2);
        assert_eq!(Folder::open(dir.path(), None, Some(1), None).err().unwrap().exit_code(), 2);
        assert_eq!(Folder::open(dir.path(), None, None, Some(9001)).err().unwrap().exit_code(), 2);
    }

    #[test]
    fn what_is_prepared_is_a_valid_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), Some(3), Some(1), None).unwrap();
        // Cut short in the middle of an earlier attempt.
        std::fs::create_dir_all(dir.path().join("authority.unfinished/x")).unwrap();
        folder.prepare().unwrap();
        folder.prepare().unwrap();
        let tenant = "0123456789abcdef".repeat(2);
        let principal = folder.prepare_client(&tenant).unwrap();
        assert_eq!(principal, format!("spiffe://dev/tenant/{tenant}/service/dev"));
        for node in folder.plan.nodes() {
            let config = crate::config::Config::load(&folder.node(&node).join("config.toml"), &[]).unwrap();
            assert_eq!((config.is_keyed(), config.name, config.join.len()), (node.keyed, node.name, 2));
            assert_eq!(config.tls.service.is_some_and(|service| service.cert.exists()), node.keyed);
        }
        for profile in [folder.operator_profile(), folder.client_profile()] {
            let profile = charthold_client::Profile::load(&profile).unwrap();
            assert!(profile.certificate.exists() && profile.endpoints.len() == 2);
        }
        let few = tempfile::tempdir().unwrap();
        assert_eq!(Folder::open(few.path(), Some(3), Some(2), None).err().unwrap().exit_code(), 2);
    }
}
