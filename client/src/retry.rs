//! One call, as many attempts as it takes: until it is answered for good or the deadline has passed.
//!
//! Owns when to try again, and the one judgement that matters for a commit: whether it is *certain* that nothing
//! happened. Every attempt of a call sends the same message, the request id in it included, so that the cluster
//! recognises a commit that it has seen. Knows nothing of what is called.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::endpoints::{Endpoints, Gateway};
use crate::error::{Error, Failure, Next};
use crate::hints::Hints;
use crate::pipeline::Pipeline;
use crate::trace;
use crate::types::Chart;

/// So that a gateway that went silent does not eat the whole deadline.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A gateway may ask for no longer a pause.
const ASKED_FOR_MAX: Duration = Duration::from_secs(10);

/// Where a call may go.
#[derive(Clone, Copy)]
pub(crate) enum Route<'a> {
    /// Any gateway; best the leader of the chart's shard.
    Chart(&'a Chart),
    /// Any gateway.
    Any,
    /// The profile's first and no other, with all the time there is.
    First,
    /// This one and no other, once.
    Only(&'a str),
}

/// What all attempts of a call share.
pub(crate) struct Call<'a> {
    pub route: Route<'a>,
    pub deadline: Duration,
    /// Set when the call changes something: what it is known by.
    pub request_id: Option<Uuid>,
    /// The caller's trace.
    pub traceparent: Option<&'a Arc<str>>,
}

/// What one attempt may use.
pub(crate) struct Attempt {
    pub channel: Channel,
    pub pipeline: Arc<Pipeline>,
    pub timeout: Duration,
    /// Of the whole call.
    pub deadline: Instant,
}

/// The gateways, and what is known of them; shared by all clones of a client.
pub(crate) struct Cluster {
    pub endpoints: Endpoints,
    pub hints: Hints,
}

impl Cluster {
    /// Repeats `attempt` until it is answered for good, or the deadline has passed.
    pub(crate) async fn run<T, F, Fut>(&self, call: Call<'_>, mut attempt: F) -> Result<T, Error>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + call.deadline;
        let traceparent = trace::of_call(call.traceparent);
        let mut course = Course::new(self, call);
        loop {
            let gateway = course.choose()?;
            let remaining = deadline.saturating_duration_since(Instant::now());
            let budget = if let Route::First = course.call.route { remaining } else { remaining.min(ATTEMPT_TIMEOUT) };
            let mark = gateway.wire.mark();
            let (channel, pipeline) = (gateway.channel.clone(), Arc::clone(&gateway.pipeline));
            let this = Attempt { channel, pipeline, timeout: budget, deadline };
            let answer = trace::within(traceparent.as_ref(), || attempt(this));
            let mut failure = match timeout(budget, answer).await {
                Ok(Ok(answer)) => {
                    gateway.succeeded();
                    return Ok(answer);
                }
                Ok(Err(status)) => Failure::from_status(&status),
                Err(_) => Failure::timed_out(&gateway.address),
            };
            if let Next::Retry { maybe_applied, .. } = &mut failure.next {
                *maybe_applied &= !gateway.wire.silent_since(mark);
            }
            let pause = course.judge(failure, gateway)?;
            if Instant::now() + pause.length >= deadline {
                return Err(course.give_up(pause.error));
            }
            sleep(pause.length).await;
        }
    }
}

/// The course of one call.
struct Course<'a> {
    cluster: &'a Cluster,
    call: Call<'a>,
    /// In this round; when every gateway was, the next round begins.
    tried: Vec<Arc<Gateway>>,
    rounds: u32,
    maybe_applied: bool,
    /// Every failure so far was one that its gateway will not mend while we wait.
    only_elsewhere: bool,
}

/// Before the next attempt, if there is time for one; else the error is what the caller hears.
struct Pause {
    length: Duration,
    error: Error,
}

impl<'a> Course<'a> {
    fn new(cluster: &'a Cluster, call: Call<'a>) -> Self {
        Self { cluster, call, tried: Vec::new(), rounds: 0, maybe_applied: false, only_elsewhere: true }
    }

    fn choose(&mut self) -> Result<Arc<Gateway>, Error> {
        let none = || Error::Config("the profile names no endpoint".into());
        let Cluster { endpoints, hints } = self.cluster;
        let hint = match self.call.route {
            Route::First => return endpoints.first().ok_or_else(none),
            Route::Only(address) => return endpoints.only(address),
            Route::Any => None,
            Route::Chart(chart) => hints.get(chart),
        };
        if let Some(gateway) = endpoints.next(hint.as_deref(), &self.tried) {
            return Ok(gateway);
        }
        self.tried.clear();
        endpoints.next(hint.as_deref(), &[]).ok_or_else(none)
    }

    /// Ends the call, or says how long to wait before the next attempt.
    fn judge(&mut self, failure: Failure, gateway: Arc<Gateway>) -> Result<Pause, Error> {
        let Failure { error, next } = failure;
        let (asked_for, blame) = match next {
            Next::Stop { settled } => {
                // The gateway answered, whatever it said.
                gateway.succeeded();
                return Err(if settled { error } else { self.give_up(error) });
            }
            Next::Retry { maybe_applied, wait, blame } => {
                self.maybe_applied |= maybe_applied;
                self.only_elsewhere = false;
                (wait, blame)
            }
            Next::Elsewhere => (None, true),
        };
        let Cluster { endpoints, hints } = self.cluster;
        if blame {
            endpoints.failed(&gateway);
        }
        if let Route::Chart(chart) = self.call.route {
            hints.forget(chart);
        }
        self.tried.push(gateway);
        let round_done = match self.call.route {
            Route::Only(_) => return Err(self.give_up(error)),
            Route::First => true,
            Route::Any | Route::Chart(_) => endpoints.all_tried(&self.tried),
        };
        if round_done && self.only_elsewhere {
            return Err(error);
        }
        // Another gateway is worth asking at once; the same ones again only after a while.
        let backoff = if round_done { self.backoff() } else { Duration::ZERO };
        // Never sooner than asked, and up to half as long again: those who were refused together come back apart.
        let asked_for = asked_for.unwrap_or_default().min(ASKED_FOR_MAX);
        Ok(Pause { length: (asked_for + random_part(asked_for / 2)).max(backoff), error })
    }

    /// Half of it fixed, half random, so that the clients of a failed gateway don't come back in step.
    fn backoff(&mut self) -> Duration {
        let ceiling = BACKOFF_MIN.saturating_mul(1 << self.rounds.min(16)).min(BACKOFF_MAX);
        self.rounds += 1;
        ceiling / 2 + random_part(ceiling / 2)
    }

    /// What the caller hears when no attempt settled the call.
    fn give_up(&self, error: Error) -> Error {
        match self.call.request_id {
            Some(request_id) if self.maybe_applied => Error::OutcomeUnknown { request_id },
            _ => error,
        }
    }
}

/// From nothing to `most`.
fn random_part(most: Duration) -> Duration {
    // A fresh RandomState is the standard library's one source of randomness.
    let random = RandomState::new().build_hasher().finish() % 1_024;
    most.mul_f64(random as f64 / 1_024.0)
}
