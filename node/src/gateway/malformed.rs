//! What is refused before a service sees it, said in our words: a message that cannot be decoded, or is too large.
//!
//! gRPC libraries answer these with INTERNAL and OUT_OF_RANGE. To our callers INTERNAL means a defect of ours; this is
//! the caller's, and no repetition mends it.

use tonic::body::Body;
use tonic::{Code, Status};

use super::answer::code_of;
use super::error::GatewayError;

/// Takes every response's headers. All that our services answer has details; what has none is the library's.
pub fn explain(response: http::Response<Body>) -> http::Response<Body> {
    let what = match code_of(response.headers()) {
        Some(Code::Internal) => "cannot be read",
        Some(Code::OutOfRange) => "is too large",
        _ => return response,
    };
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    if !status.details().is_empty() {
        return response;
    }
    // Names fields and sizes, never values.
    let description = format!("{what}: {}", status.message());
    Status::from(GatewayError::field("message", description)).into_http()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tonic_types::StatusExt;

    use super::*;

    fn check(status: Status, code: Code, reason: Option<&str>) {
        let explained = Status::from_header_map(explain(status.into_http()).headers()).unwrap();
        let details = explained.get_error_details();
        assert_eq!(explained.code(), code);
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), reason);
    }

    #[test]
    fn the_callers_fault_is_called_so() {
        check(Status::internal("failed to decode"), Code::InvalidArgument, Some("INVALID_FIELD"));
        check(Status::out_of_range("too large"), Code::InvalidArgument, Some("INVALID_FIELD"));
        check(Status::unimplemented(""), Code::Unimplemented, None);
        check(GatewayError::Internal.into(), Code::Internal, Some("INTERNAL"));
        assert!(explain(http::Response::new(Body::default())).headers().is_empty());
    }
}
