//! Finding charts by an identifier: the index is written before a commit, and verified when it is read.
//!
//! An index row is only tokens, in the slot of its term. It says nothing by itself: a match is a record whose newest
//! header, opened, holds the term. So a row that no commit followed, that a later version left behind, or that a replica
//! made up, answers nothing; [`super::sweep`] drops it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_proto::v1::chart_ref::Kind as ChartKind;
use charthold_proto::v1::mutation::Operation;
use charthold_proto::v1::{
    AnswerContext, ChartMatch, ChartRef, FindChartsRequest, FindChartsResponse, IndexTerm, Mutation, RecordRef,
};
use charthold_replica::Slot;
use charthold_replica::replica::{Moment, ReplicaError};
use charthold_replica::shard::command::Command;
use charthold_replica::store::table::{ChartAddress, RecordAddress, index};
use futures::{StreamExt, TryStreamExt, stream};
use pb::outcome::Result as Answer;
use tokio::time::Instant;

use super::Gateway;
use super::access::Caller;
use super::error::GatewayError;
use super::page::place_of;
use super::record::{Chart, refusal};
use super::validate::{self, Violations};
use crate::seal::TenantKeys;

/// Index rows of one commit that are proposed at once.
const ROWS_AT_ONCE: usize = 16;

/// Behind a barrier of the shard that holds a chart's slot.
pub(super) type Moments = BTreeMap<Slot, Moment>;

/// A record and the terms that its newest version holds.
pub(super) struct Holder {
    pub reference: ChartMatch,
    pub terms: Vec<pb::ClearIndexTerm>,
}

impl Gateway {
    /// Writes the index rows of a commit that is about to be proposed.
    ///
    /// Not part of the commit: a row lives in its term's shard, and two shards have no common outcome. If the commit
    /// fails, rows are left that nothing stands behind.
    pub(super) async fn put_index(
        &self,
        chart: &Chart,
        mutations: &[Mutation],
        deadline: Instant,
    ) -> Result<(), GatewayError> {
        let rows = mutations.iter().flat_map(|mutation| index_keys(chart, mutation)).collect::<BTreeSet<_>>();
        let put = |key: index::Key| self.propose_index(key.slot, Command::PutIndex(put_of(&key)), deadline);
        stream::iter(rows).map(put).buffer_unordered(ROWS_AT_ONCE).try_collect().await
    }

    pub(super) async fn propose_index(
        &self,
        slot: Slot,
        command: Command,
        deadline: Instant,
    ) -> Result<(), GatewayError> {
        let proposed = self.replica.propose_at(slot, command.encode(slot), deadline).await;
        match proposed.map_err(nothing_done)?.outcome.result {
            Some(Answer::Done(_)) => Ok(()),
            Some(Answer::Refused(refused)) => Err(refusal(&refused)),
            _ => Err(GatewayError::Internal),
        }
    }

    pub(super) async fn find_charts(
        self: &Arc<Self>,
        caller: &Caller,
        request: FindChartsRequest,
        deadline: Instant,
    ) -> Result<FindChartsResponse, GatewayError> {
        let rows_max = validate_find(&request)?;
        let query = FindChartsRequest { context: None, page_size: 0, page_token: String::new(), ..request.clone() };
        let place = place_of(caller);
        let cursor = self.read_page_token(&place, "FindCharts", &query, &request.page_token)?;
        let (tenant, wanted) = (Arc::clone(&caller.tenant), request.term.clone().unwrap_or_default());
        let term = tenant.term_token(&wanted.system, &wanted.value);
        let slot = tenant.term_slot(&term);
        let moment = self.replica.barrier_of(slot, deadline).await?;
        let next = cursor.map(|cursor| cursor.next);
        let rows = self.replica.index(&moment).of_term((slot, &tenant.uid, &term), next, rows_max)?;
        let next = rows.last().filter(|_| rows.len() == rows_max).map(|row| row.key.next());
        let keys = rows.into_iter().map(|row| row.key).collect::<Vec<_>>();
        // After the rows were read: a record that is seen then is at least as new as they are.
        let moments = self.barriers_of(&tenant, &keys, deadline).await?;
        let verify = move |gateway: &Self| {
            let holders = keys.iter().filter_map(|key| gateway.holder(&tenant, key, &moments).transpose());
            let holders = holders.collect::<Result<Vec<_>, _>>()?;
            let wanted = holders.into_iter().filter(|holder| is_wanted(holder, &request));
            Ok(wanted.map(|holder| holder.reference).collect())
        };
        let matches = self.on_own_thread(verify).await?;
        let answer = self.answer_from(moment).map(|answer| AnswerContext { position: String::new(), ..answer });
        let next_page_token = self.next_token(&place, "FindCharts", &query, 0, next)?;
        Ok(FindChartsResponse { answer, matches, next_page_token })
    }

