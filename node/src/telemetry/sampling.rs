//! Which requests are traced: what their caller says, else a share of all.
//!
//! The decision is made of the trace's id, so that the attempts of one call on several gateways are all traced or none.
//!
//! `traceparent` is W3C's: `00-<trace id, 32 hex>-<parent span, 16 hex>-<flags, 2 hex>`; flag 1 asks for the trace. What
//! does not parse is as if it were absent. `tracestate` and baggage are not read: they may say anything.

use charthold_replica::trace::Context;

const SAMPLED: u8 = 1;
/// Of a trace's id that are random, as W3C has it: the last seven bytes.
const RANDOM_BITS: u32 = 56;

/// What a caller says of its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    context: Context,
    sampled: bool,
}

/// Reads a `traceparent`.
pub fn parse_traceparent(text: &str) -> Option<Given> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let whole = version.len() == 2 && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    // A later version may say more after the flags.
    let known = version != "ff" && (version != "00" || parts.next().is_none());
    let (mut trace_id, mut span_id, mut bits, mut number) = ([0; 16], [0; 8], [0; 1], [0; 1]);
    hex::decode_to_slice(version, &mut number).ok()?;
    hex::decode_to_slice(trace, &mut trace_id).ok()?;
    hex::decode_to_slice(span, &mut span_id).ok()?;
    hex::decode_to_slice(flags, &mut bits).ok()?;
    let valid = whole && known && trace_id != [0; 16] && span_id != [0; 8];
    let context = Context { trace: trace_id, span: u64::from_be_bytes(span_id) };
    valid.then_some(Given { context, sampled: bits[0] & SAMPLED != 0 })
}

/// The share of requests that are traced without being asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    below: u64,
}

impl Sampler {
    /// `ratio` from 0 (none) to 1 (all).
    pub fn new(ratio: f64) -> Self {
        Self { below: (ratio.clamp(0.0, 1.0) * (1_u64 << RANDOM_BITS) as f64) as u64 }
    }

    /// The parent of the request's span, if it is traced.
    pub fn decide(self, given: Option<Given>) -> Option<Context> {
        let Given { context, sampled } = given.unwrap_or_else(|| {
            let mut trace = [0; 16];
            // Without randomness there is no trace, and the request goes on.
            let random = getrandom::fill(&mut trace).is_ok();
            Given { context: Context { trace: if random { trace } else { [u8::MAX; 16] }, span: 0 }, sampled: false }
        });
        let last = u64::from_be_bytes(context.trace[8..].try_into().ok()?);
        let chosen = last & ((1 << RANDOM_BITS) - 1) < self.below;
        (sampled || chosen).then_some(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn reads_what_w3c_writes() {
        let given = parse_traceparent(PARENT).unwrap();
        assert!(given.sampled);
        assert_eq!(hex::encode(given.context.trace), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(given.context.span, 0xb7ad_6b71_6920_3331);
        assert!(parse_traceparent(&PARENT.replace("00-0a", "cc-0a").replace("-01", "-01-more")).is_some());
        let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let bad = [
            "",
            "00",
            &PARENT.replace("00-0a", "ff-0a"),
            &format!("{PARENT}-more"),
            &zero_trace,
            &PARENT.replace("b7ad6b7169203331", "0000000000000000"),
            &PARENT.replace("b7ad", "b7"),
            &PARENT.replace("0af7", "0xf7"),
        ];
        for bad in bad {
            assert_eq!(parse_traceparent(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_caller_may_ask_and_the_ratio_decides_else() {
        let asked = parse_traceparent(PARENT);
        let not_asked = parse_traceparent(&PARENT.replace("-01", "-00"));
        let (none, all) = (Sampler::new(0.0), Sampler::new(1.0));
        assert!(none.decide(asked).is_some() && none.decide(not_asked).is_none() && none.decide(None).is_none());
        assert!(all.decide(not_asked).is_some());
        assert_eq!(all.decide(None).unwrap().span, 0);
        assert_eq!(Sampler::new(0.5).decide(not_asked), Sampler::new(0.5).decide(not_asked));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_trace_or_none_never_a_panic(text: String) {
            parse_traceparent(&text);
        }
    }
}
