//! A cluster: its processes, and those who talk to it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use charthold::tls::Authority;
use charthold_client::{Chart, Client, Error, Profile, RecordId, RequestContext, Role};
use tempfile::TempDir;

use super::disk::build_shim;
use super::files::{self, Files};
use super::process::{Background, Finished, Running, command, program, without_surroundings};
use super::until;
use super::wan::Wan;
use crate::fault_disk::{FaultDisk, Lost};

pub const CLUSTER: &str = "test";
/// Odd on purpose: a search for it finds nothing else.
pub const TENANT_NAME: &str = "Clínica Tenant-Canary Þórsmörk";
/// The name of the service that `client()` is.
const SERVICE: &str = "client";

/// What a cluster is to be, where it differs from three quiet nodes.
#[derive(Clone, Default)]
pub struct Options {
    /// 0 means 3.
    pub sites: usize,
    /// So many of them form the cluster, the first ones; 0 means all. The others are started by `restart`, and added.
    pub members: usize,
    /// Those without keys.
    pub keyless: Vec<usize>,
    /// For all nodes, at every start.
    pub environment: Vec<(String, String)>,
    /// For one node, at every start: for example LD_PRELOAD.
    pub node_environment: Vec<(usize, String, String)>,
    /// Appended to every node's config.toml. With a `[raft]` of its own it replaces the harness's quick one.
    pub config: String,
    /// Each site in a network of its own, with this round trip between them; needs root. Nothing: all on loopback.
    pub round_trip: Option<Duration>,
    /// Each node's data on a disk that loses what was not synced when `cut_power` says so; needs root.
    pub fault_disks: bool,
    /// Each node's wall clock can be set: see `set_clock`.
    pub own_clocks: bool,
}

impl Options {
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

pub struct Cluster {
    // Before the folder, so that processes end before their files go.
    nodes: Vec<Option<Running>>,
    disks: Vec<FaultDisk>,
    clock_shim: Option<PathBuf>,
    /// Of nodes that do not run the program under test.
    programs: BTreeMap<usize, PathBuf>,
    options: Options,
    tenant: String,
    files: Files,
    wan: Option<Wan>,
    folder: Option<TempDir>,
}

impl Cluster {
    /// Initialized, with all its leaders, a tenant, and a service that may read and write at every gateway.
    pub async fn start(sites: usize) -> Self {
        Self::start_with(Options { sites, ..Options::default() }).await
    }

    pub async fn start_with(options: Options) -> Self {
        let mut cluster = Self::prepare(options);
        cluster.restart_all();
        cluster.initialize().await;
        cluster
    }

    /// All files, and no process yet.
    pub fn prepare(options: Options) -> Self {
        let sites = if options.sites == 0 { 3 } else { options.sites };
        let members = if options.members == 0 { sites } else { options.members };
        let options = Options { sites, members, ..options };
        let folder = tempfile::Builder::new().prefix("charthold-test-").tempdir().expect("a temporary folder");
        let wan = options.round_trip.map(|round_trip| Wan::create(options.sites, round_trip));
        let address = |site| wan.as_ref().map_or(Ipv4Addr::LOCALHOST, |wan| wan.address(site));
        let is_keyed = |node: usize| !options.keyless.contains(&node);
        let addresses = (0..options.sites).map(address).collect();
        let files = Files::create(folder.path(), addresses, members, is_keyed, &options.config);
        let nodes = (0..options.sites).map(|_| None).collect();
        let clock_shim = options.own_clocks.then(|| build_shim(folder.path(), "clock_shim"));
        let with_disks = if options.fault_disks { options.sites } else { 0 };
        let disks = (0..with_disks).map(|node| FaultDisk::mount(&files.data(node))).collect();
        if clock_shim.is_some() {
            (0..options.sites).for_each(|node| files.set_clock(node, 0));
        }
        let (programs, tenant) = Default::default();
        Self { nodes, disks, clock_shim, programs, options, tenant, files, wan, folder: Some(folder) }
    }