    /// Passes a barrier of every shard that holds one of the rows' charts.
    pub(super) async fn barriers_of(
        &self,
        tenant: &TenantKeys,
        keys: &[index::Key],
        deadline: Instant,
    ) -> Result<Moments, GatewayError> {
        let slots = keys.iter().map(|key| tenant.slot(&key.chart)).collect::<BTreeSet<_>>();
        let barrier =
            |slot| async move { Ok::<_, GatewayError>((slot, self.replica.barrier_of(slot, deadline).await?)) };
        let passed = futures::future::join_all(slots.into_iter().map(barrier)).await;
        passed.into_iter().collect()
    }

    /// The record that a row points at, if its newest version holds the row's term.
    pub(super) fn holder(
        &self,
        tenant: &Arc<TenantKeys>,
        key: &index::Key,
        moments: &Moments,
    ) -> Result<Option<Holder>, GatewayError> {
        let chart = ChartAddress { slot: tenant.slot(&key.chart), tenant: key.tenant, chart: key.chart };
        let record = RecordAddress { chart, record_type: key.record_type, record: key.record };
        let moment = moments.get(&chart.slot).ok_or(GatewayError::Internal)?;
        let rows = self.replica.rows(moment);
        if rows.is_erased(&chart)? {
            return Ok(None);
        }
        let Some(stored) = rows.newest(&record, moment.seq)? else { return Ok(None) };
        // Of a tombstone too: that the record is deleted must be said by its own envelope.
        let header = self.open_clear_header(tenant, &stored)?;
        let reference = ChartRef { kind: header.chart_kind as i32, id: header.chart_id };
        let found = RecordRef { r#type: header.r#type, id: header.id };
        if Chart::new(Arc::clone(tenant), reference.clone()).record(&found) != stored.record {
            tracing::error!("an envelope holds another record than its place says");
            return Err(GatewayError::Damaged);
        }
        let holds = |term: &pb::ClearIndexTerm| tenant.term_token(&term.system, &term.value) == key.term;
        if stored.row.tombstone || !header.index_terms.iter().any(holds) {
            return Ok(None);
        }
        let reference = ChartMatch { chart: Some(reference), record: Some(found), version: stored.version };
        Ok(Some(Holder { reference, terms: header.index_terms }))
    }
}

/// Where a mutation's index rows are.
fn index_keys(chart: &Chart, mutation: &Mutation) -> Vec<index::Key> {
    let (Some(Operation::Put(put)), Some(record)) = (&mutation.operation, &mutation.record) else {
        return Vec::new();
    };
    let (tenant, record) = (&chart.tenant, chart.record(record));
    let key = |term: &IndexTerm| {
        let term = tenant.term_token(&term.system, &term.value);
        index::Key {
            slot: tenant.term_slot(&term),
            tenant: tenant.uid,
            term,
            chart: record.chart.chart,
            record_type: record.record_type,
            record: record.record,
        }
    };
    put.index_terms.iter().map(key).collect()
}

/// A row as commands name it.
pub(super) fn put_of(key: &index::Key) -> pb::PutIndex {
    pb::PutIndex {
        tenant: Bytes::copy_from_slice(&key.tenant),
        term: Bytes::copy_from_slice(&key.term),
        chart: Bytes::copy_from_slice(&key.chart),
        r#type: Bytes::copy_from_slice(&key.record_type),
        record: Bytes::copy_from_slice(&key.record),
    }
}

/// Whether an index row was written matters to nobody: what it was written for was not proposed.
fn nothing_done(error: ReplicaError) -> GatewayError {
    match error {
        ReplicaError::Unknown => GatewayError::NoQuorum,
        other => other.into(),
    }
}

fn validate_find(request: &FindChartsRequest) -> Result<usize, GatewayError> {
    let mut violations = Violations::default();
    violations.context(request.context.as_ref());
    violations.term("term", request.term.as_ref());
    violations.check(ChartKind::try_from(request.chart_kind).is_ok(), "chart_kind", "is not known");
    if !request.r#type.is_empty() {
        violations.id("type", &request.r#type);
    }
    violations.into_result()?;
    validate::page_size(request.page_size)
}

/// The term itself, not only its token; and the filters.
fn is_wanted(holder: &Holder, request: &FindChartsRequest) -> bool {
    let wanted = request.term.as_ref();
    let holds = |term: &pb::ClearIndexTerm| {
        wanted.is_some_and(|wanted| wanted.system == term.system && wanted.value == term.value)
    };
    let kind = holder.reference.chart.as_ref().map_or(0, |chart| chart.kind);
    let of_type = holder.reference.record.as_ref().is_some_and(|record| record.r#type == request.r#type);
    holder.terms.iter().any(holds)
        && (request.chart_kind == ChartKind::Unspecified as i32 || request.chart_kind == kind)
        && (request.r#type.is_empty() || of_type)
}
