//! TCP connections through an HTTP proxy (CONNECT), with name and password where it asks for them.

mod stored;
mod url;

pub use stored::Credentials;
pub use url::ProxyUrl;
pub(crate) use url::split;

use crate::lock;
use crate::registry::{Io, tcp};
use pilot_proto::crypto::{Secret, base64};
use pilot_proto::wire::http::Head;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// What a proxy command said is used for this long.
const FRESH: Duration = Duration::from_secs(60);
/// Time a proxy command may take.
const COMMAND: Duration = Duration::from_secs(10);
/// Most bytes it may print.
const MAX_OUTPUT: usize = 4096;

/// Which proxy to use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ProxyChoice {
    /// None.
    #[default]
    Off,
    /// This one, for every connection that does not stay on this host.
    Fixed(ProxyUrl),
    /// As the environment says, for connections with TLS and WebSockets, unless the transport is `udp`.
    Environment {
        /// `HTTPS_PROXY`, else `ALL_PROXY`.
        proxy: Option<ProxyUrl>,
        /// `NO_PROXY`.
        except: String,
    },
}

/// How a node finds proxies and their credentials.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// Which one.
    pub choice: ProxyChoice,
    /// A shell command that prints the URL instead, for credentials that change. It is run anew after a minute, and when
    /// the proxy refuses them.
    pub command: Option<String>,
    /// A file of [`Credentials`], looked at when a URL has none.
    pub credentials: Option<PathBuf>,
    said: Arc<Mutex<Option<(Instant, ProxyUrl)>>>,
}

impl ProxyChoice {
    /// `auto`, `off` (`none`, `no`, `false`, `direct`) or a URL; `env` finds variables.
    ///
    /// # Errors
    /// The URL, or the environment's, is malformed.
    pub fn parse<'a>(text: &str, env: impl Fn(&str) -> Option<&'a str>) -> Result<ProxyChoice, String> {
        match text.trim() {
            "off" | "none" | "no" | "false" | "direct" => Ok(ProxyChoice::Off),
            "auto" | "" => {
                let first = |names: &[&'static str]| {
                    names.iter().find_map(|name| env(name).filter(|v| !v.is_empty()).map(|v| (*name, v)))
                };
                let proxy = match first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]) {
                    Some((name, url)) => Some(url.parse().map_err(|e| format!("{name}: {e}"))?),
                    None => None,
                };
                let except = first(&["NO_PROXY", "no_proxy"]).map_or("", |(_, list)| list).to_owned();
                Ok(ProxyChoice::Environment { proxy, except })
            }
            url => url.parse().map(ProxyChoice::Fixed),
        }
    }
}

