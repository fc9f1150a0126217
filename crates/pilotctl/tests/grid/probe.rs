//! A pair of agents put to the test: how soon bytes flow, and over which path.

use crate::agents::Agent;
use pilot_ipc::{Client, IpcListener};
use pilot_proto::{Addr, NodeId};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long the first byte may take before the pair counts as not connected.
const LIMIT: Duration = Duration::from_secs(15);
/// Distance of the messages that keep traffic flowing, and of the looks at the paths.
const TICK: Duration = Duration::from_millis(25);

/// How a daemon sees its way to a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// `direct`, `relay` or `none`.
    pub path: String,
    /// Where the direct address is known from.
    pub kind: Option<String>,
    /// Why it is no better one.
    pub why: String,
}

impl Way {
    pub fn direct(&self) -> bool {
        self.path == "direct"
    }
}

/// What a pair achieved.
#[derive(Clone, Debug)]
pub struct Found {
    /// From the request for the name to the first byte at the other application.
    pub first_byte: Duration,
    /// From there to what was wanted of the paths; `None`: not within the patience.
    pub wanted: Option<Duration>,
    /// At the end: how the one who asks sees the other, and the reverse.
    pub ways: [Way; 2],
}

pub async fn node_id(client: &Client) -> NodeId {
    let info = client.info().await.expect("the daemon answers");
    info["node_id"].as_u64().and_then(|id| NodeId::try_from(id).ok()).expect("a node id")
}

/// A daemon's way to a peer; `None` if it has no tunnel.
pub async fn way(client: &Client, peer: NodeId) -> Option<Way> {
    let info = client.info().await.expect("the daemon answers");
    let found = info["peer_list"].as_array()?.iter().find(|p| p["node_id"] == peer)?.clone();
    let text = |key: &str| found[key].as_str().map(str::to_owned);
    // A reference tells the relay from the rest only.
    let path = text("path").unwrap_or_else(|| match found["relay"].as_bool() {
        Some(true) => "relay".to_owned(),
        _ => "direct".to_owned(),
    });
    Some(Way { path, kind: text("path_kind"), why: text("path_why").unwrap_or_default() })
}

/// The address behind a name.
pub async fn lookup(client: &Client, name: &str) -> Result<Addr, String> {
    let found = client.resolve_hostname(name).await.map_err(|e| format!("the name: {e}"))?;
    let addr = found["address"].as_str().and_then(|a| a.parse().ok());
    addr.ok_or_else(|| format!("no address in {found}"))
}

/// Measures a pair that trusts each other and has no tunnel: `a` asks for `b` by name, opens a stream to an application on
/// this port of `b` and talks on, until the paths are as wanted or the patience is over.
pub async fn measure(
    a: &Agent,
    b: &Agent,
    port: u16,
    wanted: impl Fn(&[Way; 2]) -> bool,
    patience: Duration,
) -> Result<Found, String> {
    let (asking, answering) = (a.client().await, b.client().await);
    let ids = [node_id(&asking).await, node_id(&answering).await];
    let known = way(&asking, ids[1]).await;
    assert_eq!(known, None, "{} has a tunnel to {} already", a.name, b.name);
    let listener = answering.listen(port).await.map_err(|e| format!("the port: {e}"))?;
    let (sender, first) = oneshot::channel();
    let application = tokio::spawn(echo(listener, sender));

    let start = Instant::now();
    let begin = async {
        let addr = lookup(&asking, &b.name).await?;
        let mut stream = asking.dial_within(addr, port, LIMIT).await.map_err(|e| format!("dial: {e}"))?;
        stream.write(&b"first"[..]).await.map_err(|e| e.to_string())?;
        let at: Instant = first.await.map_err(|_| "the stream ended before its first byte".to_owned())?;
        Ok::<_, String>((at - start, stream))
    };
    let limit = tokio::time::timeout(LIMIT, begin);
    let (first_byte, stream) = limit.await.map_err(|_| format!("no byte within {LIMIT:?}"))??;

    let (mut reader, mut writer) = stream.split();
    let drain = tokio::spawn(async move { while reader.read().await.is_some() {} });
    let mut tick = tokio::time::interval(TICK);
    let (wanted, ways) = loop {
        tick.tick().await;
        writer.write(&b"more"[..]).await.map_err(|e| format!("after the first byte: {e}"))?;
        let ways = [way(&asking, ids[1]).await, way(&answering, ids[0]).await].map(Option::unwrap_or_default);
        let elapsed = start.elapsed();
        if wanted(&ways) {
            break (Some(elapsed), ways);
        }
        if elapsed > patience {
            break (None, ways);
        }
    };
    drain.abort();
    application.abort();
    Ok(Found { first_byte, wanted, ways })
}

/// The application: tells when the first byte came, and sends everything back.
async fn echo(mut listener: IpcListener, first: oneshot::Sender<Instant>) {
    let Some(mut stream) = listener.accept().await else { return };
    let mut first = Some(first);
    while let Some(data) = stream.read().await {
        if let Some(first) = first.take() {
            let _ = first.send(Instant::now());
        }
        if stream.write(data).await.is_err() {
            return;
        }
    }
}
