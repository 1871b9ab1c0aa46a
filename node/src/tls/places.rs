//! How many connections a port holds, in all and of each address.
//!
//! An IPv6 address counts by its /64: whoever has one such address has all of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::accept::AcceptLimits;

/// What goes on for hours is said again after this.
const EPISODE: Duration = Duration::from_secs(60);

pub(super) struct Places {
    limits: AcceptLimits,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    of: HashMap<IpAddr, Share>,
}

#[derive(Clone, Copy, Default)]
struct Share {
    connections: usize,
    handshakes: usize,
}

/// Which limit a connection would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("{0} connections")]
    All(usize),
    #[error("{0} connections of one address")]
    Address(usize),
    #[error("{0} handshakes of one address")]
    Handshakes(usize),
}

impl Places {
    pub fn new(limits: AcceptLimits) -> Self {
        Self { limits, taken: Mutex::default() }
    }

    /// A place for a connection that is about to begin its handshake.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let (limits, address) = (&self.limits, counted_as(address));
        let mut taken = self.taken.lock();
        let share = taken.of.get(&address).copied().unwrap_or_default();
        if share.handshakes >= limits.handshakes_per_address_max {
            return Err(Full::Handshakes(limits.handshakes_per_address_max));
        }
        if share.connections >= limits.connections_per_address_max {
            return Err(Full::Address(limits.connections_per_address_max));
        }
        if taken.all >= limits.connections_max {
            return Err(Full::All(limits.connections_max));
        }
        taken.all += 1;
        taken.of.insert(address, Share { connections: share.connections + 1, handshakes: share.handshakes + 1 });
        Ok(Place { places: Arc::clone(self), address, handshaking: true })
    }
}

/// A connection's place, free again when this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
    handshaking: bool,
}

impl Place {
    pub fn handshake_is_over(&mut self) {
        if std::mem::take(&mut self.handshaking)
            && let Some(share) = self.places.taken.lock().of.get_mut(&self.address)
        {
            share.handshakes -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handshake_is_over();
        let mut taken = self.places.taken.lock();
        taken.all -= 1;
        if let Some(share) = taken.of.get_mut(&self.address) {
            share.connections -= 1;
            if share.connections == 0 {
                taken.of.remove(&self.address);
            }
        }
    }
}

fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        address => address,
    }
}

/// Something that is worth a line when it begins, and not for each time: a flood must not become a flood of lines.
#[derive(Default)]
pub(super) struct Episode {
    said_at: Option<Instant>,
}

impl Episode {
    pub fn begins(&mut self) -> bool {
        let new = self.said_at.is_none_or(|at| at.elapsed() >= EPISODE);
        if new {
            self.said_at = Some(Instant::now());
        }
        new
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn places() -> Arc<Places> {
        Arc::new(Places::new(AcceptLimits {
            connections_max: 4,
            connections_per_address_max: 3,
            handshakes_max: 9,
            handshakes_per_address_max: 2,
            handshake_timeout: Duration::from_secs(1),
        }))
    }

    #[test]
    fn nobody_takes_all_places() {
        let (places, one, other): (_, IpAddr, IpAddr) =
            (places(), "10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut held = vec![places.take(one).unwrap(), places.take(one).unwrap()];
        assert_eq!(places.take(one).err(), Some(Full::Handshakes(2)));
        held[0].handshake_is_over();
        held.push(places.take(one).unwrap());
        held.iter_mut().for_each(Place::handshake_is_over);
        assert_eq!(places.take(one).err(), Some(Full::Address(3)));
        held.push(places.take(other).unwrap());
        assert_eq!(places.take(other).err(), Some(Full::All(4)));
        held.swap_remove(0);
        places.take(other).unwrap();
        held.clear();
        let taken = places.taken.lock();
        assert!(taken.all == 0 && taken.of.is_empty());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let counted = |text: &str| counted_as(text.parse().unwrap()).to_string();
        assert_eq!(counted("2001:db8::1:2:3:4"), counted("2001:db8::ffff:0:0:1"));
        assert_ne!(counted("2001:db8:0:1::1"), counted("2001:db8::1"));
        assert_eq!(counted("::ffff:10.0.0.1"), "10.0.0.1");
    }
}