fn stays_here(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

impl Proxies {
    /// With this choice and nothing else.
    pub fn new(choice: ProxyChoice) -> Proxies {
        Proxies { choice, ..Proxies::default() }
    }

    /// The same with a command that prints the URL, and a file of credentials.
    pub fn with(self, command: Option<String>, credentials: Option<PathBuf>) -> Proxies {
        Proxies { command, credentials, ..self }
    }

    /// The proxy every connection to this host must take.
    pub(crate) fn fixed(&self, host: &str) -> Option<&ProxyUrl> {
        match &self.choice {
            ProxyChoice::Fixed(proxy) if !stays_here(host) => Some(proxy),
            _ => None,
        }
    }

    /// The proxy for connections to this host that look like HTTPS.
    pub(crate) fn secure(&self, host: &str, port: u16) -> Option<&ProxyUrl> {
        match &self.choice {
            ProxyChoice::Environment { proxy, except }
                if !stays_here(host) && !url::exempt(except, host, port) =>
            {
                proxy.as_ref()
            }
            _ => self.fixed(host),
        }
    }

    /// A connection to `host:port` through a proxy, or straight. The error names what failed and what to do.
    pub(crate) async fn connect(
        &self,
        proxy: Option<&ProxyUrl>,
        host: &str,
        port: u16,
    ) -> Result<Box<dyn Io>, String> {
        let Some(proxy) = proxy else {
            return Ok(Box::new(tcp(host, port).await.map_err(|e| crate::registry::plain(&e))?));
        };
        let first = self.current(proxy, false).await?;
        match self.tunnel(&first, host, port).await {
            // The credentials may have changed a moment ago.
            Err(Refusal::Credentials(_)) if self.command.is_some() => {
                let again = self.current(proxy, true).await?;
                self.tunnel(&again, host, port).await.map_err(Refusal::into_text)
            }
            result => result.map_err(Refusal::into_text),
        }
    }

    /// The proxy's URL as the command says, if there is one.
    async fn current(&self, proxy: &ProxyUrl, anew: bool) -> Result<ProxyUrl, String> {
        let Some(command) = &self.command else { return Ok(proxy.clone()) };
        let kept = lock(&self.said).clone();
        if let Some((at, url)) = kept.filter(|(at, _)| !anew && at.elapsed() < FRESH) {
            tracing::trace!(age = ?at.elapsed(), "proxy URL of before");
            return Ok(url);
        }
        let fail = |why: String| format!("proxy command: {why}");
        let mut process = tokio::process::Command::new("sh");
        process.args(["-c", command]).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let output = match timeout(COMMAND, process.output()).await {
            Ok(output) => output.map_err(|e| fail(e.to_string()))?,
            Err(_) => return Err(fail(format!("took longer than {} s", COMMAND.as_secs()))),
        };
        if !output.status.success() {
            return Err(fail(format!("ended with {}", output.status)));
        }
        let text = output.stdout.get(..output.stdout.len().min(MAX_OUTPUT)).unwrap_or_default();
        let text = std::str::from_utf8(text).map_err(|_| fail("printed something that is no text".into()))?;
        let url: ProxyUrl = text.parse().map_err(fail)?;
        *lock(&self.said) = Some((Instant::now(), url.clone()));
        Ok(url)
    }

    fn user(&self, proxy: &ProxyUrl) -> Result<Option<(String, Secret)>, String> {
        match (&proxy.user, &self.credentials) {
            (Some(user), _) => Ok(Some(user.clone())),
            (None, Some(path)) => Ok(Credentials::load(path)?.get(&proxy.authority())),
            (None, None) => Ok(None),
        }
    }

    async fn tunnel(&self, proxy: &ProxyUrl, host: &str, port: u16) -> Result<Box<dyn Io>, Refusal> {
        let fail = |why: String| Refusal::Other(format!("proxy {proxy}: {why}"));
        let user = self.user(proxy).map_err(Refusal::Other)?;
        let stream = tcp(&proxy.host, proxy.port).await.map_err(|e| fail(crate::registry::plain(&e)))?;
        let mut stream: Box<dyn Io> = match proxy.tls {
            false => Box::new(stream),
            true => {
                let config = crate::registry::tls_config(&crate::RegistryTls::System).map_err(&fail)?;
                let name = rustls::pki_types::ServerName::try_from(proxy.host.clone())
                    .map_err(|e| fail(e.to_string()))?;
                let connected = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
                Box::new(connected.map_err(|e| fail(format!("TLS: {e}")))?)
            }
        };
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some((name, password)) = &user {
            let credentials = base64(format!("{name}:{}", password.expose()));
            request.push_str(&format!("Proxy-Authorization: Basic {credentials}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|e| fail(e.to_string()))?;
        stream.flush().await.map_err(|e| fail(e.to_string()))?;
        let mut bytes = Vec::with_capacity(512);
        let head = loop {
            match Head::parse(&bytes) {
                Ok(Some((head, _))) => break head,
                Ok(None) => {}
                Err(error) => return Err(fail(format!("its answer to CONNECT: {error}"))),
            }
            // One byte at a time near the end would be exact; a server behind it does not speak first.
            if stream.read_buf(&mut bytes).await.map_err(|e| fail(e.to_string()))? == 0 {
                return Err(fail("closed the connection instead of answering CONNECT".into()));
            }
        };
        match head.status() {
            Some((200..=299, _)) => Ok(stream),
            Some((407, _)) => Err(Refusal::Credentials(match user {
                Some((name, _)) => format!(
                    "proxy {proxy} refuses the password of {name:?} (407); change it with: pilotctl proxy \
                     set-credentials {} --user {name}",
                    proxy.authority()
                ),
                None => format!(
                    "proxy {proxy} asks for a name and a password (407); give it: pilotctl proxy set-credentials {} \
                     --user NAME",
                    proxy.authority()
                ),
            })),
            Some((status, reason)) => Err(fail(format!("does not connect to {target}: {status} {reason}"))),
            None => Err(fail("its answer to CONNECT is not HTTP".into())),
        }
    }
}

enum Refusal {
    Credentials(String),
    Other(String),
}

impl Refusal {
    fn into_text(self) -> String {
        match self {
            Refusal::Credentials(text) | Refusal::Other(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A proxy that wants `agent:s3cret` and then echoes; it counts what it was asked.
    async fn proxy() -> (ProxyUrl, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (asked, rx) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = Vec::new();
                while Head::parse(&bytes).unwrap().is_none() {
                    stream.read_buf(&mut bytes).await.unwrap();
                }
                let text = String::from_utf8(bytes).unwrap();
                let granted = text.contains("Proxy-Authorization: Basic YWdlbnQ6czNjcmV0\r\n");
                let _ = asked.send(text);
                let answer: &[u8] = if granted {
                    b"HTTP/1.0 200 Connection established\r\n\r\n"
                } else {
                    b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
                };
                stream.write_all(answer).await.unwrap();
                let (mut from, mut to) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
            }
        });
        (url, rx)
    }

    async fn ask(proxies: &Proxies, url: &ProxyUrl) -> Result<(), String> {
        let mut stream = proxies.connect(Some(url), "pilot.example", 443).await?;
        stream.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"ping");
        Ok(())
    }

    #[tokio::test]
    async fn a_proxy_is_asked_by_name_and_its_refusal_names_the_command_that_helps() {
        let (url, mut asked) = proxy().await;
        let at = url.authority();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        let proxies = Proxies { credentials: Some(path.clone()), ..Proxies::default() };
        let error = ask(&proxies, &url).await.unwrap_err();
        assert_eq!(
            error,
            format!(
                "proxy http://{at} asks for a name and a password (407); give it: pilotctl proxy set-credentials {at} --user NAME"
            )
        );
        assert!(
            asked
                .recv()
                .await
                .unwrap()
                .starts_with("CONNECT pilot.example:443 HTTP/1.1\r\nHost: pilot.example:443\r\n")
        );
        let mut kept = Credentials::default();
        kept.set(&at, "agent", &Secret::from("wrong"));
        kept.save(&path).unwrap();
        let error = ask(&proxies, &url).await.unwrap_err();
        assert!(
            error.contains("refuses the password of \"agent\" (407)") && !error.contains("wrong"),
            "{error}"
        );
        // What is kept is read with each connection.
        kept.set(&at, "agent", &Secret::from("s3cret"));
        kept.save(&path).unwrap();
        ask(&proxies, &url).await.unwrap();
        // The URL's own come first.
        let named = format!("http://agent:s3cret@{at}").parse().unwrap();
        ask(&Proxies::default(), &named).await.unwrap();
    }

    #[tokio::test]
    async fn a_command_gives_the_url_and_is_run_again_when_its_credentials_are_refused() {
        let (url, mut asked) = proxy().await;
        let at = url.authority();
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        // The first time the password is an old one.
        let command = format!(
            "echo x >> {runs}; if [ $(wc -l < {runs}) = 1 ]; then echo http://agent:old@{at}; else echo http://agent:s3cret@{at}; fi",
            runs = runs.display()
        );
        let proxies = Proxies { command: Some(command), ..Proxies::default() };
        ask(&proxies, &url).await.unwrap();
        ask(&proxies, &url).await.unwrap();
        assert_eq!(std::fs::read_to_string(&runs).unwrap(), "x\nx\n", "twice, not per connection");
        let tried = std::iter::from_fn(|| asked.try_recv().ok()).count();
        assert_eq!(tried, 3);
        let broken = Proxies { command: Some("exit 3".into()), ..Proxies::default() };
        let error = ask(&broken, &url).await.unwrap_err();
        assert!(error.starts_with("proxy command: ended with exit status: 3"), "{error}");
    }

    #[test]
    fn which_proxy_is_used() {
        let env = |name: &str| match name {
            "https_proxy" => Some("http://env:3128"),
            "NO_PROXY" => Some("near.example"),
            _ => None,
        };
        let auto = Proxies::new(ProxyChoice::parse("auto", env).unwrap());
        let shown = |proxy: Option<&ProxyUrl>| proxy.map(ToString::to_string);
        assert_eq!(shown(auto.secure("far.example", 443)), Some("http://env:3128".into()));
        assert_eq!(shown(auto.secure("a.near.example", 443)), None);
        assert_eq!(shown(auto.secure("127.0.0.1", 443)), None);
        assert_eq!(shown(auto.fixed("far.example")), None, "plain connections go straight");
        let fixed = Proxies::new(ProxyChoice::parse("http://mine:1", env).unwrap());
        assert_eq!(shown(fixed.fixed("far.example")), Some("http://mine:1".into()));
        assert_eq!(shown(fixed.secure("a.near.example", 443)), Some("http://mine:1".into()));
        assert_eq!(shown(fixed.secure("localhost", 443)), None);
        for off in ["off", "none", "no", "false", "direct"] {
            assert_eq!(ProxyChoice::parse(off, env), Ok(ProxyChoice::Off));
        }
        let bad =
            ProxyChoice::parse("auto", |name| (name == "ALL_PROXY").then_some("socks5://a:1")).unwrap_err();
        assert!(bad.starts_with("ALL_PROXY: invalid proxy URL: socks5:// is no HTTP proxy"), "{bad}");
    }
}
