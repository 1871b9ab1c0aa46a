//! The handshake: who are you, and may you speak to me.
//!
//! The transport has proven the other end's name; the hello adds its node id, which was made with its data directory.
//! Refused are: another cluster; a name or role that is not the certificate's; a node that the directory does not know
//! (a wiped node comes back with a new id and is unknown); one whose directory was rolled back or copied (see
//! [`super::registry`]); another format.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use charthold_proto::internal as pb;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::clock::ClusterClock;
use super::disks::{self, ClusterDisks};
use super::frame::{Assembler, Kind, Message};
use super::leadership::{Leadership, Led};
use super::outbox::Outbox;
use super::registry::{Presence, Registry, Start};
use super::server::Caller;
use super::transport::{PeerIdentity, Stream};
use super::{HANDSHAKE_MAX, Lane, MARK_INTERVAL};
use crate::store::identity::Boot;
use crate::store::log::writer::LogWriter;
use crate::{NodeId, SHARD_COUNT, format};

/// Far more than a cluster has.
const CALLERS_MAX: usize = 64;
const HELLO_BYTES_MAX: usize = 16 << 10;

/// What a node is to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Member,
    /// There is no cluster yet: whoever has a certificate of it may be asked to form one, and is not remembered.
    Candidate,
}

/// Who the cluster's nodes are, as far as this node knows.
pub trait Roster: Send + Sync {
    /// What a node with this id and name is, or why it may not connect.
    fn admit(&self, id: NodeId, name: &str) -> Result<Standing, String>;
    /// The nodes by this node's own directory, and the entry that says so.
    fn known(&self) -> (Option<pb::LogId>, Vec<pb::Member>);
    /// The same, by the directory of a member with keys.
    fn hear(&self, at: Option<pb::LogId>, members: Vec<pb::Member>);
    /// The format that the cluster uses, as far as this node knows.
    fn format(&self) -> Option<u32>;
}

/// This node's side of every handshake.
pub struct Greeter {
    pub cluster: String,
    pub member: pb::Member,
    pub start: Start,
    /// Opaque here: a node with the same root key says the same. Empty: a keyless node.
    pub key_check: Bytes,
    pub roster: Arc<dyn Roster>,
    pub registry: Registry,
    pub clock: Arc<ClusterClock>,
    pub disks: Arc<ClusterDisks>,
    pub leadership: Arc<Leadership>,
    pub log: LogWriter,
    /// The peers that said last that this node is no member.
    pub refused_by: Mutex<BTreeSet<NodeId>>,
    /// Where the peers that have called are called themselves.
    pub callers: Mutex<BTreeMap<NodeId, String>>,
}

/// Who is at the other end.
pub struct Introduced {
    pub hello: pb::Hello,
    pub presence: Presence,
}

impl Introduced {
    pub fn caller(&self) -> Caller {
        let member = self.hello.member.as_ref();
        member.map_or(Caller { id: 0, keyed: false }, |member| Caller { id: member.id, keyed: member.keyed })
    }
}

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the handshake took too long")]
    TooSlow,
    #[error("refused by the peer: {0}")]
    RefusedByPeer(String),
    #[error("refused: {0}")]
    Refused(String),
}

impl Greeter {
    /// The calling end: says hello, checks the answer. `expected` is 0 when the node is not known yet, and is asked who it
    /// is: then it need be no member.
    pub async fn call(
        &self,
        stream: &mut dyn Stream,
        identity: &PeerIdentity,
        lane: Lane,
        expected: NodeId,
    ) -> Result<Introduced, HelloError> {
        let shake = async {
            write_hello(stream, &self.hello(lane, expected, String::new())).await?;
            let answer = read_hello(stream).await?;
            let peer = answer.member.as_ref().map_or(0, |member| member.id);
            match answer.no_member {
                true => self.refused_by.lock().insert(peer),
                false => self.refused_by.lock().remove(&peer),
            };
            if !answer.refused.is_empty() {
                return Err(HelloError::RefusedByPeer(answer.refused));
            }
            let presence = self.check(&answer, identity, Some(expected)).await.map_err(HelloError::Refused)?;
            Ok(Introduced { hello: answer, presence })
        };
        tokio::time::timeout(HANDSHAKE_MAX, shake).await.unwrap_or(Err(HelloError::TooSlow))
    }

