#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use super::queue::*;
use super::*;

const MS: Duration = Duration::from_millis(1);
const LATER: Duration = Duration::from_secs(30);
/// For however long.
const WAITS: Arrival = Arrival::Waits(Duration::ZERO);

/// Someone who waits, by name; gone once the flag says so.
#[derive(Clone, Debug)]
struct Caller(u32, Rc<Cell<bool>>);

impl Waiter for Caller {
    fn is_gone(&self) -> bool {
        self.1.get()
    }
}

/// A queue whose time is turned by hand.
struct Bench {
    queue: FairQueue<Caller>,
    now: Instant,
    settled: Settled<Caller>,
}

impl Bench {
    fn new(places: usize, waiting: usize) -> Self {
        let now = Instant::now();
        let limits = Limits { places, waiting, service_target: Some(250 * MS) };
        Self { queue: FairQueue::new(limits, now), now, settled: Vec::new() }
    }

    fn arrive(&mut self, tenant: u8, name: u32, within: Duration) -> Arrival {
        let deadline = self.now + within;
        let caller = || Caller(name, Rc::default());
        match self.queue.arrive([tenant; 16], self.now, deadline, caller, &mut self.settled) {
            Arrival::Waits(_) => WAITS,
            other => other,
        }
    }

    fn leave(&mut self, tenant: u8, took: Duration, kib: u64) {
        self.now += took;
        self.queue.leave([tenant; 16], self.now, Some(took), kib, &mut self.settled);
    }

    /// Whose wait has ended since the last look: by name, and whether admitted.
    fn settled(&mut self) -> Vec<(u32, bool)> {
        self.settled.drain(..).map(|(caller, _, refused)| (caller.0, refused.is_none())).collect()
    }
}

#[test]
fn places_are_given_in_order_of_coming() {
    let mut bench = Bench::new(1, 8);
    assert_eq!(bench.arrive(1, 0, LATER), Arrival::Admitted);
    for name in 1..=3 {
        assert_eq!(bench.arrive(1, name, LATER), WAITS);
    }
    for name in 1..=3 {
        bench.leave(1, MS, 0);
        assert_eq!(bench.settled(), [(name, true)]);
    }
}

#[test]
fn no_tenant_takes_all_places() {
    let mut bench = Bench::new(8, 8);
    let admitted = (0..8).filter(|name| bench.arrive(1, *name, LATER) == Arrival::Admitted).count();
    assert_eq!(admitted, 6);
    assert_eq!(bench.arrive(2, 9, LATER), Arrival::Admitted, "there is a place for another");
}

/// One tenant asks for ten times what the other does, and for more than there is.
#[test]
fn a_greedy_tenant_does_not_slow_a_modest_one() {
    let mut bench = Bench::new(4, 64);
    let (mut running, mut done, mut refused) = (Vec::new(), HashMap::<u8, u32>::new(), HashMap::<u8, u32>::new());
    let mut tenants = HashMap::new();
    for step in 0..20_000_u32 {
        // Of 4 places with 4 ms each, a millisecond serves one: asked for are 2, a twentieth by the modest.
        let modest = step % 10 == 0;
        let asking = if modest { vec![2, 1] } else { vec![1, 1] };
        for tenant in asking {
            let name = step * 2 + u32::from(tenant);
            tenants.insert(name, tenant);
            match bench.arrive(tenant, name, LATER) {
                Arrival::Admitted => running.push((bench.now + 4 * MS, tenant)),
                Arrival::Waits(_) => {}
                Arrival::Refused(_) => *refused.entry(tenant).or_default() += 1,
            }
        }
        bench.now += MS;
        while let Some(at) = running.iter().position(|(until, _)| *until <= bench.now) {
            let (_, tenant) = running.swap_remove(at);
            *done.entry(tenant).or_default() += 1;
            bench.queue.leave([tenant; 16], bench.now, Some(4 * MS), 2, &mut bench.settled);
            for (name, admitted) in bench.settled() {
                let tenant = tenants[&name];
                match admitted {
                    true => running.push((bench.now + 4 * MS, tenant)),
                    false => *refused.entry(tenant).or_default() += 1,
                }
            }
        }
    }
    assert!(done[&2] >= 1_990, "the modest one was served {} times of 2,000", done[&2]);
    assert_eq!(refused.get(&2), None, "and never refused");
    assert!(done[&1] >= 14_900, "three of the four places are the greedy one's all the time: {}", done[&1]);
    assert!(refused[&1] > 20_000);
}

