//! PostgreSQL: a primary and two standbys, of which one must have synced a commit before it is answered.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::{Client, NoTls, Statement};

use super::Store;
use crate::harness::{Running, free_ports, until};

/// Debian's.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// It does not run as root.
const USER: &str = "postgres";
/// A connection holds one call at a time: as many as the largest case has callers.
const CONNECTIONS: usize = 256;
const SETTINGS: &str = "max_connections = 400\nwal_level = replica\nmax_wal_senders = 8\nshared_buffers = 512MB\n\
                        unix_socket_directories = ''\nlisten_addresses = '127.0.0.1'\n";

struct Connection {
    client: Client,
    put: Statement,
    get: Statement,
}

pub struct Postgresql {
    connections: Vec<Mutex<Connection>>,
    servers: Vec<Server>,
    _folder: TempDir,
}

fn program(name: &str) -> Command {
    let mut command = Command::new("runuser");
    command.args(["-u", USER, "--"]).arg(Path::new(PROGRAMS).join(name));
    command
}

fn done(mut command: Command) {
    let output = command.output().expect("a program of PostgreSQL");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A server below `runuser`, which passes no signal on.
struct Server {
    data: PathBuf,
    process: Running,
}

impl Server {
    fn start(data: PathBuf, port: u16, log: &Path) -> Self {
        let mut command = program("postgres");
        command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        Self { data, process: Running::with_log(command, log, "postgres") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its own process id is the first line. SIGINT: a stop that does not wait for its clients.
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let id = file.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
        if let Some(id) = id
            && kill_process(id, Signal::INT).is_ok()
        {
            self.process.wait();
        }
    }
}

async fn connect(port: u16) -> Result<Client, String> {
    let address = format!("host=127.0.0.1 port={port} user={USER} dbname=postgres");
    let (client, connection) = tokio_postgres::connect(&address, NoTls).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(client)
}

impl Postgresql {
    pub fn is_possible() -> bool {
        rustix::process::geteuid().is_root() && Path::new(PROGRAMS).join("initdb").exists()
    }

    pub async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("versus-postgresql-").tempdir().expect("a temporary folder");
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("a folder of our own");
        let data = |name: &str| -> PathBuf { folder.path().join(name) };
        let ports = free_ports(3);
        let mut init = program("initdb");
        init.args(["--auth=trust", "-E", "UTF8", "--no-locale", "-D"]).arg(data("primary"));
        done(init);
        let settings = data("primary").join("postgresql.auto.conf");
        std::fs::write(&settings, SETTINGS).expect("the settings");
        let mut servers = vec![Server::start(data("primary"), ports[0], &data("primary.log"))];
        let primary = until("the primary answers", || connect(ports[0])).await;
        for (name, port) in [("s1", ports[1]), ("s2", ports[2])] {
            let mut copy = program("pg_basebackup");
            let from = format!("host=127.0.0.1 port={} user={USER} application_name={name}", ports[0]);
            copy.args(["-R", "-X", "stream", "-d", &from, "-D"]).arg(data(name));
            done(copy);
            servers.push(Server::start(data(name), port, &data(&format!("{name}.log"))));
        }
        let quorum = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (s1, s2)'";
        for statement in [quorum, "SELECT pg_reload_conf()"] {
            primary.batch_execute(statement).await.expect("the primary's settings");
        }
        until("both standbys are in the quorum", || async {
            let asked = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'";
            let count: i64 = primary.query_one(asked, &[]).await.map_err(|error| error.to_string())?.get(0);
            if count == 2 { Ok(()) } else { Err(format!("{count} are")) }
        })
        .await;
        let table = "CREATE TABLE kv (k bigint PRIMARY KEY, v bytea NOT NULL)";
        primary.batch_execute(table).await.expect("a table");
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = connect(ports[0]).await.expect("a connection");
            let put = "INSERT INTO kv VALUES ($1, $2) ON CONFLICT (k) DO UPDATE SET v = excluded.v";
            let put = client.prepare(put).await.expect("a statement");
            let get = client.prepare("SELECT v FROM kv WHERE k = $1").await.expect("a statement");
            connections.push(Mutex::new(Connection { client, put, get }));
        }
        Self { connections, servers, _folder: folder }
    }

    /// One that is free; there are as many as callers.
    async fn connection(&self, key: u64) -> MutexGuard<'_, Connection> {
        let from = key as usize % CONNECTIONS;
        let mut all = (0..CONNECTIONS).map(|step| &self.connections[(from + step) % CONNECTIONS]);
        match all.find_map(|connection| connection.try_lock().ok()) {
            Some(free) => free,
            None => self.connections[from].lock().await,
        }
    }
}

impl Store for Postgresql {
    fn put(&self, key: u64, value: Vec<u8>) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let connection = self.connection(key).await;
            let done = connection.client.execute(&connection.put, &[&key.cast_signed(), &value]).await;
            done.map(|_| ()).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn get(&self, key: u64) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let connection = self.connection(key).await;
            let found = connection.client.query_one(&connection.get, &[&key.cast_signed()]).await;
            found.map(|_| ()).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn processes(&self) -> Vec<u32> {
        self.servers.iter().map(|server| server.process.id()).collect()
    }
}
