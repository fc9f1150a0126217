//! Properties of the parsers.

use bytes::Bytes;
use pilot_ipc::frame::{Decoder, Frame, MAX_FRAME, OutFrame, Oversize};
use pilot_ipc::request::{Handshake, Managed, Network, Request};
use pilot_proto::Addr;
use proptest::prelude::*;

fn frames(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, Oversize> {
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let n = cuts.next().copied().unwrap_or(rest.len()).clamp(1, rest.len());
        decoder.extend(&rest[..n]);
        rest = &rest[n..];
        while let Some(frame) = decoder.next_frame()? {
            out.push(frame);
        }
    }
    Ok(out)
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn addr() -> impl Strategy<Value = Addr> {
    (any::<u16>(), any::<u32>()).prop_map(|(network, node)| Addr { network, node })
}

fn request() -> impl Strategy<Value = Request> {
    let handshake = prop_oneof![
        (any::<u32>(), ".*").prop_map(|(node, justification)| Handshake::Send { node, justification }),
        any::<u32>().prop_map(|node| Handshake::Approve { node }),
        (any::<u32>(), ".*").prop_map(|(node, reason)| Handshake::Reject { node, reason }),
        Just(Handshake::Pending),
        Just(Handshake::Trusted),
        any::<u32>().prop_map(|node| Handshake::Revoke { node }),
        any::<(u32, u32)>().prop_map(|(node, timeout_ms)| Handshake::Wait { node, timeout_ms }),
    ];
    let network = prop_oneof![
        Just(Network::List),
        (any::<u16>(), ".*").prop_map(|(network, token)| Network::Join { network, token: token.into() }),
        any::<u16>().prop_map(|network| Network::Leave { network }),
        any::<u16>().prop_map(|network| Network::Members { network }),
        any::<(u16, u32)>().prop_map(|(network, node)| Network::Invite { network, node }),
        Just(Network::PollInvites),
        any::<(u16, bool)>().prop_map(|(network, accept)| Network::RespondInvite { network, accept }),
    ];
    let managed = prop_oneof![
        any::<u16>().prop_map(|network| Managed::Status { network }),
        any::<u16>().prop_map(|network| Managed::Cycle { network }),
        any::<u16>().prop_map(|network| Managed::Reconcile { network }),
        any::<u16>().prop_map(|network| Managed::PolicyGet { network }),
        (any::<u16>(), bytes(), bytes()).prop_map(|(network, token, policy)| Managed::PolicySet {
            network,
            token: token.into(),
            policy
        }),
        any::<(u16, u32)>().prop_map(|(network, node)| Managed::MemberTagsGet { network, node }),
        (any::<u16>(), any::<u32>(), "[\\[\\]a-z,\"]{1,20}").prop_map(|(network, node, tags)| {
            Managed::MemberTagsSet { network, node, tags: Bytes::from(tags) }
        }),
    ];
    prop_oneof![
        any::<u16>().prop_map(|port| Request::Bind { port }),
        any::<u16>().prop_map(|port| Request::Unbind { port }),
        (addr(), any::<u16>()).prop_map(|(to, port)| Request::Dial { to, port }),
        Just(Request::Cancel),
        (any::<u32>(), bytes()).prop_map(|(conn, data)| Request::Send { conn, data }),
        any::<u32>().prop_map(|conn| Request::Close { conn }),
        any::<u32>().prop_map(|conn| Request::Finish { conn }),
        (addr(), any::<u16>(), bytes(), any::<bool>())
            .prop_map(|(to, port, data, confirm)| Request::SendTo { to, port, data, confirm }),
        (any::<u16>(), any::<u16>(), bytes(), bytes()).prop_map(|(network, port, token, data)| {
            Request::Broadcast { network, port, token: token.into(), data }
        }),
        handshake.prop_map(Request::Handshake),
        ".+".prop_map(Request::ResolveHostname),
        ".*".prop_map(Request::SetHostname),
        any::<bool>().prop_map(|public| Request::SetVisibility { public }),
        any::<bool>().prop_map(|hidden| Request::SetHidden { hidden }),
        prop::option::of(any::<u32>()).prop_map(|clear| Request::Pins { clear }),
        network.prop_map(Request::Network),
        managed.prop_map(Request::Managed),
        any::<u32>().prop_map(|node| Request::PreferDirect { node }),
    ]
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_give_the_same_frames(
        bytes in prop::collection::vec(prop_oneof![3 => 0u8..4, 1 => any::<u8>()], 0..2000),
        cuts in prop::collection::vec(1usize..40, 1..10),
    ) {
        prop_assert_eq!(frames(&bytes, &cuts), frames(&bytes, &[usize::MAX]));
    }

    #[test]
    fn written_frames_are_read_back(parts in prop::collection::vec((any::<u8>(), bytes(), bytes()), 0..8)) {
        let mut wire = Vec::new();
        let mut want = Vec::new();
        for (command, fields, rest) in parts {
            let fields = &fields[..fields.len().min(14)];
            wire.extend(OutFrame::new(command, fields, rest.clone()).to_vec());
            want.push(Frame { command, body: [fields, &rest].concat().into() });
        }
        prop_assert_eq!(frames(&wire, &[7, 1, 300]), Ok(want));
    }

    #[test]
    fn no_body_panics_the_request_parser(command in any::<u8>(), body in bytes()) {
        let _ = Request::parse(command, body);
    }

    #[test]
    fn requests_survive_the_wire(request in request()) {
        let (command, body) = request.encode();
        prop_assert_eq!(Request::parse(command as u8, body), Ok(request));
    }
}

#[test]
fn a_declared_length_over_the_limit_is_refused_before_its_bytes_arrive() {
    let mut decoder = Decoder::default();
    decoder.extend(&(MAX_FRAME as u32 + 1).to_be_bytes());
    assert_eq!(decoder.next_frame(), Err(Oversize(MAX_FRAME as u32 + 1)));
    assert_eq!(decoder.buffered(), 4);
}
