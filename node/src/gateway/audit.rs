//! Audit events: who did what for whom, sealed into the ledger with the outcome.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_proto::v1::RequestContext;
use prost::Message;

use super::Gateway;
use super::error::GatewayError;
use crate::seal::{Address, Kind, Token, write_id};

/// In the ledger, in place of an operator: of what the cluster does by itself.
pub const BY_ITSELF: &str = "charthold";

/// Milliseconds since 1970, by this gateway's clock: said in events, decides nothing but the age of page tokens.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

pub fn clear_context(context: &RequestContext) -> pb::ClearContext {
    pb::ClearContext {
        actor: context.actor.clone(),
        on_behalf_of: context.on_behalf_of.clone(),
        purpose_of_use: context.purpose_of_use.clone(),
        reason: context.reason.clone(),
        session: context.session.clone(),
        device: context.device.clone(),
        origin: context.origin.clone(),
    }
}

impl Gateway {
    pub(super) fn audit_event(&self, method: &str, principal: &str, context: &RequestContext) -> pb::AuditEvent {
        pb::AuditEvent {
            method: method.to_owned(),
            principal: principal.to_owned(),
            context: Some(clear_context(context)),
            gateway_time_ms: now_ms(),
            gateway: self.replica.member.name.clone(),
            ..Default::default()
        }
    }

    /// Events of the directory are the operators': sealed under the root key.
    pub(super) fn seal_directory_event(
        &self,
        event: &pb::AuditEvent,
        tenant: &Token,
        request_id: &[u8; 16],
    ) -> Result<Bytes, GatewayError> {
        let address = Address { tenant: *tenant, write_id: write_id(request_id, 0), ..Address::of(Kind::AuditEvent) };
        Ok(self.root.seal_bytes(&address, &event.encode_to_vec())?.into_bytes())
    }
}
