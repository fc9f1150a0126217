//! A beacon (spec 04 sections 3 to 5): observed addresses, punch coordination, relay. No limits of its own.

use pilot_proto::NodeId;
use pilot_proto::wire::beacon::Message;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The beacon's table.
#[derive(Debug, Default)]
pub struct Beacon {
    nodes: BTreeMap<NodeId, SocketAddr>,
}

impl Beacon {
    /// Handles a datagram; returns what it sends.
    pub fn handle(&mut self, from: SocketAddr, datagram: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut out = Vec::new();
        let mut send = |to: SocketAddr, message: Message<'_>| {
            let mut bytes = Vec::new();
            message.emit(&mut bytes);
            out.push((to, bytes));
        };
        match Message::parse(datagram) {
            Ok(Message::Discover { node, .. } | Message::DiscoverEx { node }) => {
                if node != 0 {
                    self.nodes.insert(node, from);
                }
                send(from, Message::DiscoverReply(from));
            }
            Ok(Message::PunchRequest { requester, target }) => {
                self.nodes.insert(requester, from);
                if let Some(target) = self.nodes.get(&target) {
                    send(from, Message::PunchCommand(*target));
                    send(*target, Message::PunchCommand(from));
                }
            }
            Ok(Message::Relay { from: node, to, frame }) => {
                if let Some(to) = self.nodes.get(&to) {
                    send(*to, Message::RelayDeliver { from: node, frame });
                }
            }
            _ => {}
        }
        out
    }
}