    /// The called end: reads the hello, answers it or says why not.
    pub async fn answer(&self, stream: &mut dyn Stream, identity: &PeerIdentity) -> Result<Introduced, HelloError> {
        let shake = async {
            let hello = read_hello(stream).await?;
            let expected_here = hello.expected_node == 0 || hello.expected_node == self.member.id;
            let checked = match expected_here {
                true => self.check(&hello, identity, None).await,
                false => Err(format!("you expect node {:016x} here", hello.expected_node)),
            };
            let refused = checked.as_ref().err().cloned().unwrap_or_default();
            let caller = hello.member.as_ref();
            let no_member = caller.is_some_and(|member| self.roster.admit(member.id, &member.name).is_err());
            let answer = self.hello(Lane::Control, caller.map_or(0, |member| member.id), refused);
            write_hello(stream, &pb::Hello { no_member, ..answer }).await?;
            let presence = checked.map_err(HelloError::Refused)?;
            if let Some(member) = caller {
                self.note_caller(member);
            }
            Ok(Introduced { hello, presence })
        };
        tokio::time::timeout(HANDSHAKE_MAX, shake).await.unwrap_or(Err(HelloError::TooSlow))
    }

    fn note_caller(&self, member: &pb::Member) {
        let mut callers = self.callers.lock();
        if callers.len() < CALLERS_MAX {
            callers.insert(member.id, member.peer_address.clone());
        }
    }

    fn hello(&self, lane: Lane, expected_node: NodeId, refused: String) -> pb::Hello {
        let lane = match lane {
            Lane::Control => pb::hello::Lane::Control,
            Lane::Bulk => pb::hello::Lane::Bulk,
        };
        pb::Hello {
            format_min: format::OLDEST,
            format_max: format::NEWEST,
            cluster: self.cluster.clone(),
            member: Some(self.member.clone()),
            boot: Some(boot_to_pb(self.start.boot)),
            previous_boot: Some(boot_to_pb(self.start.previous)),
            recovered: self.start.recovered,
            lane: lane as i32,
            expected_node,
            refused,
            key_check: self.key_check.clone(),
            no_member: false,
            format_used: self.roster.format().unwrap_or(0),
        }
    }

    /// `called`: who was, 0 whoever is there; nothing: the other end calls.
    async fn check(
        &self,
        hello: &pb::Hello,
        identity: &PeerIdentity,
        called: Option<NodeId>,
    ) -> Result<Presence, String> {
        let member = hello.member.as_ref().ok_or("the hello names no node")?;
        let (id, name) = (member.id, member.name.as_str());
        if hello.cluster != self.cluster || identity.cluster != self.cluster {
            return Err(format!("another cluster: this one is {}", self.cluster));
        }
        self.check_format(hello)?;
        if name != identity.name || member.keyed != identity.keyed {
            return Err(format!("node {name} shows the certificate of {}", identity.name));
        }
        if id == 0 || id == self.member.id {
            return Err("node id is mine or none: is its data directory a copy?".to_owned());
        }
        if let Some(expected) = called.filter(|expected| *expected != 0 && id != *expected) {
            return Err(format!("expected node {expected:016x}, found {id:016x}: was its data directory replaced?"));
        }
        let standing = if called == Some(0) { Standing::Candidate } else { self.roster.admit(id, name)? };
        self.registry.meet(id, &start_of(hello), standing == Standing::Member).await
    }

    /// Whether both ends know what the cluster uses, as far as either has heard.
    fn check_format(&self, hello: &pb::Hello) -> Result<(), String> {
        let (oldest, newest) = (hello.format_min, hello.format_max);
        if newest < format::OLDEST || oldest > format::NEWEST {
            let here = format!("here are {} to {}", format::OLDEST, format::NEWEST);
            return Err(format!("it knows formats {oldest} to {newest}, {here}: the older version is to be upgraded"));
        }
        let used = self.roster.format().unwrap_or(0).max(hello.format_used);
        if used == 0 || (oldest..=newest).contains(&used) && format::is_known(used) {
            return Ok(());
        }
        Err(format!(
            "it knows formats {oldest} to {newest}, the cluster uses {used}: a version that knows it is needed"
        ))
    }

    /// Tells a peer how far this node's log is synced, what its clock shows and its disk permits, and whether it leads,
    /// until the connection ends.
    pub(super) async fn send_marks(&self, outbox: &Outbox) -> std::io::Error {
        let mut leads = self.leadership.leads();
        loop {
            let disk = disks::level_to_pb(self.disks.own()) as i32;
            let gives_way = self.leadership.gives_way();
            let (members_at, members) = self.roster.known();
            let (synced, clock_ms) = (self.log.synced(), self.clock.own_ms());
            let led = leads.borrow_and_update().iter().map(|led| led_to_pb(*led)).collect();
            let mark = pb::Mark { synced, clock_ms, disk, gives_way, members_at, members, led };
            let message = Message { kind: Kind::Mark, shard: 0, id: 0, payload: mark.encode_to_vec().into() };
            if outbox.send(message).await.is_err() {
                return std::io::ErrorKind::ConnectionAborted.into();
            }
            // At once when it leads something else: who has no replica knows it from here only.
            let _either = tokio::time::timeout(MARK_INTERVAL, leads.changed()).await;
        }
    }

