//! Sealing and opening records, and where they are.

use std::sync::Arc;

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_proto::v1;
use charthold_replica::metrics::{METRICS, timed};
use charthold_replica::replica::rows::StoredVersion;
use charthold_replica::store::table::{ChartAddress, RecordAddress};
use pb::refused::Reason;
use prost::Message;

use super::Gateway;
use super::error::GatewayError;
use crate::seal::{Address, Compression, Kind, TenantKeys, WriteId, open, seal};

/// `op` of an address.
const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;

/// A chart, in clear and as below the wall.
#[derive(Clone)]
pub struct Chart {
    pub tenant: Arc<TenantKeys>,
    pub reference: v1::ChartRef,
    pub address: ChartAddress,
}

impl Chart {
    pub fn new(tenant: Arc<TenantKeys>, reference: v1::ChartRef) -> Self {
        let chart = tenant.chart_token(reference.kind as u8, &reference.id);
        let address = ChartAddress { slot: tenant.slot(&chart), tenant: tenant.uid, chart };
        Self { tenant, reference, address }
    }

    pub fn record(&self, record: &v1::RecordRef) -> RecordAddress {
        let chart = &self.address.chart;
        RecordAddress {
            chart: self.address,
            record_type: self.tenant.type_token(chart, &record.r#type),
            record: self.tenant.record_token(chart, &record.r#type, &record.id),
        }
    }
}

fn address_of(kind: Kind, record: &RecordAddress, deleted: bool, write_id: WriteId) -> Address {
    Address {
        op: if deleted { OP_DELETE } else { OP_PUT },
        tenant: record.chart.tenant,
        chart: record.chart.chart,
        record_type: record.record_type,
        record: record.record,
        write_id,
        last: kind == Kind::Body,
        ..Address::of(kind)
    }
}

/// What one mutation seals.
pub struct ToSeal<'a> {
    pub record: RecordAddress,
    pub header: pb::ClearHeader,
    pub content: Content<'a>,
    pub write_id: WriteId,
}

/// What a version holds beside its header.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    Body(&'a [u8]),
    /// Parts that are sealed already.
    Document,
    Deleted,
}

impl ToSeal<'_> {
    /// The envelopes: header, body.
    pub fn seal(&self, current: &super::keyring::CurrentKey) -> Result<(Bytes, Bytes), GatewayError> {
        let deleted = matches!(self.content, Content::Deleted);
        let address = |kind| address_of(kind, &self.record, deleted, self.write_id);
        let header = self.header.encode_to_vec();
        // Headers are small: compressing them costs more than it saves.
        let header = seal(&current.key, &current.id, &address(Kind::Header), &header, Compression::None)?;
        let body = match self.content {
            Content::Deleted | Content::Document => Bytes::new(),
            Content::Body(body) => {
                seal(&current.key, &current.id, &address(Kind::Body), body, Compression::Zstd)?.into_bytes()
            }
        };
        Ok((header.into_bytes(), body))
    }
}

impl Gateway {
    /// Opens a version's header. What is inside must be what was asked for.
    pub fn open_header(
        &self,
        chart: &Chart,
        asked: Option<&v1::RecordRef>,
        stored: &StoredVersion,
    ) -> Result<v1::RecordHeader, GatewayError> {
        Ok(self.open_headers(chart, asked, stored)?.0)
    }

