//! Why datagrams and packets were dropped: one counter per cause.

macro_rules! drops {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Dropped datagrams, frames and packets by cause. Dropping is always silent on the wire; these counters
        /// are how one finds out why.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
        pub struct Drops {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Drops {
            /// All causes that occurred, by name.
            pub fn nonzero(&self) -> Vec<(&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter().filter(|(_, count)| *count > 0).collect()
            }
        }
    };
}

drops! {
    /// No frame of ours: unknown magic or fewer than four bytes.
    unknown_frame,
    /// A known magic, but shorter than its layout.
    short_frame,
    /// A beacon message that does not parse or that nodes do not act on.
    bad_beacon_message,
    /// A beacon message from an address that is not the beacon's.
    not_the_beacon,
    /// A DiscoverReply nobody asked for within the last 2 s.
    unasked_discover_reply,
    /// A relay delivery without a frame in it.
    empty_relay,
    /// A punch command ignored: this node only relays, or too many came.
    punch_refused,
    /// A frame from a peer before this node has its number.
    unregistered,
    /// A frame that claims to come from this node itself.
    own_id,
    /// A key exchange or encrypted packet while encryption is off.
    encryption_off,
    /// A plaintext packet while encryption is on.
    plaintext_refused,
    /// Over five key exchange frames per second from one IP address, or 64 from one network.
    rate_limited_direct,
    /// Over five key exchange frames per second from one relayed sender.
    rate_limited_relay,
    /// A key exchange beyond what is taken from all strangers together.
    strangers_limited,
    /// A key exchange that would need a key look-up beyond what is spent on all strangers together.
    lookups_limited,
    /// A key exchange of an untrusted node under strict data-plane trust.
    untrusted_exchange,
    /// The registry knows no key for the sender, or could not be asked.
    key_unknown,
    /// The frame carries another key than the registry.
    key_mismatch,
    /// The signature does not verify.
    bad_signature,
    /// The key exchange yields an all-zero secret.
    low_order_key,
    /// A capability block that does not follow its layout.
    bad_block,
    /// A capability block for another node.
    wrong_receiver,
    /// A handshake message nobody waits for, or of the wrong role.
    unexpected_handshake,
    /// A handshake message of another transcript.
    handshake_failed,
    /// A handshake whose static key is not that of its PILA.
    static_mismatch,
    /// A frame without the session upgrade from a peer that is pinned to it.
    downgrade_refused,
    /// A peer could not be pinned to the session upgrade: too many are.
    pins_full,
    /// A session without a verified key is not acceptable with this peer.
    anonymous_refused,
    /// The exchange would bring back a tunnel key the peer has replaced.
    abandoned_key,
    /// A second copy of an exchange within 250 ms.
    duplicate_exchange,
    /// Too many frames or peers wait for a key lookup.
    lookup_overflow,
    /// No room for another peer.
    peer_table_full,
    /// An encrypted packet from a node with which there is no session.
    no_session,
    /// An encrypted packet that does not open.
    decrypt_failed,
    /// An encrypted packet seen before.
    replayed,
    /// An encrypted packet 256 or more behind, or 8,192 in an upgraded session.
    outside_window,
    /// An encrypted packet refused by an older nonce epoch.
    old_epoch,
    /// A session with more than 1,024 nonce epochs.
    too_many_epochs,
    /// Not a packet: too short, bad checksum or another version.
    bad_packet,
    /// The packet's source is not the node that sealed it.
    source_spoofed,
    /// The packet is for another node: sealed for one whose tunnel key is ours as well, or was made to look so.
    misdirected,
    /// A protocol byte other than 1, 2 and 3.
    unknown_protocol,
    /// A control packet to a port other than 0.
    control_port,
    /// A peer's addresses from one that gets none of ours, or too often.
    candidates_refused,
    /// A message of addresses that does not follow its layout.
    bad_candidates,
    /// A datagram of a session that ended, repeated in the next one.
    repeated_datagram,
    /// A datagram without payload.
    empty_datagram,
    /// A datagram to a private node from an untrusted source.
    untrusted_datagram,
    /// A SYN to a private node from an untrusted source.
    untrusted_syn,
    /// A ping of an untrusted node under strict data-plane trust.
    untrusted_ping,
    /// The stream layer dropped a packet.
    stream_packet,
    /// An outgoing packet had no way to go.
    no_path,
    /// A stream packet cut for a path that carried more than the one in use now; it is cut anew.
    cut_for_another_path,
    /// The queue of outgoing frames was full.
    outbox_full,
    /// The queue of events was full.
    events_full,
    /// Packets waited for a session for too long or their peer could not be reached.
    pending_expired,
}