    /// Takes what a peer tells. Refuses one that is no longer admitted.
    pub(super) fn on_mark(&self, from: &Introduced, payload: Bytes) -> std::io::Result<()> {
        let mark = pb::Mark::decode(payload).map_err(std::io::Error::other)?;
        let member = from.hello.member.as_ref().ok_or_else(|| std::io::Error::other("a node without a name"))?;
        let standing = self.roster.admit(member.id, &member.name).map_err(std::io::Error::other)?;
        self.check_format(&from.hello).map_err(std::io::Error::other)?;
        self.clock.hear(member.id, mark.clock_ms);
        self.disks.hear(member.id, disks::level_from_pb(mark.disk()));
        // Who has no keys orders nothing, whatever he leads. And more shards than there are nobody leads.
        let led = mark.led.iter().filter(|_| member.keyed).take(usize::from(SHARD_COUNT) + 1);
        let led = led.filter_map(led_from_pb).collect();
        self.leadership.hear(member.id, mark.gives_way, led);
        if member.keyed && standing == Standing::Member {
            self.roster.hear(mark.members_at, mark.members);
        }
        self.registry.note(member.id, &from.presence, mark.synced, standing == Standing::Member);
        Ok(())
    }
}

fn led_to_pb(Led { shard, term }: Led) -> pb::Led {
    pb::Led { shard: shard.into(), term }
}

fn led_from_pb(led: &pb::Led) -> Option<Led> {
    Some(Led { shard: led.shard.try_into().ok()?, term: led.term })
}

fn boot_to_pb(boot: Boot) -> pb::Boot {
    pb::Boot { counter: boot.counter, nonce: boot.nonce }
}

fn start_of(hello: &pb::Hello) -> Start {
    let boot =
        |boot: Option<pb::Boot>| boot.map_or(Boot::default(), |boot| Boot { counter: boot.counter, nonce: boot.nonce });
    Start { boot: boot(hello.boot), previous: boot(hello.previous_boot), recovered: hello.recovered }
}

