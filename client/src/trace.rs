//! Which trace a call belongs to, told to the gateway as W3C's `traceparent`.
//!
//! This crate makes no spans: whoever embeds it does, and names its own with
//! [`Client::with_traceparent`](crate::Client::with_traceparent).

use std::sync::Arc;

use tonic::Request;
use tonic::metadata::AsciiMetadataValue;
use uuid::Uuid;

const KEY: &str = "traceparent";

tokio::task_local! {
    static TRACEPARENT: AsciiMetadataValue;
}

/// Makes an attempt's request, inside of `make`, as a part of a trace. One that no header can hold is left out.
pub(crate) fn within<T>(traceparent: Option<&AsciiMetadataValue>, make: impl FnOnce() -> T) -> T {
    match traceparent {
        Some(traceparent) => TRACEPARENT.sync_scope(traceparent.clone(), make),
        None => make(),
    }
}

/// The header of a call: the caller's, or a new trace that nobody asks to be recorded.
pub(crate) fn of_call(given: Option<&Arc<str>>) -> Option<AsciiMetadataValue> {
    let made = || {
        // Random but for six bits that say "version 4", and never zero for these. The span's id is made of the trace's.
        let trace = Uuid::new_v4();
        let (high, low) = trace.as_u64_pair();
        format!("00-{}-{:016x}-00", trace.simple(), (high ^ low.rotate_left(1)).max(1))
    };
    given.map_or_else(made, |given| given.to_string()).parse().ok()
}

/// What a request says; nothing without a trace.
pub(crate) fn current() -> String {
    let text = TRACEPARENT.try_with(|traceparent| traceparent.to_str().unwrap_or_default().to_owned());
    text.unwrap_or_default()
}

/// Says it in a request.
pub(crate) fn tell<T>(request: &mut Request<T>) {
    // Without a trace the call is not worse.
    let _untraced = TRACEPARENT.try_with(|traceparent| request.metadata_mut().insert(KEY, traceparent.clone()));
}
