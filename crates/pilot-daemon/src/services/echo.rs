//! Echo (port 7, spec 06 section 3).

use super::files::since_epoch;
use bytes::Bytes;
use pilot::{Listener, Node, Stream};
use pilot_proto::service::echo;
use tokio::task::JoinSet;

/// Serves until the node stops.
pub(super) async fn serve(node: Node, mut listener: Listener) {
    let mut connections = JoinSet::new();
    while let Some(stream) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(node.clone(), stream));
    }
}

/// On a private node only trusted peers are served. The gate lets in nobody else, but a node that was public a moment
/// ago has connections from that time.
async fn connection(node: Node, stream: Stream) {
    let peer = stream.remote().node;
    let own = peer == node.node_id();
    if !own && !node.is_trusted(peer) && !node.status().await.public {
        return stream.close();
    }
    let (mut reader, mut writer) = stream.split();
    while let Some(chunk) = reader.read().await {
        let now = u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX);
        let answer = match echo::reply(&chunk, now) {
            Some(reply) => Bytes::copy_from_slice(&reply),
            None => chunk,
        };
        if writer.write(answer).await.is_err() {
            return;
        }
    }
}
