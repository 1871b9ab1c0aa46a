//! The network between sites does what is asked of it: else a fault of the network proves nothing.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use charthold_tests::harness::{Link, Wan};

const SITES: usize = 3;
const ROUND_TRIP: Duration = Duration::from_millis(40);
const PORT: u16 = 9_000;
/// So many fit into a socket that nobody reads.
const PACKETS: usize = 100;
const PACKET: [u8; 200] = [b'.'; 200];
const MARKER: &[u8] = b"marker";
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);

struct Sites {
    wan: Wan,
    sockets: Vec<UdpSocket>,
}

impl Sites {
    /// Nothing if this process may not make networks.
    fn create() -> Option<Self> {
        if !Wan::is_possible() {
            return None;
        }
        let wan = Wan::create(SITES, ROUND_TRIP);
        let socket = |site| {
            let socket = wan.at(site, || UdpSocket::bind((wan.address(site), PORT))).unwrap();
            socket.set_read_timeout(Some(ARRIVES_WITHIN)).unwrap();
            socket
        };
        let sockets = (0..SITES).map(socket).collect();
        Some(Self { wan, sockets })
    }

    fn send(&self, from: usize, to: usize, packet: &[u8]) {
        self.sockets[from].send_to(packet, (self.wan.address(to), PORT)).unwrap();
    }

    /// How many packets come to a site before the marker.
    fn until_marker(&self, site: usize) -> usize {
        let (mut count, mut packet) = (0, PACKET);
        loop {
            let length = self.sockets[site].recv(&mut packet).expect("the marker");
            if &packet[..length] == MARKER {
                return count;
            }
            count += 1;
        }
    }

    /// How many of some packets pass a link. It is whole afterwards.
    fn passed(&self, from: usize, to: usize) -> usize {
        (0..PACKETS).for_each(|_| self.send(from, to, &PACKET));
        // Packets of a site are looked at in order. Once the last has come to the third site, the fate of the others is
        // decided; and those that pass are on their way, in front of a second marker.
        let third = (0..SITES).find(|site| *site != from && *site != to).unwrap();
        self.send(from, third, MARKER);
        assert_eq!(self.until_marker(third), 0, "a packet that was for another site");
        self.wan.change(from, to, |link| *link = Link { delay: link.delay, ..Link::default() });
        self.send(from, to, MARKER);
        self.until_marker(to)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_link_delivers_all_and_late() {
    let Some(sites) = Sites::create() else { return };
    tokio::task::block_in_place(|| {
        for (from, to) in [(0, 1), (1, 0), (2, 1)] {
            assert_eq!(sites.passed(from, to), PACKETS);
        }
        for _ in 0..10 {
            let began = Instant::now();
            sites.send(0, 1, MARKER);
            sites.until_marker(1);
            sites.send(1, 0, MARKER);
            sites.until_marker(0);
            assert!(began.elapsed() >= ROUND_TRIP, "there and back in {:?}", began.elapsed());
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_of_one_direction_of_one_link() {
    let Some(sites) = Sites::create() else { return };
    tokio::task::block_in_place(|| {
        sites.wan.change(0, 1, |link| link.cut = true);
        assert_eq!(sites.passed(1, 0), PACKETS, "the other direction");
        assert_eq!(sites.passed(2, 1), PACKETS, "another link");
        assert_eq!(sites.passed(0, 1), 0);
        assert_eq!(sites.passed(0, 1), PACKETS, "whole again");
        // Of everything.
        (0..SITES).for_each(|to| {
            if to != 2 {
                sites.wan.change(2, to, |link| link.cut = true)
            }
        });
        sites.wan.heal();
        assert_eq!(sites.passed(2, 0), PACKETS);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_loses_what_it_is_told_to_and_takes_its_time() {
    let Some(sites) = Sites::create() else { return };
    tokio::task::block_in_place(|| {
        let lossy = |_| {
            sites.wan.change(0, 1, |link| link.lost_percent = 30);
            sites.passed(0, 1)
        };
        let passed = (0..20).map(lossy).sum::<usize>();
        // 1,400 of 2,000 are expected; the standard deviation is 20.
        assert!((1_200..1_600).contains(&passed), "{passed} of 2,000 passed");

        let rate = 40_000;
        sites.wan.change(0, 1, |link| link.bytes_per_s = Some(rate));
        let began = Instant::now();
        (0..PACKETS).for_each(|_| sites.send(0, 1, &PACKET));
        sites.send(0, 1, MARKER);
        assert_eq!(sites.until_marker(1), PACKETS);
        let least = Duration::from_secs_f64((PACKETS * PACKET.len()) as f64 / rate as f64);
        assert!(began.elapsed() >= least, "{PACKETS} packets in {:?}, not {least:?}", began.elapsed());
    });
}
