//! Peers' connections over turmoil's TCP. In place of a certificate each end says its name, and is believed.

use std::io;

use charthold_replica::peer::transport::{PeerIdentity, Stream, Transport};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};
use turmoil::net::{TcpListener, TcpStream};

pub const CLUSTER: &str = "simulated";
pub const PORT: u16 = 7401;
/// Connections that were accepted and not taken yet.
const ACCEPTED_MAX: usize = 64;

/// What an end says of itself.
#[derive(Clone)]
struct Own {
    name: String,
    keyed: bool,
}

type Connected = (Box<dyn Stream>, PeerIdentity);

pub struct SimulatedTransport {
    own: Own,
    accepted: Mutex<mpsc::Receiver<Connected>>,
}

impl SimulatedTransport {
    /// Listens on the host that this is called on.
    pub async fn listen(name: &str, keyed: bool) -> io::Result<Self> {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
        let (sender, accepted) = mpsc::channel(ACCEPTED_MAX);
        let own = Own { name: name.to_owned(), keyed };
        let listening = own.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (own, sender) = (listening.clone(), sender.clone());
                tokio::spawn(async move {
                    // Who breaks off is of no interest; who is not taken has gone.
                    if let Ok(connected) = introduce(stream, &own).await {
                        let _closed = sender.send(connected).await;
                    }
                });
            }
        });
        Ok(Self { own, accepted: Mutex::new(accepted) })
    }
}

/// Both ends say their names, and whether they have keys.
async fn introduce(mut stream: TcpStream, own: &Own) -> io::Result<Connected> {
    stream.write_u8(own.keyed.into()).await?;
    stream.write_u8(own.name.len() as u8).await?;
    stream.write_all(own.name.as_bytes()).await?;
    let keyed = stream.read_u8().await? != 0;
    let mut name = vec![0; stream.read_u8().await?.into()];
    stream.read_exact(&mut name).await?;
    let name = String::from_utf8(name).map_err(io::Error::other)?;
    Ok((Box::new(stream), PeerIdentity { cluster: CLUSTER.to_owned(), name, keyed }))
}

impl Transport for SimulatedTransport {
    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<Connected>> {
        let own = self.own.clone();
        async move { introduce(TcpStream::connect(address).await?, &own).await }.boxed()
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Connected>> {
        async move { self.accepted.lock().await.recv().await.ok_or_else(|| io::Error::other("the listener has ended")) }
            .boxed()
    }
}
