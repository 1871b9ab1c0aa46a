//! What peers talk over: authenticated byte streams.
//!
//! Owns: nothing but the contract. The implementation (TLS under the peer authority) lies above the wall, another one
//! in memory serves tests; down here nobody knows which it is.

use futures::future::BoxFuture;

/// A connection's bytes, both ways.
pub trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// Who is at the other end, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    pub cluster: String,
    pub name: String,
    pub keyed: bool,
}

pub trait Transport: Send + Sync + 'static {
    /// Connects to an address, `host:port`. That the node found there is the one meant is for the caller to check.
    fn dial(&self, address: String) -> BoxFuture<'static, std::io::Result<(Box<dyn Stream>, PeerIdentity)>>;

    /// The next inbound connection whose handshake succeeded. Failed and slow handshakes delay nobody.
    fn accept(&self) -> BoxFuture<'_, std::io::Result<(Box<dyn Stream>, PeerIdentity)>>;
}
