//! Processes of the program under test: started, signalled, waited for, and never left behind.

use std::ffi::OsStr;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Below Linux's range for outgoing connections: such a connection could otherwise take the port of a node that is
/// down for a moment.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Names a program to be tested in place of the one that was built beside the tests.
pub const PROGRAM_VARIABLE: &str = "CHARTHOLD_TEST_PROGRAM";

/// The program: as the environment says, or built beside this test's own executable.
pub fn program() -> PathBuf {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE) {
        return program.into();
    }
    let test = std::env::current_exe().expect("this test's own executable");
    // target/debug/deps/<test>, or target/debug/<program of ours>
    let mut programs = test.ancestors().skip(1).take(2).map(|folder| folder.join("charthold"));
    let program = programs.find(|program| program.is_file());
    program.unwrap_or_else(|| panic!("no charthold beside {}: run `cargo build -p charthold` first", test.display()))
}

/// The program with these arguments, and nothing from this process's environment that would change what it does.
pub fn command<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    without_surroundings(Command::new(program()), arguments)
}

/// Likewise, of a command that is to run some program of ours.
pub fn without_surroundings<S: AsRef<OsStr>>(mut command: Command, arguments: &[S]) -> Command {
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CHARTHOLD_") || name == "RUST_LOG") {
            command.env_remove(name);
        }
    }
    command
}

/// Ports that nothing listens on, all different.
pub fn free_ports(count: usize) -> Vec<u16> {
    let mut held = Vec::with_capacity(count);
    for port in candidates() {
        if held.len() == count {
            break;
        }
        held.extend(TcpListener::bind(("127.0.0.1", port)).map(|listener| (port, listener)));
    }
    assert_eq!(held.len(), count, "too few free ports from {} to {}", PORTS.start, PORTS.end);
    held.into_iter().map(|(port, _)| port).collect()
}

/// A port from which on so many are free.
pub fn free_range(count: u16) -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let range = candidates().find(|first| (*first..*first + count).all(free));
    range.unwrap_or_else(|| panic!("no {count} free ports in a row"))
}

/// Where to begin is as good as random between test processes.
fn candidates() -> impl Iterator<Item = u16> {
    let length = PORTS.end - PORTS.start;
    let first = (std::process::id() as u16).wrapping_mul(37) % length;
    (0..length).map(move |offset| PORTS.start + (first + offset) % length)
}

/// The resident memory of a process that runs.
pub fn resident_kib(id: u32) -> u64 {
    memory_kib(id, "VmRSS:")
}

/// The most that it ever was.
pub fn peak_resident_mib(id: u32) -> u64 {
    memory_kib(id, "VmHWM:") >> 10
}

fn memory_kib(id: u32, kind: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("the status of a process");
    let line = status.lines().find_map(|line| line.strip_prefix(kind)).expect("its resident memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
}

pub fn resident_mib(id: u32) -> u64 {
    resident_kib(id) >> 10
}

/// A process that ends when this is dropped.
pub struct Running {
    child: Child,
    what: String,
}

impl Running {
    /// Both outputs are appended to the log.
    ///
    /// A node is told to stop with its parent, and the kernel means the *thread* that started it: call this from a
    /// thread that lives as long as the test, never from `spawn_blocking`.
    pub fn with_log(mut command: Command, log: &Path, what: &str) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("the log of a process");
        command.stdout(file.try_clone().expect("a second handle of the log")).stderr(file);
        Self::start(command, what)
    }

    pub fn start(mut command: Command, what: &str) -> Self {
        // Ctrl-C in a terminal is for the test, which then stops its processes.
        let child = command.process_group(0).spawn().unwrap_or_else(|error| panic!("starting {what}: {error}"));
        Self { child, what: what.to_owned() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("waiting for a child").is_none()
    }

    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.child.id().cast_signed()).expect("a process id");
        // It may have ended by itself.
        let _ = kill_process(id, signal);
    }

    /// SIGKILL: not a line of the program runs any more.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.child.wait().expect("waiting for a child")
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + super::WAIT_MAX;
        loop {
            if let Some(status) = self.child.try_wait().expect("waiting for a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} has not ended after {} s", self.what, super::WAIT_MAX.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that runs beside the test. Dropped, it is killed.
pub struct Background {
    pub(super) child: tokio::process::Child,
}

impl Background {
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("waiting for a child").is_none()
    }

    pub async fn finish(self) -> Finished {
        Finished::new(self.child.wait_with_output().await.expect("the program's output"))
    }
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Finished {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("stdout is UTF-8").trim_end()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("stdout is no JSON: {error}: {self:?}"))
    }

    /// The output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {} stderr: {}", String::from_utf8_lossy(&self.stdout), self.stderr);
        self
    }

    pub fn new(output: std::process::Output) -> Self {
        // A signal as a shell shows it.
        let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        Self { code, stdout: output.stdout, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
    }
}
