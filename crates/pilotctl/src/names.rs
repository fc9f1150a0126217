//! Naming a peer: address, node number or hostname (spec 08 section 1.6).

use crate::error::CliError;
use crate::output::Ctx;
use pilot_ipc::Client;
use pilot_proto::{Addr, NodeId};

/// A peer as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What was typed.
    pub typed: String,
    /// Its address.
    pub addr: Addr,
}

impl Peer {
    /// What needs no daemon: an address, or a decimal node number.
    pub fn literal(text: &str) -> Option<Peer> {
        let addr = match text.parse::<Addr>() {
            Ok(addr) => addr,
            Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                Addr::backbone(text.parse().ok()?)
            }
            Err(_) => return None,
        };
        Some(Peer { typed: text.to_owned(), addr })
    }

    /// Resolves what was typed to an address; asks the daemon only for a hostname.
    pub async fn resolve(ctx: &Ctx, client: &Client, text: &str) -> Result<Peer, CliError> {
        let peer = match Peer::literal(text) {
            Some(peer) => return Ok(peer),
            None => Peer::by_hostname(client, text).await?,
        };
        ctx.note(&format!("resolved {text:?} → {}", peer.addr));
        Ok(peer)
    }

    /// As [`Peer::resolve`], for commands that speak of node numbers.
    pub async fn resolve_node(ctx: &Ctx, client: &Client, text: &str) -> Result<NodeId, CliError> {
        let peer = match Peer::literal(text) {
            Some(peer) => {
                if text.contains(':') {
                    ctx.note(&format!("parsed address {text} → node {}", peer.addr.node));
                }
                peer
            }
            None => {
                let peer = Peer::by_hostname(client, text).await?;
                ctx.note(&format!("resolved {text:?} → node {}", peer.addr.node));
                peer
            }
        };
        Ok(peer.addr.node)
    }

    async fn by_hostname(client: &Client, text: &str) -> Result<Peer, CliError> {
        let not_found = |why: &str| {
            CliError::not_found(format!(
                "cannot resolve {text:?} — is the hostname correct and is there mutual trust? (see: pilotctl \
                 handshake)"
            ))
            .hint(why.to_owned())
        };
        let answer = client.resolve_hostname(text).await.map_err(|e| not_found(&e.to_string()))?;
        let addr = answer["address"].as_str().and_then(|a| a.parse().ok());
        let addr = addr.or_else(|| {
            answer["node_id"].as_u64().and_then(|n| NodeId::try_from(n).ok()).map(Addr::backbone)
        });
        match addr {
            Some(addr) => Ok(Peer { typed: text.to_owned(), addr }),
            None => Err(not_found("the registry's answer carries no address")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_numbers_need_no_daemon() {
        assert_eq!(Peer::literal("0:0000.0000.002A").map(|p| p.addr), Some(Addr::backbone(42)));
        assert_eq!(Peer::literal("42").map(|p| p.addr), Some(Addr::backbone(42)));
        assert_eq!(Peer::literal("4294967296"), None);
        assert_eq!(Peer::literal("agent-alpha"), None);
        assert_eq!(Peer::literal("0:A91F.0000.7C2E"), None, "group 1 must repeat the network");
    }
}
