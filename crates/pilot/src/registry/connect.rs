//! A TCP connection to a name that has several addresses, of which some may lead nowhere.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;

/// The next address is tried this long after the one before, also while that is still under way (RFC 8305).
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses tried.
const MAX_ADDRESSES: usize = 8;

/// Connects to the address that answers first. IPv4 goes first: registries of the reference take a node's IP address from
/// this connection, and beside it stands the port of its IPv4 mapping (spec 04 section 6).
pub(crate) async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = race(in_turns(lookup_host((host, port)).await?.collect())).await?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// IPv4 and IPv6 addresses alternating.
fn in_turns(all: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = all.into_iter().partition(SocketAddr::is_ipv4);
    let longest = v4.len().max(v6.len());
    let turn = |n: usize| [v4.get(n), v6.get(n)].into_iter().flatten().copied();
    (0..longest).flat_map(turn).take(MAX_ADDRESSES).collect()
}

async fn race(all: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = all.into_iter();
    let mut under_way = JoinSet::new();
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let more = waiting.next();
        if let Some(at) = more {
            under_way.spawn(TcpStream::connect(at));
        }
        loop {
            let ended = tokio::select! {
                ended = under_way.join_next() => ended,
                () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => break,
            };
            match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(failed))) => error = failed,
                Some(Err(_)) => {}
                None => return Err(error),
            }
            if waiting.len() > 0 {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let all = ["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1"];
        let all = in_turns(all.iter().map(|at| at.parse().unwrap()).collect());
        let all: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(all, ["192.0.2.1:1", "[2001:db8::1]:1", "[2001:db8::2]:1"]);
    }

    #[tokio::test]
    async fn the_address_that_answers_wins_and_if_none_does_the_cause_is_told() {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let stream = race(vec![closed, open]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
        assert_eq!(race(vec![closed]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(race(Vec::new()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_says_nothing_holds_up_no_other() {
        // Its queue of connections is full, so the next one waits for ever.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        full.listen(0).unwrap();
        let silent = full.local_addr().unwrap().as_socket().unwrap();
        let _first = std::net::TcpStream::connect(silent).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let stream = race(vec![silent, open]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
    }
}