    /// Forms the cluster of running nodes, makes the tenant and its service.
    pub async fn initialize(&mut self) {
        for node in (0..self.options.members).filter(|node| self.is_keyed(*node)) {
            self.wait_answers(node).await;
        }
        let operator = self.operator();
        match operator.admin().init(u32::try_from(self.options.members).expect("few nodes"), 0).await {
            Ok(_) | Err(Error::AlreadyInitialized) => {}
            Err(error) => panic!("init: {error}\n{}", self.last_words()),
        }
        self.wait_leaders().await;
        self.tenant = operator.admin().create_tenant(TENANT_NAME).await.expect("create a tenant").uid;
        let principal = self.files.create_service(&self.tenant, SERVICE);
        operator.admin().add_grant(&principal, &[Role::Reader, Role::Writer]).await.expect("add a grant");
        self.wait_ready().await;
    }

    /// The network between the sites, if they have one.
    pub fn wan(&self) -> Option<&Wan> {
        self.wan.as_ref()
    }

    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn is_keyed(&self, node: usize) -> bool {
        !self.options.keyless.contains(&node)
    }

    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: usize) {
        let mut process = self.nodes[node].take().unwrap_or_else(|| panic!("node {node} is not running"));
        assert!(process.is_running(), "node {node} had ended by itself:\n{}", self.last_words_of(node));
        process.kill();
    }

    /// SIGKILL to all at once: no node sees another one go.
    pub fn kill_all(&mut self) {
        let running: Vec<usize> = (0..self.size()).filter(|node| self.nodes[*node].is_some()).collect();
        self.kill_at_once(&running);
    }