/// Large calls cost more than small ones.
#[test]
fn bytes_count_against_the_share() {
    let mut bench = Bench::new(1, 64);
    assert_eq!(bench.arrive(1, 0, LATER), Arrival::Admitted);
    for name in 1..=8 {
        assert_eq!(bench.arrive(1, name, LATER), WAITS);
        assert_eq!(bench.arrive(2, 100 + name, LATER), WAITS);
    }
    bench.leave(1, MS, 64);
    let mut order = Vec::new();
    while let [(name, true)] = bench.settled()[..] {
        order.push(name);
        let (tenant, kib) = if name < 100 { (1, 64) } else { (2, 0) };
        bench.leave(tenant, MS, kib);
    }
    let first_small = order.iter().take(9).filter(|name| **name > 100).count();
    assert!(first_small >= 7, "{order:?}");
    assert_eq!(order.len(), 16);
}

#[test]
fn what_cannot_be_in_time_is_refused_at_once() {
    let mut bench = Bench::new(1, 64);
    // Calls take 100 ms.
    for name in 0..64 {
        assert_eq!(bench.arrive(1, name, LATER), Arrival::Admitted);
        bench.leave(1, 100 * MS, 0);
    }
    assert_eq!(bench.arrive(1, 100, LATER), Arrival::Admitted);
    assert!(matches!(bench.arrive(1, 101, 50 * MS), Arrival::Refused(delay) if delay >= 99 * MS));
    assert_eq!(bench.arrive(1, 102, 500 * MS), WAITS);
    // Its time runs out while it waits.
    assert_eq!(bench.arrive(1, 103, 350 * MS), WAITS);
    bench.leave(1, 100 * MS, 0);
    assert_eq!(bench.settled(), [(102, true)]);
    bench.leave(1, 200 * MS, 0);
    assert_eq!(bench.settled(), [(103, false)]);
}

#[test]
fn who_has_gone_is_passed_over() {
    let mut bench = Bench::new(1, 4);
    assert_eq!(bench.arrive(1, 0, LATER), Arrival::Admitted);
    let gone = Rc::new(Cell::new(false));
    let deadline = bench.now + LATER;
    for name in [1, 2] {
        let caller = || Caller(name, Rc::clone(&gone));
        let arrived = bench.queue.arrive([1; 16], bench.now, deadline, caller, &mut bench.settled);
        assert!(matches!(arrived, Arrival::Waits(_)));
    }
    assert!(matches!(bench.arrive(1, 3, LATER), Arrival::Refused(_)), "half of the queue is a tenant's");
    gone.set(true);
    assert_eq!(bench.arrive(1, 4, LATER), WAITS, "their places in the line are free");
    bench.leave(1, MS, 0);
    assert_eq!(bench.settled(), [(4, true)]);
}

#[test]
fn a_full_queue_makes_room_for_shorter_lines() {
    let mut bench = Bench::new(1, 8);
    assert_eq!(bench.arrive(1, 0, LATER), Arrival::Admitted);
    for name in 1..=4 {
        assert_eq!(bench.arrive(1, name, LATER), WAITS);
        assert_eq!(bench.arrive(2, 10 + name, LATER), WAITS);
    }
    assert_eq!(bench.arrive(3, 21, LATER), WAITS);
    let pushed_out = bench.settled();
    assert!(matches!(pushed_out[..], [(4 | 14, false)]), "{pushed_out:?}");
}

#[test]
fn a_standing_queue_is_cut_and_its_tenant_told_to_stay_away_longer() {
    let mut bench = Bench::new(1, 1_000);
    let mut delays = Vec::new();
    assert_eq!(bench.arrive(1, 0, LATER), Arrival::Admitted);
    // 10 ms a call, two come in that time, for ten seconds.
    for step in 0..1_000_u32 {
        for name in [2 * step + 1, 2 * step + 2] {
            if let Arrival::Refused(delay) = bench.arrive(1, name, LATER) {
                delays.push(delay);
            }
        }
        bench.leave(1, 10 * MS, 0);
        assert!(bench.settled().iter().filter(|(_, admitted)| *admitted).count() == 1, "the place is never empty");
    }
    let longest_line = 100 / 10 + 1;
    assert!(bench.queue.waiting() <= longest_line + 1, "{} wait", bench.queue.waiting());
    let (shortest, last) = (*delays.iter().min().unwrap(), *delays.last().unwrap());
    assert!(shortest < 200 * MS && last >= 3_000 * MS, "{shortest:?}, {last:?}");
}

