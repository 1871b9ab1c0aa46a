//! EnsureChartKey: a chart gets its key once; who comes second takes the winner's.

use charthold_proto::internal as pb;
use pb::outcome::Result as Answer;
use pb::refused::Reason;
use prost::Message;

use super::overlay::Overlay;
use super::{ApplyError, read_row, refused};
use crate::Slot;
use crate::store::state::Table;
use crate::store::table::{ChartAddress, chart, key};

pub(super) fn ensure(
    overlay: &mut Overlay,
    slot: Slot,
    ensure: pb::EnsureChartKey,
    seq: u64,
) -> Result<Answer, ApplyError> {
    let (Ok(tenant), Ok(chart_token)) = (ensure.tenant.as_ref().try_into(), ensure.chart.as_ref().try_into()) else {
        return Ok(refused(Reason::Malformed));
    };
    let Ok(key_id) = key::KeyId::try_from(ensure.key_id.as_ref()) else {
        return Ok(refused(Reason::Malformed));
    };
    let address = ChartAddress { slot, tenant, chart: chart_token };
    if let Some(row) = read_row::<chart::Row>(overlay, Table::Chart, chart::encode(&address))? {
        return current_key(overlay, address, &row);
    }
    let row = chart::Row {
        state: pb::chart_row::State::Open as i32,
        at_seq: seq,
        key_id: ensure.key_id.clone(),
        ..Default::default()
    };
    overlay.put(Table::Chart, chart::encode(&address), row.encode_to_vec().into());
    overlay.put(Table::Key, key::Key { chart: address, key_id }.encode(), ensure.wrapped_key.clone());
    Ok(Answer::ChartKey(pb::ChartKey { key_id: ensure.key_id, wrapped_key: ensure.wrapped_key }))
}

fn current_key(overlay: &Overlay, address: ChartAddress, row: &chart::Row) -> Result<Answer, ApplyError> {
    if row.state() == pb::chart_row::State::Erased {
        return Ok(refused(Reason::ChartErased));
    }
    let damaged = ApplyError::Damaged { table: "key" };
    let key_id = key::KeyId::try_from(row.key_id.as_ref()).map_err(|_| damaged.clone())?;
    let wrapped_key = overlay.get(Table::Key, key::Key { chart: address, key_id }.encode())?.ok_or(damaged)?;
    Ok(Answer::ChartKey(pb::ChartKey { key_id: row.key_id.clone(), wrapped_key }))
}
