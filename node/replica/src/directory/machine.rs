//! The directory's commands.

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::outcome::Result as Answer;
use pb::refused::Reason;
use prost::Message;

use super::{placement, plan};
use crate::shard::apply::overlay::Overlay;
use crate::shard::apply::recorder::RequestPlace;
use crate::shard::apply::{Applier, ApplyError, read_row, refused};
use crate::store::state::Table;
use crate::store::table::request::RequestId;
use crate::store::table::{cluster, directory_request, grant, ledger, tenant};

/// What all commands of the directory have.
struct Request {
    request_id: Bytes,
    audit_event: Bytes,
    tenant: Bytes,
    /// The gateway's, over what the command says in clear: what is sealed differs at every try.
    fingerprint: Bytes,
}

impl Applier {
    pub(crate) fn init_cluster(&mut self, overlay: &mut Overlay, init: pb::InitCluster) -> Result<Answer, ApplyError> {
        let Some(first_grant) = init.grant else { return Ok(refused(Reason::Malformed)) };
        let Some(key) = grant_key(&first_grant) else { return Ok(refused(Reason::Malformed)) };
        let request = Request {
            request_id: init.request_id,
            audit_event: init.audit_event,
            tenant: Bytes::new(),
            fingerprint: init.fingerprint,
        };
        self.once(overlay, request, |overlay, log_time_ms| {
            if overlay.get(Table::Cluster, cluster::encode())?.is_some() {
                return Ok(Some(Reason::AlreadyInitialized));
            }
            let row = cluster::Row {
                cluster: init.cluster,
                root_check: init.root_check,
                shards: init.shards,
                format: init.format,
                ..Default::default()
            };
            overlay.put(Table::Cluster, cluster::encode(), row.encode_to_vec().into());
            put_grant(overlay, &key, first_grant.sealed_grant, log_time_ms);
            Ok(None)
        })
    }

    pub(crate) fn put_tenant(&mut self, overlay: &mut Overlay, put: pb::PutTenant) -> Result<Answer, ApplyError> {
        let Ok(uid) = put.tenant.as_ref().try_into() else { return Ok(refused(Reason::Malformed)) };
        let request = Request {
            request_id: put.request_id,
            audit_event: put.audit_event,
            tenant: put.tenant.clone(),
            fingerprint: put.fingerprint,
        };
        self.once(overlay, request, |overlay, log_time_ms| {
            let row = tenant::Row {
                log_time_ms,
                sealed_name: put.sealed_name,
                tenant_key: put.tenant_key,
                audit_key: put.audit_key,
                address_secret: put.address_secret,
            };
            if overlay.get(Table::Tenant, tenant::encode(&uid))?.is_none() {
                overlay.put(Table::Tenant, tenant::encode(&uid), row.encode_to_vec().into());
            }
            Ok(None)
        })
    }

    pub(crate) fn put_grant(&mut self, overlay: &mut Overlay, put: pb::PutGrant) -> Result<Answer, ApplyError> {
        let Some(granted) = put.grant else { return Ok(refused(Reason::Malformed)) };
        let Some(key) = grant_key(&granted) else { return Ok(refused(Reason::Malformed)) };
        let request = Request {
            request_id: put.request_id,
            audit_event: put.audit_event,
            tenant: granted.tenant.clone(),
            fingerprint: put.fingerprint,
        };
        self.once(overlay, request, |overlay, log_time_ms| {
            put_grant(overlay, &key, granted.sealed_grant, log_time_ms);
            Ok(None)
        })
    }

    pub(crate) fn remove_grant(
        &mut self,
        overlay: &mut Overlay,
        remove: pb::RemoveGrant,
    ) -> Result<Answer, ApplyError> {
        let named = pb::Grant {
            tenant: remove.tenant.clone(),
            principal: remove.principal.clone(),
            sealed_grant: Bytes::new(),
        };
        let Some(key) = grant_key(&named) else { return Ok(refused(Reason::Malformed)) };
        let request = Request {
            request_id: remove.request_id,
            audit_event: remove.audit_event,
            tenant: remove.tenant.clone(),
            fingerprint: remove.fingerprint,
        };
        self.once(overlay, request, |overlay, _| {
            overlay.delete(Table::Grant, key.encode());
            Ok(None)
        })
    }

    /// Records an operator's change of the nodes: who is retired stays so.
    pub(crate) fn change_node(&mut self, overlay: &mut Overlay, change: pb::ChangeNode) -> Result<Answer, ApplyError> {
        let request = Request {
            request_id: change.request_id,
            audit_event: change.audit_event,
            tenant: Bytes::new(),
            fingerprint: change.fingerprint,
        };
        self.change_cluster(overlay, request, |row| {
            row.retired_nodes.extend(change.retired.filter(|node| !row.retired_nodes.contains(node)));
            None
        })
    }

