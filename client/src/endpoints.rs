//! The gateways a client knows, and which one to ask next.
//!
//! The rule: the hinted leader; else the first in the profile's order that is not known to be failing; else the one
//! whose failure is longest ago. A gateway that fails is left alone for a while, longer each time, and then tried with
//! a single call, so that a dead one costs one call now and then and not every call.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;

use crate::connect::{self, Security, Wire};
use crate::pipeline::Pipeline;
use crate::{Error, lock};

const REST_MIN: Duration = Duration::from_millis(250);
const REST_MAX: Duration = Duration::from_secs(10);
/// How many gateways that only hints named are kept beside the profile's.
const LEARNED_MAX: usize = 64;

/// One gateway.
pub(crate) struct Gateway {
    pub(crate) address: String,
    pub(crate) channel: Channel,
    pub(crate) wire: Arc<Wire>,
    pub(crate) pipeline: Arc<Pipeline>,
    health: Mutex<Health>,
}

#[derive(Default)]
struct Health {
    failures: u32,
    /// Set while failing: not before then.
    rests_until: Option<Instant>,
}

impl Gateway {
    fn new(address: &str, security: &Security) -> Result<Arc<Self>, Error> {
        let (channel, wire) = connect::channel(address, security)?;
        let (pipeline, health) = Default::default();
        Ok(Arc::new(Self { address: address.to_owned(), channel, wire, pipeline, health }))
    }

    pub(crate) fn succeeded(&self) {
        *lock(&self.health) = Health::default();
    }

    fn failed(&self) {
        let mut health = lock(&self.health);
        health.failures = health.failures.saturating_add(1);
        health.rest();
    }

    fn rests_until(&self) -> Option<Instant> {
        lock(&self.health).rests_until
    }

    /// Whether it may be used now. A rested one is given to one caller only, until that one's outcome is known.
    fn take(&self) -> bool {
        let mut health = lock(&self.health);
        match health.rests_until {
            None => true,
            Some(until) if until <= Instant::now() => {
                health.rest();
                true
            }
            Some(_) => false,
        }
    }
}

impl Health {
    fn rest(&mut self) {
        let rest = REST_MIN.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(REST_MAX);
        self.rests_until = Some(Instant::now() + rest);
    }
}

/// All gateways a client knows: the profile's, in its order, then those that hints named.
pub(crate) struct Endpoints {
    security: Security,
    configured: usize,
    gateways: Mutex<Vec<Arc<Gateway>>>,
}

impl Endpoints {
    pub(crate) fn new(addresses: &[String], security: Security) -> Result<Self, Error> {
        let gateways =
            addresses.iter().map(|address| Gateway::new(address, &security)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { security, configured: gateways.len(), gateways: Mutex::new(gateways) })
    }

    /// The next to ask, leaving out those tried; none when all were.
    pub(crate) fn next(&self, hint: Option<&str>, tried: &[Arc<Gateway>]) -> Option<Arc<Gateway>> {
        let untried = |gateway: &Arc<Gateway>| !tried.iter().any(|other| other.address == gateway.address);
        if let Some(gateway) = hint.and_then(|address| self.learn(address)).filter(untried)
            && gateway.take()
        {
            return Some(gateway);
        }
        let gateways: Vec<_> = lock(&self.gateways).iter().filter(|gateway| untried(gateway)).cloned().collect();
        let ready = gateways.iter().find(|gateway| gateway.take());
        ready.or_else(|| gateways.iter().min_by_key(|gateway| gateway.rests_until())).cloned()
    }

    /// Whether a round is over: `next` would find none.
    pub(crate) fn all_tried(&self, tried: &[Arc<Gateway>]) -> bool {
        lock(&self.gateways).iter().all(|gateway| tried.iter().any(|other| other.address == gateway.address))
    }

    /// The profile's first.
    pub(crate) fn first(&self) -> Option<Arc<Gateway>> {
        lock(&self.gateways).first().cloned()
    }