/// One tenant holds all it may, and nothing ends for a while: the other's line stands, but not by its own doing.
#[test]
fn who_has_less_than_its_share_waits_out_a_stall() {
    let mut bench = Bench::new(8, 1_000);
    for name in 0..6 {
        assert_eq!(bench.arrive(1, name, LATER), Arrival::Admitted);
    }
    for name in 10..12 {
        assert_eq!(bench.arrive(2, name, LATER), Arrival::Admitted);
    }
    assert_eq!(bench.arrive(2, 20, LATER), WAITS);
    assert_eq!(bench.arrive(1, 30, LATER), WAITS);
    bench.now += 600 * MS;
    assert_eq!(bench.arrive(2, 21, LATER), WAITS);
    assert_eq!(bench.arrive(1, 31, LATER), WAITS);
    bench.now += 500 * MS;
    for tenant in [1, 2, 1] {
        bench.leave(tenant, MS, 0);
    }
    // 30 and 31 waited for longer than a tenant may that has its share, and 20 and 21 did not.
    let mut settled = bench.settled();
    settled.sort_unstable();
    assert_eq!(settled, [(20, true), (21, true), (30, false), (31, false)]);
}

#[test]
fn slow_calls_get_fewer_places() {
    let mut bench = Bench::new(64, 64);
    let mut places = |took: Duration, times: usize| {
        for _ in 0..times {
            assert_eq!(bench.arrive(1, 0, LATER), Arrival::Admitted);
            bench.leave(1, took, 0);
        }
        bench.queue.places()
    };
    assert_eq!(places(10 * MS, 300), 64);
    assert_eq!(places(1_000 * MS, 30), 16);
    assert_eq!(places(10 * MS, 3_000), 64);
}

/// Between far sites a call takes long though nobody waits.
#[test]
fn calls_that_were_always_slow_keep_their_places() {
    let mut bench = Bench::new(64, 64);
    let mut places = |took: Duration, times: usize| {
        for _ in 0..times {
            assert_eq!(bench.arrive(1, 0, LATER), Arrival::Admitted);
            bench.leave(1, took, 0);
        }
        bench.queue.places()
    };
    assert_eq!(places(400 * MS, 100), 64);
    assert_eq!(places(1_100 * MS, 50), 64);
    assert_eq!(places(1_500 * MS, 50), 16);
}

#[tokio::test]
async fn a_place_goes_on_to_who_waits_however_its_holder_ends() {
    let admission = Arc::new(Admission::new(4_000));
    let deadline = Instant::now() + LATER;
    let tenant = [1; 16];
    let places = Kind::Admin.limits().places * 3 / 4;
    let mut tickets = Vec::new();
    for _ in 0..places {
        tickets.push(admission.enter(Kind::Admin, tenant, deadline).await.unwrap());
    }
    let enter = || {
        let admission = Arc::clone(&admission);
        tokio::spawn(async move { admission.enter(Kind::Admin, tenant, deadline).await })
    };
    let (gone, waits) = (enter(), enter());
    tokio::task::yield_now().await;
    gone.abort();
    tokio::task::yield_now().await;
    tickets.pop();
    let ticket = waits.await.unwrap();
    assert!(ticket.is_ok(), "{:?}", ticket.err());
    drop((ticket, tickets));
    let free = (0..places).map(|_| admission.enter(Kind::Admin, tenant, deadline));
    assert!(futures::future::join_all(free).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn all_gets_that_have_a_place_get_a_seat_in_turn() {
    let (admission, tenant) = (Arc::new(Admission::new(4_000)), [1; 16]);
    let deadline = tokio::time::Instant::now() + LATER;
    let get = async || {
        let _place = admission.enter(Kind::Get, tenant, deadline.into_std()).await?;
        let seat = InnerDoor::new(&admission, tenant).enter(deadline).await;
        let seated = admission.lines[Kind::Opened as usize].lock().running();
        // Others come meanwhile.
        tokio::task::yield_now().await;
        drop(seat.map_err(|_| Duration::ZERO)?);
        Ok::<_, Duration>(seated)
    };
    let seated = futures::future::join_all((0..Kind::Get.limits().places * 3 / 4).map(|_| get())).await;
    let most = seated.into_iter().map(|seated| seated.expect("none is refused")).max();
    assert_eq!(most, Some(48), "three quarters of 64");
}

#[tokio::test]
async fn the_budget_of_bytes_is_shared_and_given_back() {
    let admission = Arc::new(Admission::new(4_000));
    let deadline = Instant::now() + LATER;
    let greedy = admission.enter(Kind::Commit, [1; 16], deadline).await.unwrap();
    let modest = admission.enter(Kind::Commit, [2; 16], deadline).await.unwrap();
    assert!(greedy.take(3_000).is_ok());
    assert!(greedy.take(1).is_err(), "no tenant takes all");
    assert!(modest.take(1_000).is_ok());
    assert!(modest.take(1).is_err());
    drop(greedy);
    assert!(modest.take(1).is_ok());
    drop(modest);
    assert_eq!(admission.budget.lock().bytes, 0);
    assert!(admission.budget.lock().by_tenant.is_empty());
}