    fn kill_at_once(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.nodes[*node].as_ref().expect("it runs").signal(rustix::process::Signal::STOP);
        }
        nodes.iter().for_each(|node| self.kill(*node));
    }

    /// SIGKILL to these at once, and their fault disks lose what was not synced.
    pub fn cut_power(&mut self, nodes: &[usize], random: &mut fastrand::Rng) -> Lost {
        self.kill_at_once(nodes);
        nodes.iter().map(|node| self.disk(*node).cut_power(random)).sum()
    }

    /// Sets a node's wall clock, running or not, in a cluster of own clocks: so far ahead of this machine's.
    pub fn set_clock(&self, node: usize, ahead_ms: i64) {
        assert!(self.clock_shim.is_some(), "`Options::own_clocks` is set");
        self.files.set_clock(node, ahead_ms);
    }

    /// A node's disk, in a cluster of fault disks.
    pub fn disk(&self, node: usize) -> &FaultDisk {
        self.disks.get(node).expect("`Options::fault_disks` is set")
    }

    /// SIGTERM, as an operator stops a node.
    pub fn stop(&mut self, node: usize) -> ExitStatus {
        let mut process = self.nodes[node].take().unwrap_or_else(|| panic!("node {node} is not running"));
        process.stop()
    }

    /// As its configuration names it.
    pub fn name(&self, node: usize) -> String {
        files::name(node)
    }

    /// A node that does not run loses all its data.
    pub fn wipe(&self, node: usize) {
        assert!(!self.is_started(node), "node {node} runs");
        // Its data directory stays: it may be a disk of its own.
        for entry in std::fs::read_dir(self.data_dir(node)).expect("a data directory") {
            let path = entry.expect("an entry of it").path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    /// A node that has ended by itself may be started again.
    pub fn forget(&mut self, node: usize) {
        let mut process = self.nodes[node].take().unwrap_or_else(|| panic!("node {node} was not started"));
        assert!(!process.is_running(), "node {node} runs");
    }

    /// From its next start on a node runs this program; none: the one under test.
    pub fn set_program(&mut self, node: usize, program: Option<&Path>) {
        match program {
            Some(program) => self.programs.insert(node, program.to_owned()),
            None => self.programs.remove(&node),
        };
    }

    /// Starts a node that is not running. Does not wait for it.
    pub fn restart(&mut self, node: usize) {
        assert!(self.nodes[node].is_none(), "node {node} is running");
        let config = self.files.config(node);
        let start = ["start", "--config"];
        let program = self.programs.get(&node).cloned().unwrap_or_else(program);
        let start_at = match &self.wan {
            Some(wan) => wan.command_at(node, &program),
            None => Command::new(&program),
        };
        let mut start = without_surroundings(start_at, &start);
        start.arg(config).arg("--stop-with-parent").envs(self.options.environment.iter().cloned());
        if let Some(shim) = &self.clock_shim {
            start.env("LD_PRELOAD", shim).env("CLOCK_SHIM_OFFSET", self.files.clock(node));
        }
        let own = self.options.node_environment.iter().filter(|(of, _, _)| *of == node);
        start.envs(own.map(|(_, name, value)| (name, value)));
        self.nodes[node] = Some(Running::with_log(start, &self.log(node), &files::name(node)));
    }

    /// Whoever is to form the cluster and does not run.
    pub fn restart_all(&mut self) {
        for node in 0..self.options.members {
            if !self.is_started(node) {
                self.restart(node);
            }
        }
    }

    pub fn is_running(&mut self, node: usize) -> bool {
        self.nodes[node].as_mut().is_some_and(Running::is_running)
    }

    /// Started and not stopped by us; whether it still runs is another question.
    pub fn is_started(&self, node: usize) -> bool {
        self.nodes[node].is_some()
    }

    /// The process of a node, to wait for an end of its own.
    pub fn process(&mut self, node: usize) -> &mut Running {
        self.nodes[node].as_mut().unwrap_or_else(|| panic!("node {node} is not running"))
    }

    /// One of many clients: it knows one gateway until an answer names the leader. Where nodes are to come and go, it knows all.
    pub fn client_number(&self, number: usize) -> Client {
        match self.options.members == self.size() {
            true => self.client_at(number % self.size()),
            false => self.client(),
        }
    }

    /// The service's client, for all gateways.
    pub fn client(&self) -> Client {
        self.connect(SERVICE, None)
    }

    /// The same for one gateway only.
    pub fn client_at(&self, node: usize) -> Client {
        self.connect(SERVICE, Some(node))
    }

    pub fn operator(&self) -> Client {
        self.connect("operator", None)
    }

    /// A further service of the tenant, with these roles, at once at every running gateway. Its profile is
    /// `profile(name)`.
    pub async fn service(&self, name: &str, roles: &[Role]) -> Client {
        let principal = self.files.create_service(&self.tenant, name);
        if !roles.is_empty() {
            self.operator().admin().add_grant(&principal, roles).await.expect("add a grant");
        }
        self.connect(name, None)
    }

    /// Certificate and profile of a service of any tenant; gives its principal, which no grant names yet.
    pub fn issue_service(&self, tenant: &str, name: &str) -> String {
        self.files.create_service(tenant, name)
    }

    /// Any profile of this cluster, optionally for one gateway only.
    pub fn connect(&self, profile: &str, node: Option<usize>) -> Client {
        let mut profile = Profile::load(self.profile(profile)).unwrap_or_else(|error| panic!("{error}"));
        if let Some(node) = node {
            profile.endpoints = vec![self.endpoint(node)];
        }
        let client = Client::connect(&profile).unwrap_or_else(|error| panic!("{error}"));
        client.with_context(RequestContext::new("test"))
    }

    /// Runs the program as the service and waits for its end.
    pub async fn cli(&self, arguments: &[&str]) -> Finished {
        self.cli_with("client", arguments, b"").await
    }

    pub async fn operator_cli(&self, arguments: &[&str]) -> Finished {
        self.cli_with("operator", arguments, b"").await
    }

    /// Runs the program with a profile and this on stdin.
    pub async fn cli_with(&self, profile: &str, arguments: &[&str], stdin: &[u8]) -> Finished {
        use tokio::io::AsyncWriteExt as _;
        let mut background = self.cli_start(profile, arguments);
        let mut pipe = background.child.stdin.take().expect("stdin is piped");
        let write = async {
            // The program may end without reading it.
            let _ = pipe.write_all(stdin).await;
            drop(pipe);
        };
        tokio::join!(background.finish(), write).0
    }

    /// Starts the program and lets it run.
    pub fn cli_start(&self, profile: &str, arguments: &[&str]) -> Background {
        let mut command: tokio::process::Command = self.cli_command(profile, arguments).into();
        let child = command.stdin(Stdio::piped()).kill_on_drop(true).spawn().expect("starting the program");
        Background { child }
    }

    /// The program with a profile; nothing inherited, output piped.
    pub fn cli_command(&self, profile: &str, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.env("CHARTHOLD_PROFILE", self.profile(profile)).env("CHARTHOLD_ACTOR", "test");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn folder(&self) -> &Path {
        &self.files.folder
    }

    pub fn authority(&self) -> Authority {
        self.files.authority()
    }

    pub fn node_folder(&self, node: usize) -> PathBuf {
        self.files.node(node)
    }

    pub fn config(&self, node: usize) -> PathBuf {
        self.files.config(node)
    }

    pub fn profile(&self, name: &str) -> PathBuf {
        self.files.profile(name)
    }

    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.files.data(node)
    }

    pub fn data_dirs(&self) -> Vec<PathBuf> {
        (0..self.size()).map(|node| self.data_dir(node)).collect()
    }

    pub fn log(&self, node: usize) -> PathBuf {
        self.files.node(node).join("node.log")
    }

    pub fn logs(&self) -> Vec<PathBuf> {
        (0..self.size()).map(|node| self.log(node)).collect()
    }

    pub fn endpoint(&self, node: usize) -> String {
        self.files.client_endpoint(node)
    }

    pub fn peer_endpoint(&self, node: usize) -> String {
        self.files.peer_endpoint(node)
    }

    pub fn ops_endpoint(&self, node: usize) -> String {
        self.files.ops_endpoint(node)
    }

    /// Until every running node knows the leaders, and the service may read through it.
    pub async fn wait_ready(&self) {
        self.wait_leaders().await;
        for node in (0..self.size()).filter(|node| self.is_started(*node) && self.is_keyed(*node)) {
            let client = self.client_at(node).with_deadline(Duration::from_secs(5));
            until(&format!("node {node} serves"), || may_read(&client)).await;
        }
    }

    /// The end of every node's log, for a panic's text.
    pub fn last_words(&self) -> String {
        (0..self.size()).map(|node| self.last_words_of(node)).collect()
    }

    fn last_words_of(&self, node: usize) -> String {
        let log = std::fs::read(self.log(node)).unwrap_or_default();
        let end = String::from_utf8_lossy(&log[log.len().saturating_sub(2_000)..]).into_owned();
        format!("--- {}: {end}\n", files::name(node))
    }
}

async fn may_read(client: &Client) -> Result<(), String> {
    match client.get(&Chart::shared("probe"), &RecordId::new("Probe", "1")).await {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Of a node's log, so many of the last lines that somebody should act on are shown when a test fails.
const COMPLAINTS_SHOWN: usize = 10;

impl Drop for Cluster {
    fn drop(&mut self) {
        // The folder goes: what the nodes complained of would go with it.
        if std::thread::panicking() {
            for log in self.logs() {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let complaints = text.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
                let complaints = complaints.collect::<Vec<_>>();
                for line in complaints.iter().skip(complaints.len().saturating_sub(COMPLAINTS_SHOWN)) {
                    let _closed = writeln!(std::io::stderr(), "{}: {line}", log.display());
                }
            }
        }
        if std::env::var_os("CHARTHOLD_TEST_KEEP").is_some() {
            self.folder.take().map(TempDir::keep);
        }
    }
}
