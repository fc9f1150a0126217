//! Options our own nodes exchange in the payload of SYN and SYN-ACK, which reference peers ignore
//! (docs/extensions.md, "Stream options").

/// First bytes of an options payload.
const MAGIC: &[u8; 4] = b"PSOP";
/// Version of the options this code speaks.
const VERSION: u8 = 1;
/// Longest options payload taken, bytes.
const MAX_LEN: usize = 255;
/// Largest segment payload that can be negotiated, bytes (what one UDP datagram carries, with room to spare).
pub(super) const MAX_SEGMENT: u16 = 60_000;
/// Smallest maximum segment payload that can be negotiated, bytes.
const MIN_SEGMENT: u16 = 256;
/// Window unit if none is announced: the reference's segment size, bytes.
const DEFAULT_UNIT: u16 = 1152;

mod tlv {
    pub(super) const VERSION: u8 = 1;
    pub(super) const FEATURES: u8 = 2;
    pub(super) const MAX_SEGMENT: u8 = 3;
    pub(super) const WINDOW_UNIT: u8 = 4;
}
const FEATURE_HALF_CLOSE: u8 = 0x01;

/// What one side announces about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Options {
    /// A FIN may end one direction only.
    pub(super) half_close: bool,
    /// Largest packet payload this side takes, bytes, 256 to 60,000.
    pub(super) max_segment: u16,
    /// Bytes per count of the window field this side sends, never 0.
    pub(super) window_unit: u16,
}

impl Options {
    /// The payload of SYN or SYN-ACK.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(18);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[tlv::VERSION, 1, VERSION]);
        out.extend_from_slice(&[tlv::FEATURES, 1, if self.half_close { FEATURE_HALF_CLOSE } else { 0 }]);
        out.extend_from_slice(&[tlv::MAX_SEGMENT, 2]);
        out.extend_from_slice(&self.max_segment.to_be_bytes());
        out.extend_from_slice(&[tlv::WINDOW_UNIT, 2]);
        out.extend_from_slice(&self.window_unit.to_be_bytes());
        out
    }

    /// Reads a payload. Unknown types are skipped; anything malformed means "no options".
    pub(super) fn parse(payload: &[u8]) -> Option<Options> {
        if payload.len() > MAX_LEN {
            return None;
        }
        let mut rest = payload.strip_prefix(MAGIC)?;
        let mut version = None;
        let mut options = Options { half_close: false, max_segment: 1152, window_unit: DEFAULT_UNIT };
        while let [kind, len, tail @ ..] = rest {
            let (value, next) = tail.split_at_checked(usize::from(*len))?;
            match (*kind, value) {
                (tlv::VERSION, [v]) if *v >= VERSION => version = Some(*v),
                (tlv::FEATURES, [bits, ..]) => options.half_close = bits & FEATURE_HALF_CLOSE != 0,
                (tlv::MAX_SEGMENT, [a, b]) => {
                    let size = u16::from_be_bytes([*a, *b]);
                    if size < MIN_SEGMENT {
                        return None;
                    }
                    options.max_segment = size.min(MAX_SEGMENT);
                }
                (tlv::WINDOW_UNIT, [a, b]) => {
                    options.window_unit = u16::from_be_bytes([*a, *b]);
                    if options.window_unit == 0 {
                        return None;
                    }
                }
                (tlv::VERSION | tlv::FEATURES | tlv::MAX_SEGMENT | tlv::WINDOW_UNIT, _) => return None,
                _ => {}
            }
            rest = next;
        }
        (rest.is_empty() && version.is_some()).then_some(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options { half_close: true, max_segment: 60_000, window_unit: 1024 };

    #[test]
    fn options_round_trip_in_the_documented_bytes() {
        let bytes = OPTIONS.encode();
        assert_eq!(bytes, *b"PSOP\x01\x01\x01\x02\x01\x01\x03\x02\xea\x60\x04\x02\x04\x00");
        assert_eq!(Options::parse(&bytes), Some(OPTIONS));
    }

    #[test]
    fn unknown_types_are_skipped() {
        let mut bytes = OPTIONS.encode();
        bytes.extend_from_slice(&[200, 3, 1, 2, 3]);
        assert_eq!(Options::parse(&bytes), Some(OPTIONS));
    }

    #[test]
    fn malformed_options_count_as_absent() {
        let good = OPTIONS.encode();
        for cut in 0..good.len() {
            // Cutting between two options leaves a well-formed shorter list; it counts if the version is there.
            let whole = matches!(cut, 7 | 10 | 14);
            assert_eq!(Options::parse(&good[..cut]).is_some(), whole, "cut at {cut}");
        }
        assert_eq!(Options::parse(b"PSOP\x01\x01\x00"), None, "version 0");
        assert_eq!(Options::parse(b"PSOP\x01\x01\x01\x04\x02\x00\x00"), None, "window unit 0");
        assert_eq!(Options::parse(b"PSOP\x01\x01\x01\x03\x02\x00\x10"), None, "tiny segments");
        assert_eq!(Options::parse(b"hello"), None);
    }
}
