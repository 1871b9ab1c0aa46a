//! What a cluster has on disk.
//!
//! ```text
//! FOLDER/authority/      both certificate authorities
//! FOLDER/root.key        shared by all nodes
//! FOLDER/a1/ b1/ c1/     a node: config.toml  certs/  data/  node.log  clock, if it is a clock of its own
//! FOLDER/operator/       an operator's certificate, and FOLDER/operator.toml its profile
//! FOLDER/client/         a service's certificate, and FOLDER/client.toml its profile
//! ```

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use charthold::seal::{Token, create_root_key_file};
use charthold::tls::{Authority, Principal, Validity};
use charthold_client::Profile;

use super::{CLUSTER, free_ports};

/// Quicker than in production: tests kill leaders by the dozen.
pub const RAFT: &str = "[raft]\nheartbeat_ms = 100\nelection_min_ms = 500\nelection_max_ms = 1000\n";

/// As an operator gets it who says nothing.
pub const RAFT_AS_SHIPPED: &str = "[raft]\n";

/// Small: tests run many clusters on one disk.
const DISK: &str = "[disk]\nreserve_bytes = 67108864\n";

pub struct Files {
    pub folder: PathBuf,
    /// Of each node.
    addresses: Vec<Ipv4Addr>,
    /// Client, peer, ops; for each node.
    ports: Vec<[u16; 3]>,
    keyed: Vec<usize>,
}

impl Files {
    /// Everything up to the first start of a node. The first `members` are to form the cluster.
    pub fn create(
        folder: &Path,
        addresses: Vec<Ipv4Addr>,
        members: usize,
        is_keyed: impl Fn(usize) -> bool,
        config: &str,
    ) -> Self {
        let sites = addresses.len();
        let ports = free_ports(sites * 3).chunks(3).map(|ports| [ports[0], ports[1], ports[2]]).collect();
        let mut files = Self { folder: folder.to_owned(), addresses, ports, keyed: Vec::new() };
        let authority = Authority::create(CLUSTER, &folder.join("authority")).unwrap();
        create_root_key_file(&folder.join("root.key")).unwrap();
        for node in 0..sites {
            std::fs::create_dir(files.node(node)).unwrap();
            let certs = files.node(node).join("certs");
            let dns = ["localhost".to_owned()];
            authority
                .node(&name(node), is_keyed(node), &dns, &[files.addresses[node].into()], &certs, Validity::default())
                .unwrap();
            let text = files.config_text(node, members, is_keyed(node), config);
            std::fs::write(files.config(node), text).unwrap();
        }
        authority.operator("operator", &folder.join("operator"), Validity::default()).unwrap();
        files.keyed = (0..sites).filter(|node| is_keyed(*node)).collect();
        files.write_profile("operator", None);
        files
    }

    /// A service of this tenant, with its profile `<name>.toml`. Gives the principal to grant roles to.
    pub fn create_service(&self, tenant: &str, name: &str) -> String {
        let mut uid = Token::default();
        hex::decode_to_slice(tenant, &mut uid).expect("a tenant's uid");
        self.authority().service(&uid, name, &self.folder.join(name), Validity::default()).unwrap();
        self.write_profile(name, Some(tenant));
        Principal::service(CLUSTER, &uid, name).unwrap().uri()
    }

    pub fn authority(&self) -> Authority {
        Authority::load(&self.folder.join("authority")).unwrap()
    }

    pub fn node(&self, node: usize) -> PathBuf {
        self.folder.join(name(node))
    }

    pub fn data(&self, node: usize) -> PathBuf {
        self.node(node).join("data")
    }

    /// What the clock shim reads.
    pub fn clock(&self, node: usize) -> PathBuf {
        self.node(node).join("clock")
    }

    pub fn set_clock(&self, node: usize, ahead_ms: i64) {
        let file = File::options().create(true).truncate(false).write(true).open(self.clock(node)).unwrap();
        file.write_all_at(&(ahead_ms * 1_000_000).to_ne_bytes(), 0).unwrap();
    }

    pub fn config(&self, node: usize) -> PathBuf {
        self.node(node).join("config.toml")
    }

    pub fn profile(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }

    pub fn client_endpoint(&self, node: usize) -> String {
        self.endpoint(node, 0)
    }

    pub fn peer_endpoint(&self, node: usize) -> String {
        self.endpoint(node, 1)
    }

    pub fn ops_endpoint(&self, node: usize) -> String {
        self.endpoint(node, 2)
    }

    fn endpoint(&self, node: usize, port: usize) -> String {
        format!("{}:{}", self.addresses[node], self.ports[node][port])
    }

    fn write_profile(&self, name: &str, tenant: Option<&str>) {
        let profile = Profile {
            endpoints: self.keyed.iter().map(|node| self.client_endpoint(*node)).collect(),
            authority: format!("{name}/service-ca.crt").into(),
            certificate: format!("{name}/client.crt").into(),
            key: format!("{name}/client.key").into(),
            tenant: tenant.map(str::to_owned),
        };
        std::fs::write(self.profile(name), toml::to_string(&profile).unwrap()).unwrap();
    }

    fn config_text(&self, node: usize, members: usize, is_keyed: bool, more: &str) -> String {
        let others = (0..members).filter(|other| *other != node);
        let join: Vec<String> = others.map(|other| format!("\"{}\"", self.peer_endpoint(other))).collect();
        let raft = if more.contains("[raft]") { "" } else { RAFT };
        let disk = if more.contains("[disk]") { "" } else { DISK };
        let certificates = |port| {
            format!(
                "{port} = {{ ca = \"certs/{port}-ca.crt\", cert = \"certs/{port}.crt\", key = \"certs/{port}.key\" }}\n"
            )
        };
        let keys = match is_keyed {
            true => format!("{}[keys]\nroot = \"file:../root.key\"\n", certificates("service")),
            false => String::new(),
        };
        format!(
            "name = \"{name}\"\nsite = \"{site}\"\ndata = \"data\"\njoin = [{join}]\n\
             [listen]\nclient = \"{client}\"\npeer = \"{peer}\"\nops = \"{ops}\"\n\
             [tls]\n{peer_tls}{keys}{raft}{disk}{more}",
            name = name(node),
            site = site(node),
            join = join.join(", "),
            client = self.client_endpoint(node),
            peer = self.peer_endpoint(node),
            ops = self.ops_endpoint(node),
            peer_tls = certificates("peer"),
        )
    }
}

pub fn site(node: usize) -> char {
    char::from(b'a' + u8::try_from(node).expect("few nodes"))
}

pub fn name(node: usize) -> String {
    format!("{}1", site(node))
}
