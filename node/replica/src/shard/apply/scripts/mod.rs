//! Runs the scripts in `testdata/apply`: entries in, answers and rows out.
//!
//! ```text
//! shard 0                       a fresh state of another group (a file begins with an empty shard 1)
//! restart                       the applier starts anew from the state
//! apply at=5000 [slot=9]        one batch, an entry a line, with this log time; one answer a line
//!   key k1 [chart=b]
//!   commit r1 [made=4000] [chart=b] [key=k2] [print=x]: put type/id [absent | =3], delete ..., check ...
//!     put type/id of:u1:3        in place of a body the upload u1 with its 3 parts
//!   part u1 0 [last] [chart=b] [key=k2] [print=x] | drop u1 [idle=1000] [chart=b]
//!   give 4096-8191 to=2 | take 8192-16383 [of=1 seq=3 at-ms=5000]        given by nobody, or by a shard at that point
//!   index term type/id [chart=b] | unindex term type/id seen=5000 [chart=b]
//!   init r1 | tenant r1 name | grant r1 tenant principal | ungrant r1 tenant principal      [made=..] [print=x]
//!   blank | members 1 2 | raw <hex>
//!   any command: [issued=3000]
//! records | charts | uploads | requests | index | ledger | directory | handovers | progress
//! ```
//! Charts are `a` with the key `k1`, unless said otherwise; a request is made at its log time.

#![allow(clippy::unwrap_used)]

pub mod parse;
mod print;

use charthold_proto::internal as pb;

use super::{Applier, Entry};
use crate::store::state::StateEngine;
use crate::store::state::memory::MemoryState;
use crate::testing::applier;

/// One file's state.
struct World {
    state: MemoryState,
    applier: Applier,
    next_index: u64,
}

impl World {
    fn new(shard: crate::ShardId) -> Self {
        let state = MemoryState::default();
        let applier = applier(shard, &state);
        Self { state, applier, next_index: 1 }
    }

    fn run(&mut self, case: &mut datadriven::TestCase) -> String {
        match case.directive.as_str() {
            "shard" => {
                let shard = case.args.keys().next().unwrap().parse().unwrap();
                *self = Self::new(shard);
                String::new()
            }
            "restart" => {
                self.applier = applier(self.applier.shard, &self.state);
                String::new()
            }
            "apply" => {
                let slot = case.try_take_arg("slot").unwrap().unwrap_or(0);
                let defaults = parse::Defaults { at: case.take_arg("at").unwrap(), slot };
                let payloads = case.input.lines().map(|line| parse::payload(line, &defaults));
                self.apply(payloads.collect())
            }
            "records" => print::records(&self.state),
            "charts" => print::charts(&self.state),
            "uploads" => print::uploads(&self.state),
            "requests" => print::requests(&self.state),
            "index" => print::index(&self.state),
            "ledger" => print::ledger(&self.state, self.applier.shard, &self.applier.progress),
            "directory" => print::directory(&self.state),
            "handovers" => print::handovers(&self.state),
            "progress" => print::progress(&self.applier.progress),
            unknown => panic!("unknown directive {unknown}"),
        }
    }

    fn apply(&mut self, payloads: Vec<super::Payload>) -> String {
        let numbered = payloads.into_iter().zip(self.next_index..);
        let entries =
            numbered.map(|(payload, index)| Entry { log_id: pb::LogId { term: 1, leader: 1, index }, payload });
        let entries = entries.collect::<Vec<_>>();
        self.next_index += entries.len() as u64;
        match self.applier.apply(&self.state, entries) {
            Ok((ops, outcomes)) => {
                self.state.write(&ops).unwrap();
                outcomes.iter().map(print::outcome).collect()
            }
            // The group stops here; a script starts it again.
            Err(error) => format!("stopped: {error}\n"),
        }
    }
}

#[test]
fn scripts_give_what_they_say() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/apply");
    datadriven::walk(folder, |file| {
        let mut world = World::new(1);
        file.run(|case| world.run(case));
    });
}
