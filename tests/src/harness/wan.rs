//! Sites with a network between them: each in a namespace of its own, with one link to the test, which forwards every
//! packet or does not.
//!
//! The kernel here may have no netem, so the links are TUN devices: what a site sends comes to this process as a packet,
//! waits in the queue of its link (which has a delay, a loss, a rate, or is cut), and goes to the device of the site
//! that it is for. TCP and everything above are the kernel's own. Each direction of each link is apart, so a cut may be
//! one way.
//!
//! Needs root. Names and addresses are of the process, which may have one `Wan` at a time. Namespaces and
//! devices go when the `Wan` is dropped; what a killed process left is removed by the next one.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::mpsc;
use tokio_tun::Tun;

const PACKET_BYTES_MAX: usize = 1_500;
/// Packets on one link: over a second of full speed. More are dropped, as by any router.
const QUEUE_MAX: usize = 8_192;
/// A packet that did not come within this time does not come.
const ECHO_MAX: Duration = Duration::from_secs(10);
const PREFIX: &str = "charthold";
/// Where `ip netns` keeps them.
const NAMESPACES: &str = "/var/run/netns";

/// One direction between two sites.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Link {
    pub delay: Duration,
    /// Of a hundred packets.
    pub lost_percent: u8,
    /// Nothing: as fast as it goes.
    pub bytes_per_s: Option<u64>,
    pub cut: bool,
}

/// The sites' networks; the last place is where the test's own clients are.
pub struct Wan {
    names: Names,
    sites: usize,
    whole: Link,
    links: Arc<Links>,
    forwarders: Vec<tokio::task::JoinHandle<()>>,
    /// Sites that have one until all is healed.
    firewalls: Mutex<Vec<usize>>,
}

struct Links {
    places: usize,
    links: Vec<Mutex<Link>>,
}

impl Links {
    fn get(&self, from: usize, to: usize) -> Link {
        *self.links[from * self.places + to].lock().unwrap()
    }

    fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        change(&mut self.links[from * self.places + to].lock().unwrap());
    }
}

impl Wan {
    /// Whether this process may make networks.
    pub fn is_possible() -> bool {
        let probe = format!("{PREFIX}-{}-probe", std::process::id());
        let ip = |what| Command::new("ip").args(["netns", what, &probe]).output().is_ok_and(|it| it.status.success());
        std::path::Path::new("/dev/net/tun").exists() && ip("add") && ip("delete")
    }

    /// Sites with this round trip between any two of them. The clients are beside each of them: no delay.
    pub fn create(sites: usize, round_trip: Duration) -> Self {
        let places = sites + 1;
        remove_what_is_left();
        let names = Names(std::process::id());
        let links = Arc::new(Links { places, links: (0..places * places).map(|_| Mutex::default()).collect() });
        let devices = (0..places).map(|place| Arc::new(names.device(place, place == sites))).collect::<Vec<_>>();
        let mut forwarders = Vec::new();
        for (from, device) in devices.iter().enumerate() {
            let mut queues = Vec::with_capacity(places);
            for (to, target) in devices.iter().enumerate() {
                let (queue, packets) = mpsc::channel(QUEUE_MAX);
                queues.push(queue);
                forwarders.push(tokio::spawn(deliver(Arc::clone(&links), from, to, packets, Arc::clone(target))));
            }
            forwarders.push(tokio::spawn(forward(Arc::clone(&links), names, from, Arc::clone(device), queues)));
        }
        let whole = Link { delay: round_trip / 2, ..Link::default() };
        let wan = Self { names, sites, whole, links, forwarders, firewalls: Mutex::default() };
        wan.heal();
        wan
    }

    /// Where a site's node listens.
    pub fn address(&self, site: usize) -> Ipv4Addr {
        self.names.address(site)
    }

    /// A program that runs at a site: the one given, with its arguments and environment to be added.
    pub fn command_at(&self, site: usize, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names.namespace(site)]).arg(program);
        command
    }

    /// Does something at a site, on a thread of its own. A socket that is opened there stays there.
    pub fn at<T: Send>(&self, site: usize, work: impl FnOnce() -> T + Send) -> T {
        let path = std::path::Path::new(NAMESPACES).join(self.names.namespace(site));
        let namespace = std::fs::File::open(path).expect("a site's namespace");
        let enter = || move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
        std::thread::scope(|scope| {
            let at_site = scope.spawn(|| {
                enter().expect("into a site's namespace");
                work()
            });
            at_site.join().expect("what is done at a site")
        })
    }

    /// What the network really takes, there and back, so many times: a packet, and its echo. Blocks its thread.
    pub fn round_trips(&self, from: usize, to: usize, count: usize) -> Vec<Duration> {
        let socket = |site| {
            let socket = self.at(site, || UdpSocket::bind((self.address(site), 0))).expect("a socket at a site");
            socket.set_read_timeout(Some(ECHO_MAX)).expect("a socket's timeout");
            socket
        };
        let (here, there) = (socket(from), socket(to));
        there.connect(here.local_addr().expect("its address")).expect("a way back");
        here.connect(there.local_addr().expect("its address")).expect("a way there");
        let pass = |sender: &UdpSocket, receiver: &UdpSocket| {
            sender.send(&[0]).expect("a packet goes");
            receiver.recv(&mut [0]).expect("a packet comes: no link on its way is cut, and loses none");
        };
        let round_trip = |_| {
            let begun = Instant::now();
            pass(&here, &there);
            pass(&there, &here);
            begun.elapsed()
        };
        (0..count).map(round_trip).collect()
    }

    /// One direction between two sites.
    pub fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        assert!(from < self.sites && to < self.sites, "there are {} sites", self.sites);
        self.links.change(from, to, change);
    }

    /// Whether sites can have firewalls of their own.
    pub fn has_firewall() -> bool {
        Command::new("iptables").args(["-n", "-L", "INPUT"]).output().is_ok_and(|it| it.status.success())
    }

    /// A site answers all of another one's connections with resets: that one learns it at once, this one does not.
    pub fn reset(&self, site: usize, of: usize) {
        let from = self.address(of).to_string();
        self.firewalls.lock().unwrap().push(site);
        self.firewall(site, &["-A", "INPUT", "-p", "tcp", "-s", &from, "-j", "REJECT", "--reject-with", "tcp-reset"]);
    }

    fn firewall(&self, site: usize, arguments: &[&str]) {
        // Two processes at once wait for each other.
        let at_site = ["netns", "exec", &self.names.namespace(site), "iptables", "-w"];
        ip(&[&at_site, arguments].concat());
    }

    /// All links as they were at first, and no firewalls.
    pub fn heal(&self) {
        let firewalls = std::mem::take(&mut *self.firewalls.lock().unwrap());
        firewalls.into_iter().for_each(|site| self.firewall(site, &["-F", "INPUT"]));
        for from in 0..self.sites {
            for to in (0..self.sites).filter(|to| *to != from) {
                self.change(from, to, |link| *link = self.whole);
            }
        }
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.forwarders.iter().for_each(tokio::task::JoinHandle::abort);
        for site in 0..self.sites {
            // Whatever is wrong with it: the next run tries again.
            let _ = Command::new("ip").args(["netns", "delete", &self.names.namespace(site)]).output();
        }
    }
}