    /// This very one, whether it is known or not; one that is not known is not remembered.
    pub(crate) fn only(&self, address: &str) -> Result<Arc<Gateway>, Error> {
        match self.find(address) {
            Some(gateway) => Ok(gateway),
            None => Gateway::new(address, &self.security),
        }
    }

    /// A gateway that only a hint named is dropped when it fails: it may be gone for good.
    pub(crate) fn failed(&self, gateway: &Gateway) {
        gateway.failed();
        let mut gateways = lock(&self.gateways);
        if let Some(place) = gateways.iter().position(|other| other.address == gateway.address)
            && place >= self.configured
        {
            gateways.remove(place);
        }
    }

    fn find(&self, address: &str) -> Option<Arc<Gateway>> {
        lock(&self.gateways).iter().find(|gateway| gateway.address == address).cloned()
    }

    fn learn(&self, address: &str) -> Option<Arc<Gateway>> {
        if let Some(gateway) = self.find(address) {
            return Some(gateway);
        }
        let gateway = Gateway::new(address, &self.security).ok()?;
        let mut gateways = lock(&self.gateways);
        if let Some(known) = gateways.iter().find(|other| other.address == address) {
            return Some(Arc::clone(known));
        }
        if gateways.len() >= self.configured + LEARNED_MAX {
            return None;
        }
        gateways.push(Arc::clone(&gateway));
        Some(gateway)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn endpoints(addresses: &[&str]) -> Endpoints {
        let addresses: Vec<_> = addresses.iter().map(|address| address.to_string()).collect();
        Endpoints::new(&addresses, Security::Plaintext).unwrap()
    }

    fn next(endpoints: &Endpoints, hint: Option<&str>, tried: &[Arc<Gateway>]) -> Option<String> {
        endpoints.next(hint, tried).map(|gateway| gateway.address.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_that_is_not_failing() {
        let all = endpoints(&["a:1", "b:1", "c:1"]);
        assert_eq!(next(&all, None, &[]).unwrap(), "a:1");
        let a = all.only("a:1").unwrap();
        all.failed(&a);
        assert_eq!(next(&all, None, &[]).unwrap(), "b:1");
        assert_eq!(next(&all, Some("c:1"), &[]).unwrap(), "c:1");
        assert_eq!(next(&all, Some("a:1"), &[]).unwrap(), "b:1", "a hint does not overrule what was seen");

        tokio::time::advance(REST_MIN).await;
        assert_eq!(next(&all, None, &[]).unwrap(), "a:1", "one call tries it again");
        assert_eq!(next(&all, None, &[]).unwrap(), "b:1", "others don't meanwhile");
        a.succeeded();
        assert_eq!(next(&all, None, &[]).unwrap(), "a:1");
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_fail_the_longest_ago() {
        let all = endpoints(&["a:1", "b:1"]);
        let (a, b) = (all.only("a:1").unwrap(), all.only("b:1").unwrap());
        all.failed(&b);
        tokio::time::advance(Duration::from_millis(10)).await;
        all.failed(&a);
        assert_eq!(next(&all, None, &[]).unwrap(), "b:1");
        assert_eq!(next(&all, None, &[Arc::clone(&b)]).unwrap(), "a:1");
        assert_eq!(next(&all, None, &[a, b]), None);
    }

    #[tokio::test]
    async fn a_hint_may_name_a_gateway_that_the_profile_does_not() {
        let all = endpoints(&["a:1"]);
        assert_eq!(next(&all, Some("new:1"), &[]).unwrap(), "new:1");
        let new = all.only("new:1").unwrap();
        assert_eq!(next(&all, None, &[all.only("a:1").unwrap()]).unwrap(), "new:1", "and is kept in reserve");
        all.failed(&new);
        assert_eq!(next(&all, None, &[all.only("a:1").unwrap()]), None, "until it fails");
        assert_eq!(next(&all, Some("not an address"), &[]).unwrap(), "a:1");
    }
}
