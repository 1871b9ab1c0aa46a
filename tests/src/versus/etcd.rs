//! etcd, three members, plain (its fastest) or with mutual TLS on both ports. By its own gRPC API, of which two calls are written down here.

use std::process::Command;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use prost::Message;
use tempfile::TempDir;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::Store;
use super::tls::Certificates;
use crate::harness::{Running, free_ports, until};

const MEMBERS: usize = 3;
/// Its own limit of streams on one connection is no bound here, but one connection is one lock.
const CHANNELS: usize = 4;

/// Of `etcdserverpb`, by the numbers of <https://github.com/etcd-io/etcd/blob/v3.4.23/etcdserver/etcdserverpb/rpc.proto>.
#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(int64, tag = "4")]
    count: i64,
}

pub struct Etcd {
    channels: Vec<Channel>,
    members: Vec<Running>,
    _folder: TempDir,
}

impl Etcd {
    pub fn is_possible() -> bool {
        Command::new("etcd").arg("--version").output().is_ok_and(|output| output.status.success())
    }

    pub async fn start(with_tls: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("versus-etcd-").tempdir().expect("a temporary folder");
        let certificates = with_tls.then(|| Certificates::create(folder.path()).expect("certificates"));
        let scheme = if with_tls { "https" } else { "http" };
        let ports = free_ports(2 * MEMBERS);
        let peer = |member: usize| format!("{scheme}://127.0.0.1:{}", ports[2 * member]);
        let client = |member: usize| format!("127.0.0.1:{}", ports[2 * member + 1]);
        let all = (0..MEMBERS).map(|member| format!("m{member}={}", peer(member))).collect::<Vec<_>>().join(",");
        let start = |member: usize| {
            let mut command = Command::new("etcd");
            let client_url = format!("{scheme}://{}", client(member));
            command.args(["--name", &format!("m{member}"), "--initial-cluster", &all]);
            command.args(["--listen-peer-urls", &peer(member), "--initial-advertise-peer-urls", &peer(member)]);
            command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
            command.args(["--quota-backend-bytes", "8589934592", "--data-dir"]);
            command.arg(folder.path().join(format!("m{member}")));
            if let Some(certificates) = &certificates {
                secure(&mut command, certificates);
            }
            Running::with_log(command, &folder.path().join(format!("m{member}.log")), "etcd")
        };
        let members = (0..MEMBERS).map(start).collect::<Vec<_>>();
        let channel = |number: usize| {
            let address = client(number % MEMBERS);
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
            let endpoint = endpoint.timeout(Duration::from_secs(30));
            match &certificates {
                Some(certificates) => certificates.channel(endpoint, address),
                None => endpoint.connect_lazy(),
            }
        };
        let etcd = Self { channels: (0..CHANNELS).map(channel).collect(), members, _folder: folder };
        until("etcd takes writes", || etcd.put(0, b"first".to_vec())).await;
        etcd
    }

    async fn call<Request, Response>(&self, key: u64, path: &'static str, request: Request) -> Result<Response, String>
    where
        Request: Message + 'static,
        Response: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channels[key as usize % CHANNELS].clone());
        grpc.ready().await.map_err(|error| error.to_string())?;
        let codec = ProstCodec::<Request, Response>::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.to_string())
    }
}

/// The same certificate for both ports, asked for from whoever calls.
fn secure(command: &mut Command, certificates: &Certificates) {
    for port in ["", "peer-"] {
        command.arg(format!("--{port}client-cert-auth"));
        command.arg(format!("--{port}trusted-ca-file")).arg(&certificates.authority);
        command.arg(format!("--{port}cert-file")).arg(&certificates.certificate);
        command.arg(format!("--{port}key-file")).arg(&certificates.key);
    }
}

impl Store for Etcd {
    fn put(&self, key: u64, value: Vec<u8>) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let request = PutRequest { key: key.to_string().into_bytes(), value };
            self.call::<_, PutResponse>(key, "/etcdserverpb.KV/Put", request).await.map(|_| ())
        }
        .boxed()
    }

    fn get(&self, key: u64) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let request = RangeRequest { key: key.to_string().into_bytes() };
            let found: RangeResponse = self.call(key, "/etcdserverpb.KV/Range", request).await?;
            if found.count == 1 { Ok(()) } else { Err("it is not there".to_owned()) }
        }
        .boxed()
    }

    fn processes(&self) -> Vec<u32> {
        self.members.iter().map(Running::id).collect()
    }
}
