//! The head of an HTTP/1.1 request or response: what a WebSocket and a proxy's CONNECT begin with. Nothing else of HTTP is
//! here.

/// Longest head, bytes.
pub const MAX_HEAD: usize = 8 * 1024;
/// Most header lines.
const MAX_LINES: usize = 100;

/// First line and headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    first: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
}

/// Why bytes are no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// No end within [`MAX_HEAD`] bytes, or more than 100 lines.
    #[error("HTTP head is too long (max {MAX_HEAD} bytes)")]
    TooLong,
    /// Not HTTP/1.
    #[error("not HTTP")]
    Malformed,
}

impl Head {
    /// Reads a head and how many bytes it has; `None`: it is not complete.
    ///
    /// # Errors
    /// It cannot become one.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, HeadError> {
        let mut lines = Vec::new();
        let mut at = 0;
        while let Some(len) = bytes[at..].iter().take(MAX_HEAD).position(|b| *b == b'\n') {
            let line = &bytes[at..at + len];
            at += len + 1;
            if at > MAX_HEAD || lines.len() > MAX_LINES {
                return Err(HeadError::TooLong);
            }
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                return Head::of(&lines).map(|head| Some((head, at)));
            }
            let text = std::str::from_utf8(line).map_err(|_| HeadError::Malformed)?;
            if text.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
                return Err(HeadError::Malformed);
            }
            lines.push(text);
        }
        match bytes.len() < MAX_HEAD {
            true => Ok(None),
            false => Err(HeadError::TooLong),
        }
    }

    fn of(lines: &[&str]) -> Result<Head, HeadError> {
        let [first, lines @ ..] = lines else { return Err(HeadError::Malformed) };
        let mut headers = Vec::with_capacity(lines.len());
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(HeadError::Malformed)?;
            // A name with a space around it, or a folded line, is read differently by different programs.
            if name.is_empty() || name.contains([' ', '\t']) {
                return Err(HeadError::Malformed);
            }
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Head { first: (*first).to_owned(), headers })
    }

    /// Method and path of a request, without its query.
    pub fn request(&self) -> Option<(&str, &str)> {
        let mut words = self.first.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if !version.starts_with("HTTP/1.") || words.next().is_some() {
            return None;
        }
        Some((method, target.split('?').next().unwrap_or(target)))
    }

    /// Status and reason of a response.
    pub fn status(&self) -> Option<(u16, &str)> {
        let (version, rest) = self.first.split_once(' ')?;
        let (code, reason) = rest.split_once(' ').unwrap_or((rest, ""));
        let digits = code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit());
        if !version.starts_with("HTTP/1.") || !digits {
            return None;
        }
        Some((code.parse().ok()?, reason))
    }

    /// The first header of that name (lower case).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The words of all headers of that name, which are lists with commas.
    pub fn words<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let lines = self.headers.iter().filter(move |(n, _)| n == name);
        lines.flat_map(|(_, value)| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
    }

    /// Whether one of these words is this one, in whatever case.
    pub fn has(&self, name: &str, word: &str) -> bool {
        self.words(name).any(|w| w.eq_ignore_ascii_case(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_a_response_are_read_to_their_end() {
        let bytes = b"GET /v1/compat?x=1 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUPGRADE:  websocket \r\n\r\nrest";
        let (head, used) = Head::parse(bytes).unwrap().unwrap();
        assert_eq!(&bytes[used..], b"rest");
        assert_eq!(head.request(), Some(("GET", "/v1/compat")));
        assert_eq!(
            (head.get("upgrade"), head.get("host"), head.get("x")),
            (Some("websocket"), Some("a"), None)
        );
        assert!(head.has("connection", "upgrade") && !head.has("connection", "close"));
        let (head, _) = Head::parse(b"HTTP/1.0 407 Proxy Authentication Required\n\n").unwrap().unwrap();
        assert_eq!(head.status(), Some((407, "Proxy Authentication Required")));
        assert_eq!(Head::parse(b"HTTP/1.1 200\r\n\r\n").unwrap().unwrap().0.status(), Some((200, "")));
        assert_eq!(Head::parse(b"GET / HTTP/1.1\r\nHost: a\r\n"), Ok(None));
    }

    #[test]
    fn what_is_no_head_is_refused_and_never_waited_for_without_end() {
        let error = |bytes: &[u8]| Head::parse(bytes).unwrap_err();
        assert_eq!(error(&[b'a'; MAX_HEAD]), HeadError::TooLong);
        assert_eq!(error(&b"a: b\r\n".repeat(200)), HeadError::TooLong);
        assert_eq!(error(b"\r\n"), HeadError::Malformed);
        assert_eq!(error(b"GET / HTTP/1.1\r\nno colon\r\n\r\n"), HeadError::Malformed);
        assert_eq!(error(b"GET / HTTP/1.1\r\nA: b\r\n folded: c\r\n\r\n"), HeadError::Malformed);
        assert_eq!(error(b"GET / HTTP/1.1\r\nA : b\r\n\r\n"), HeadError::Malformed);
        assert_eq!(error(b"\xff\xfe\r\n\r\n"), HeadError::Malformed);
        assert_eq!(error(b"a\x00b\r\n\r\n"), HeadError::Malformed);
        let head = |first: &str| Head::parse(format!("{first}\r\n\r\n").as_bytes()).unwrap().unwrap().0;
        assert_eq!(head("GET /").request(), None);
        assert_eq!(head("HTTP/1.1 +20 x").status(), None);
        assert_eq!(head("SSH-2.0 200 OK").status(), None);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_end_in_a_head_or_not(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            if let Ok(Some((head, used))) = Head::parse(&bytes) {
                assert!(used <= bytes.len());
                let _ = (head.request(), head.status());
            }
        }
    }
}