/// What is called how, for the process of this number.
#[derive(Clone, Copy)]
struct Names(u32);

impl Names {
    /// `10.<network>.<place + 1>.1`; two processes at once hardly have the same network.
    fn address(self, place: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, self.network(), u8::try_from(place + 1).expect("few sites"), 1)
    }

    fn network(self) -> u8 {
        64 + (self.0 % 128) as u8
    }

    /// Which place an IPv4 packet is for.
    fn place_of(self, packet: &[u8]) -> Option<usize> {
        let [first, ..] = packet else { return None };
        let [10, network, place, _] = packet.get(16..20)? else { return None };
        (first >> 4 == 4 && *network == self.network())
            .then_some(usize::from(*place))
            .and_then(|place| place.checked_sub(1))
    }

    fn namespace(self, site: usize) -> String {
        format!("{PREFIX}-{}-{site}", self.0)
    }

    /// Made here, then moved into its site's namespace: the open device stays ours.
    fn device(self, place: usize, here: bool) -> Tun {
        // 15 bytes are all that a device's name may have.
        let (name, namespace) = (format!("ch{}-{place}", self.0), self.namespace(place));
        let device = Tun::builder().name(&name).mtu(PACKET_BYTES_MAX as i32).close_on_exec().build();
        let device = device.unwrap_or_else(|error| panic!("a TUN device: {error}")).swap_remove(0);
        let at_site = |arguments: &[&str]| {
            let prefix: &[&str] = if here { &[] } else { &["-n", &namespace] };
            ip(&[prefix, arguments].concat());
        };
        if !here {
            ip(&["netns", "add", &namespace]);
            ip(&["link", "set", &name, "netns", &namespace]);
            at_site(&["link", "set", "lo", "up"]);
        }
        at_site(&["address", "add", &format!("{}/16", self.address(place)), "dev", &name]);
        // The kernel's own queue before a device is short: what it dropped would be a loss that no link has.
        at_site(&["link", "set", &name, "txqueuelen", &QUEUE_MAX.to_string(), "up"]);
        device
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip, of iproute2");
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
}

/// Namespaces of processes that are gone. Their devices went with them.
fn remove_what_is_left() {
    let listed = Command::new("ip").args(["netns", "list"]).output().expect("ip, of iproute2");
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let made_by = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        if made_by.is_some_and(|process| !std::path::Path::new("/proc").join(process).exists()) {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

type Packet = (Instant, Vec<u8>);

/// Takes what one place sends.
async fn forward(links: Arc<Links>, names: Names, from: usize, device: Arc<Tun>, queues: Vec<mpsc::Sender<Packet>>) {
    let mut random = fastrand::Rng::new();
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let Ok(length) = device.recv(&mut packet).await else { return };
        let packet = &packet[..length];
        let Some((to, queue)) = names.place_of(packet).and_then(|to| Some((to, queues.get(to)?))) else { continue };
        let link = links.get(from, to);
        if !link.cut && random.u8(0..100) >= link.lost_percent {
            let _full = queue.try_send((Instant::now(), packet.to_vec()));
        }
    }
}

/// Gives it to another one, in order, when it is time.
async fn deliver(links: Arc<Links>, from: usize, to: usize, mut packets: mpsc::Receiver<Packet>, device: Arc<Tun>) {
    let mut free_at = Instant::now();
    while let Some((sent, packet)) = packets.recv().await {
        let link = links.get(from, to);
        let takes = link
            .bytes_per_s
            .map_or(Duration::ZERO, |rate| Duration::from_nanos(packet.len() as u64 * 1_000_000_000 / rate.max(1)));
        free_at = free_at.max(sent) + takes;
        let due = free_at + link.delay;
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        // What was on its way when the link was cut is lost too.
        if !links.get(from, to).cut {
            let _down = device.send(&packet).await;
        }
    }
}