async fn write_hello(stream: &mut dyn Stream, hello: &pb::Hello) -> std::io::Result<()> {
    let mut message = Message { kind: Kind::Hello, shard: 0, id: 0, payload: hello.encode_to_vec().into() };
    let mut bytes = BytesMut::new();
    message.write_frame(&mut bytes);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads exactly the hello's frame, not a byte of what follows.
async fn read_hello(stream: &mut dyn Stream) -> Result<pb::Hello, HelloError> {
    let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidData, "no hello");
    let length = stream.read_u32().await?;
    if length as usize > HELLO_BYTES_MAX {
        return Err(invalid().into());
    }
    let mut frame = BytesMut::with_capacity(4 + length as usize);
    frame.put_u32(length);
    frame.resize(4 + length as usize, 0);
    stream.read_exact(&mut frame[4..]).await?;
    let message = Assembler::default().next(&mut frame).map_err(std::io::Error::from)?;
    match message {
        Some(message) if message.kind == Kind::Hello => Ok(pb::Hello::decode(message.payload).map_err(|_| invalid())?),
        _ => Err(invalid().into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::testing::peers::AllBut66;

    fn greeter(id: NodeId, name: &str, cluster: &str, counter: u64, nonce: u64) -> Greeter {
        let start = Start { boot: Boot { counter, nonce }, previous: Boot::default(), recovered: 0 };
        Greeter { cluster: cluster.to_owned(), start, ..crate::testing::peers::new_greeter(id, name) }
    }

    fn identity(name: &str, cluster: &str) -> PeerIdentity {
        PeerIdentity { cluster: cluster.to_owned(), name: name.to_owned(), keyed: true }
    }

    /// What the called end (node 2, "b") says to a caller.
    async fn shake(called: &Greeter, caller: &Greeter, shown: PeerIdentity, expected: NodeId) -> Result<(), String> {
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        let called_identity = identity("b", &called.cluster);
        let (call, answer) = tokio::join!(
            caller.call(&mut near, &called_identity, Lane::Bulk, expected),
            called.answer(&mut far, &shown)
        );
        match (call, answer) {
            (Ok(_), Ok(caller)) => {
                assert!(caller.hello.lane() == pb::hello::Lane::Bulk);
                Ok(())
            }
            (_, Err(error)) | (Err(error), _) => Err(error.to_string()),
        }
    }

    async fn check(caller: Greeter, shown: PeerIdentity, expected: NodeId, wanted: Result<(), &str>) {
        let result = shake(&greeter(2, "b", "c", 1, 1), &caller, shown, expected).await;
        match (result, wanted) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) if error.contains(part) => {}
            (result, wanted) => panic!("{result:?}, wanted {wanted:?}"),
        }
    }

    #[tokio::test]
    async fn admits_a_member_and_refuses_all_others() {
        check(greeter(1, "a", "c", 1, 1), identity("a", "c"), 2, Ok(())).await;
        check(greeter(1, "a", "c", 1, 1), identity("a", "c"), 0, Ok(())).await;
        check(greeter(1, "a", "c", 1, 1), identity("a", "c"), 3, Err("you expect node")).await;
        check(greeter(1, "a", "d", 1, 1), identity("a", "d"), 2, Err("another cluster")).await;
        check(greeter(1, "a", "c", 1, 1), identity("a", "d"), 2, Err("another cluster")).await;
        check(greeter(1, "a", "c", 1, 1), identity("x", "c"), 2, Err("shows the certificate of x")).await;
        check(greeter(2, "a", "c", 1, 1), identity("a", "c"), 2, Err("copy")).await;
        check(greeter(66, "a", "c", 1, 1), identity("a", "c"), 2, Err("no member")).await;
    }

    #[tokio::test]
    async fn who_does_not_know_the_clusters_format_is_refused() {
        let of = |format| Greeter {
            roster: Arc::new(AllBut66 { format, ..AllBut66::default() }),
            ..greeter(2, "b", "c", 1, 1)
        };
        let (oldest, newest) = (format::OLDEST, format::NEWEST);
        for (here, there, known, wanted) in [
            (None, 0, (oldest, newest), true),
            (Some(newest), 0, (oldest, newest), true),
            (Some(newest), newest, (newest, newest + 1), true),
            (Some(oldest), 0, (oldest, oldest), true),
            // This end was away when the format was raised.
            (Some(oldest), newest, (newest, newest + 1), true),
            (Some(oldest), newest + 1, (oldest, newest + 1), false),
            (Some(newest), 0, (oldest, newest - 1), false),
            (Some(oldest), 0, (oldest + 1, newest), false),
            (None, 0, (newest + 1, newest + 2), false),
            (None, 0, (0, oldest - 1), false),
        ] {
            let hello =
                pb::Hello { format_min: known.0, format_max: known.1, format_used: there, ..Default::default() };
            assert_eq!(of(here).check_format(&hello).is_ok(), wanted, "{here:?} {there} {known:?}");
        }
    }

    #[tokio::test]
    async fn refuses_a_rolled_back_and_a_copied_directory() {
        let called = greeter(2, "b", "c", 1, 1);
        let shake =
            async |counter, nonce| shake(&called, &greeter(1, "a", "c", counter, nonce), identity("a", "c"), 2).await;
        assert_eq!(shake(5, 50).await, Ok(()));
        assert_eq!(shake(5, 50).await, Ok(()), "the second lane of the same start");
        assert!(shake(5, 51).await.unwrap_err().contains("copy"));
        assert!(shake(4, 40).await.unwrap_err().contains("rolled back"));
        assert_eq!(shake(6, 60).await, Ok(()));
    }

    #[tokio::test]
    async fn who_the_nodes_are_is_heard_from_members_with_keys() {
        for (keyed, heard) in [(true, 2), (false, 0)] {
            let roster = Arc::new(AllBut66::default());
            let called = Greeter { roster: Arc::clone(&roster) as _, ..greeter(2, "b", "c", 1, 1) };
            let mut caller = greeter(1, "a", "c", 1, 1);
            caller.member.keyed = keyed;
            let (mut near, mut far) = tokio::io::duplex(1 << 16);
            let (called_identity, shown) = (identity("b", "c"), PeerIdentity { keyed, ..identity("a", "c") });
            let (_, introduced) =
                tokio::join!(caller.call(&mut near, &called_identity, Lane::Bulk, 2), called.answer(&mut far, &shown));
            let mark = pb::Mark { members: vec![pb::Member::default(); 2], ..pb::Mark::default() };
            called.on_mark(&introduced.unwrap(), mark.encode_to_vec().into()).unwrap();
            assert_eq!(roster.heard.load(Ordering::SeqCst), heard, "keys: {keyed}");
        }
    }

    #[tokio::test]
    async fn garbage_is_no_hello() {
        let greeter = greeter(2, "b", "c", 1, 1);
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 0, 12, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            let (mut near, mut far) = tokio::io::duplex(1 << 16);
            near.write_all(bytes).await.unwrap();
            drop(near);
            assert!(greeter.answer(&mut far, &identity("a", "c")).await.is_err());
        }
    }
}