    /// The same, and where the content is if it is a document: what the row says of that counts for nothing.
    pub fn open_headers(
        &self,
        chart: &Chart,
        asked: Option<&v1::RecordRef>,
        stored: &StoredVersion,
    ) -> Result<(v1::RecordHeader, Option<pb::ClearDocument>), GatewayError> {
        let _timed = timed(&METRICS.read_open);
        let header = self.open_clear_header(&chart.tenant, stored)?;
        let found = v1::RecordRef { r#type: header.r#type.clone(), id: header.id.clone() };
        let of_chart = header.chart_kind == chart.reference.kind as u32 && header.chart_id == chart.reference.id;
        let of_record = match asked {
            Some(asked) => *asked == found,
            None => chart.record(&found) == stored.record,
        };
        if !of_chart || !of_record {
            tracing::error!(
                shard = self.replica.shard_of(chart.address.slot),
                "an envelope holds another record than its place says: data was moved, by damage or by somebody; compare \
                 the replicas' roots (charthold cluster status) and replace the node that differs"
            );
            return Err(GatewayError::Damaged);
        }
        let document = header.document;
        let header = v1::RecordHeader {
            record: Some(found),
            version: stored.version,
            deleted: stored.row.tombstone,
            content_type: header.content_type,
            clinical_date: header.clinical_date,
            status: header.status,
            author: header.author,
            labels: header.labels,
            length_bytes: header.length_bytes,
            committed_at: Some(timestamp(stored.row.log_time_ms)),
            index_terms: header.index_terms.into_iter().map(public_term).collect(),
            document: document.is_some(),
        };
        Ok((header, document))
    }

    /// What a version's header says, at whatever place it was found. Whether it belongs there is for the caller to see.
    pub fn open_clear_header(
        &self,
        tenant: &TenantKeys,
        stored: &StoredVersion,
    ) -> Result<pb::ClearHeader, GatewayError> {
        let (key, address) = self.opener(tenant, stored, Kind::Header)?;
        let clear = open(&key, &address, &stored.row.header)?;
        pb::ClearHeader::decode(clear.expose()).map_err(|_| GatewayError::Damaged)
    }

    /// Opens a version. A document is left where it is: its content is read apart.
    pub fn open_record(
        &self,
        chart: &Chart,
        asked: Option<&v1::RecordRef>,
        stored: &StoredVersion,
    ) -> Result<v1::Record, GatewayError> {
        let header = self.open_header(chart, asked, stored)?;
        if stored.row.tombstone || header.document {
            return Ok(v1::Record { header: Some(header), body: Bytes::new() });
        }
        let _timed = timed(&METRICS.read_open);
        let (key, address) = self.opener(&chart.tenant, stored, Kind::Body)?;
        let body = Bytes::from(open(&key, &address, &stored.row.body)?);
        if body.len() as u64 != header.length_bytes {
            return Err(GatewayError::Damaged);
        }
        Ok(v1::Record { header: Some(header), body })
    }

    fn opener(
        &self,
        tenant: &TenantKeys,
        stored: &StoredVersion,
        kind: Kind,
    ) -> Result<(Arc<crate::seal::Key>, Address), GatewayError> {
        let key = self.keyring.chart_key(tenant, &stored.rows, &stored.record.chart, &stored.row.key_id)?;
        let write_id = WriteId::try_from(stored.row.write_id.as_ref()).map_err(|_| GatewayError::Damaged)?;
        Ok((key, address_of(kind, &stored.record, stored.row.tombstone, write_id)))
    }
}

fn public_term(term: pb::ClearIndexTerm) -> v1::IndexTerm {
    v1::IndexTerm { system: term.system, value: term.value }
}

pub fn timestamp(ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: (ms / 1_000) as i64, nanos: (ms % 1_000) as i32 * 1_000_000 }
}

/// A command that apply refused, as an error to the caller. A stale chart key is the gateway's own to mend.
pub fn refusal(refused: &pb::Refused) -> GatewayError {
    match refused.reason() {
        Reason::RequestExpired => GatewayError::RequestExpired,
        Reason::RequestIdReused => GatewayError::RequestIdReused,
        Reason::ChartErased => GatewayError::ChartErased,
        Reason::UploadNotFound => GatewayError::UploadNotFound,
        Reason::UploadIncomplete => GatewayError::UploadIncomplete,
        Reason::UploadOutOfOrder => GatewayError::UploadOutOfOrder { next_part: refused.next_part },
        Reason::TooManyUploads => GatewayError::TooManyUploads,
        Reason::AlreadyInitialized => GatewayError::AlreadyInitialized,
        Reason::NotInitialized => GatewayError::NotInitialized,
        Reason::CannotSplit => {
            GatewayError::CannotChange("there is no such shard, or none is spare to take a half of it".to_owned())
        }
        Reason::Unspecified
        | Reason::StaleChartKey
        | Reason::WrongShard
        | Reason::ChartHeld
        | Reason::Malformed
        | Reason::Late => {
            tracing::error!(
                reason = refused.reason().as_str_name(),
                "a shard refused a command of this gateway: a defect, or nodes of different versions; report it"
            );
            GatewayError::Internal
        }
    }
}