    /// Records what the shards are to hold. The lowest spare one gets the upper half, on the nodes that have it.
    pub(crate) fn split_shard(&mut self, overlay: &mut Overlay, split: pb::SplitShard) -> Result<Answer, ApplyError> {
        let request = Request {
            request_id: split.request_id,
            audit_event: split.audit_event,
            tenant: Bytes::new(),
            fingerprint: split.fingerprint,
        };
        self.change_cluster(overlay, request, |row| match plan::split(&row.shards, split.shard) {
            None => Some(Reason::CannotSplit),
            Some(shards) => {
                let before = std::mem::replace(&mut row.shards, shards);
                placement::inherit(row, &before, split.shard);
                None
            }
        })
    }

    /// Records where shards are to be, and how many replicas each is to have.
    pub(crate) fn place_shards(&mut self, overlay: &mut Overlay, place: pb::PlaceShards) -> Result<Answer, ApplyError> {
        let request = Request {
            request_id: place.request_id,
            audit_event: place.audit_event,
            tenant: Bytes::new(),
            fingerprint: place.fingerprint,
        };
        self.change_cluster(overlay, request, |row| {
            row.replicas = place.replicas;
            (!placement::put(row, place.placements)).then_some(Reason::Malformed)
        })
    }

    /// Never down: a node that knew the old one only may be gone by now.
    pub(crate) fn raise_format(&mut self, overlay: &mut Overlay, raise: pb::RaiseFormat) -> Result<Answer, ApplyError> {
        let request = Request {
            request_id: raise.request_id,
            audit_event: raise.audit_event,
            tenant: Bytes::new(),
            fingerprint: raise.fingerprint,
        };
        self.change_cluster(overlay, request, |row| {
            row.format = row.format.max(raise.format);
            None
        })
    }

    /// Changes the cluster's row, unless there is a reason not to.
    fn change_cluster(
        &mut self,
        overlay: &mut Overlay,
        request: Request,
        change: impl FnOnce(&mut cluster::Row) -> Option<Reason>,
    ) -> Result<Answer, ApplyError> {
        self.once(overlay, request, |overlay, _| {
            let row = read_row::<cluster::Row>(overlay, Table::Cluster, cluster::encode())?;
            let Some(mut row) = row else { return Ok(Some(Reason::NotInitialized)) };
            let refused = change(&mut row);
            if refused.is_none() {
                overlay.put(Table::Cluster, cluster::encode(), row.encode_to_vec().into());
            }
            Ok(refused)
        })
    }

    /// Runs a command unless its request was seen; records that it was done.
    fn once(
        &mut self,
        overlay: &mut Overlay,
        request: Request,
        change: impl FnOnce(&mut Overlay, u64) -> Result<Option<Reason>, ApplyError>,
    ) -> Result<Answer, ApplyError> {
        let Ok(request_id) = RequestId::try_from(request.request_id.as_ref()) else {
            return Ok(refused(Reason::Malformed));
        };
        let place = RequestPlace { table: Table::DirectoryRequest, key: directory_request::encode(&request_id) };
        if let Some(answer) = self.answer_without_executing(overlay, &place, &request_id, &request.fingerprint)? {
            return Ok(answer);
        }
        if let Some(reason) = change(overlay, self.progress.log_time_ms)? {
            return Ok(refused(reason));
        }
        let done = pb::Done { seq: self.next_seq(), log_time_ms: self.progress.log_time_ms };
        let row = ledger::Row {
            tenant: request.tenant,
            request_id: request.request_id,
            outcome: Some(pb::Outcome { result: Some(Answer::Done(done)) }),
            audit_event: request.audit_event,
            ..Default::default()
        };
        self.record(overlay, place, request.fingerprint, None, row);
        Ok(Answer::Done(done))
    }
}

fn grant_key(grant: &pb::Grant) -> Option<grant::Key> {
    let (tenant, principal) = (grant.tenant.as_ref().try_into().ok()?, grant.principal.as_ref().try_into().ok()?);
    Some(grant::Key { tenant, principal })
}

fn put_grant(overlay: &mut Overlay, key: &grant::Key, sealed_grant: Bytes, log_time_ms: u64) {
    let row = grant::Row { log_time_ms, sealed_grant };
    overlay.put(Table::Grant, key.encode(), row.encode_to_vec().into());
}
