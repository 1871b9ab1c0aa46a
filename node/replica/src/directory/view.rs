//! Reading the directory's rows on this node.

use charthold_proto::internal as pb;
use prost::Message;

use crate::store::EngineError;
use crate::store::state::Table;
use crate::store::state::flusher::StateStore;
use crate::store::state::reader::Reader;
use crate::store::table::{after_prefix, cluster, grant, tenant};
use crate::{DIRECTORY, Token};

/// Rows read at once; a directory is small.
const ROWS_MAX: usize = 1_000;
const BYTES_MAX: usize = 4 << 20;

/// The directory as this node has applied it. To be current, read behind a barrier.
#[derive(Clone)]
pub struct DirectoryView {
    state: StateStore,
}

impl DirectoryView {
    pub(crate) fn new(state: StateStore) -> Self {
        Self { state }
    }

    fn reader(&self) -> Result<Reader<'_>, EngineError> {
        self.state.reader(DIRECTORY)
    }

    pub fn cluster(&self) -> Result<Option<pb::ClusterRow>, EngineError> {
        self.row(Table::Cluster, &cluster::encode())
    }

    pub fn tenant(&self, uid: &Token) -> Result<Option<pb::TenantRow>, EngineError> {
        self.row(Table::Tenant, &tenant::encode(uid))
    }

    pub fn grant(&self, key: &grant::Key) -> Result<Option<pb::GrantRow>, EngineError> {
        self.row(Table::Grant, &key.encode())
    }

    /// Tenants whose uid is above `after`, in order, and whether there may be more.
    pub fn tenants(&self, after: Option<&Token>, rows_max: usize) -> Result<Vec<(Token, pb::TenantRow)>, EngineError> {
        let from = after.map_or(Vec::new(), |uid| [tenant::encode(uid), vec![0]].concat());
        let rows = self.reader()?.scan(Table::Tenant, &from, &after_prefix(&[]), rows_max.min(ROWS_MAX), BYTES_MAX)?;
        rows.into_iter().map(|(key, row)| Ok((tenant::decode(&key).ok_or_else(damaged)?, decode(row)?))).collect()
    }

    /// A tenant's grants above `after`, in order of the principal's token.
    pub fn grants(
        &self,
        of: &Token,
        after: Option<&Token>,
        rows_max: usize,
    ) -> Result<Vec<(grant::Key, pb::GrantRow)>, EngineError> {
        let from = after.map_or(of.to_vec(), |principal| {
            [grant::Key { tenant: *of, principal: *principal }.encode(), vec![0]].concat()
        });
        let rows = self.reader()?.scan(Table::Grant, &from, &after_prefix(of), rows_max.min(ROWS_MAX), BYTES_MAX)?;
        rows.into_iter().map(|(key, row)| Ok((grant::Key::decode(&key).ok_or_else(damaged)?, decode(row)?))).collect()
    }

    fn row<Row: Message + Default>(&self, table: Table, key: &[u8]) -> Result<Option<Row>, EngineError> {
        self.reader()?.get(table, key)?.map(decode).transpose()
    }
}

fn decode<Row: Message + Default>(bytes: bytes::Bytes) -> Result<Row, EngineError> {
    Row::decode(bytes).map_err(|_| damaged())
}

fn damaged() -> EngineError {
    EngineError::new("state", "a row of the directory cannot be decoded")
}
