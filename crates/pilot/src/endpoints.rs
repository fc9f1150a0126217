//! Endpoints as text in a node record (docs/extensions.md, "node_record").
//!
//! Plain `host:port` entries come first and mean what they always meant: the first is for everybody, the others are LAN
//! addresses. Entries with their kind, `mapped=192.0.2.7:4000`, are for readers that know kinds; others cannot read them
//! as an address and pass over them.

use pilot_proto::path::{Candidate, CandidateKind};

/// Entries in a record.
const MAX_ENTRIES: usize = pilot_proto::registry::record::MAX_ENDPOINTS;
/// Plain LAN addresses among them, so that there is room for what works from afar.
const MAX_PLAIN: usize = 4;

const KINDS: [CandidateKind; 5] = [
    CandidateKind::Lan,
    CandidateKind::Public,
    CandidateKind::Reflexive,
    CandidateKind::Mapped,
    CandidateKind::Operator,
];

/// The entries of a record: the endpoint the registry tells everybody, and where else this node is.
pub(crate) fn texts(registered: &str, own: &[Candidate], operator: &[String]) -> Vec<String> {
    let tagged = |kind: CandidateKind, at: &str| format!("{}={at}", kind.name());
    let lan = |c: &&Candidate| c.kind == CandidateKind::Lan;
    let plain = |c: &&Candidate| lan(c) && c.addr.is_ipv4();
    let mut out = vec![registered.to_owned()];
    out.extend(own.iter().filter(plain).take(MAX_PLAIN).map(|c| c.addr.to_string()));
    out.extend(operator.iter().map(|at| tagged(CandidateKind::Operator, at)));
    let far = own.iter().filter(|c| !lan(c) && c.kind != CandidateKind::Operator);
    let rest = own.iter().filter(plain).skip(MAX_PLAIN).chain(own.iter().filter(|c| lan(c) && !plain(c)));
    out.extend(far.chain(rest).map(|c| tagged(c.kind, &c.addr.to_string())));
    out.truncate(MAX_ENTRIES);
    out
}

/// Kind, if one is named, and `host:port` of an entry. `None`: a kind of a later version.
pub(crate) fn parse(text: &str) -> Option<(Option<CandidateKind>, &str)> {
    match text.split_once('=') {
        None => Some((None, text)),
        Some((name, at)) => Some((Some(KINDS.into_iter().find(|kind| kind.name() == name)?), at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_entries_come_first_and_the_others_with_their_kind() {
        let own = [
            ("198.51.100.7:4000", CandidateKind::Mapped),
            ("203.0.113.7:4000", CandidateKind::Reflexive),
            ("192.168.1.7:4000", CandidateKind::Lan),
            ("[2001:db8::7]:4000", CandidateKind::Public),
            ("[fd00::7]:4000", CandidateKind::Lan),
        ];
        let own = own.map(|(at, kind)| Candidate::new(at.parse().unwrap(), kind));
        let texts = texts("203.0.113.7:4000", &own, &["gate.example:5000".to_owned()]);
        let expected = [
            "203.0.113.7:4000",
            "192.168.1.7:4000",
            "operator=gate.example:5000",
            "mapped=198.51.100.7:4000",
            "reflexive=203.0.113.7:4000",
            "public=[2001:db8::7]:4000",
            "lan=[fd00::7]:4000",
        ];
        assert_eq!(texts, expected);
        let kinds: Vec<_> = texts.iter().map(|text| parse(text).unwrap()).collect();
        assert_eq!(kinds[1], (None, "192.168.1.7:4000"));
        assert_eq!(kinds[2], (Some(CandidateKind::Operator), "gate.example:5000"));
        assert_eq!(kinds[6], (Some(CandidateKind::Lan), "[fd00::7]:4000"));
        assert_eq!(parse("quantum=192.0.2.1:1"), None);
        assert_eq!(parse("learnt=192.0.2.1:1"), None, "nobody says that of himself");
    }

    #[test]
    fn a_host_with_many_addresses_names_as_many_as_a_record_holds() {
        let own: Vec<_> = (1..=40)
            .map(|n| Candidate::new(([10, 0, n, 1], 4000).into(), CandidateKind::Lan))
            .chain([Candidate::new("[2001:db8::7]:4000".parse().unwrap(), CandidateKind::Public)])
            .collect();
        let texts = texts("203.0.113.7:4000", &own, &[]);
        assert_eq!(texts.len(), MAX_ENTRIES);
        assert!(texts.contains(&"public=[2001:db8::7]:4000".to_owned()), "{texts:?}");
    }
}
