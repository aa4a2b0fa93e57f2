//! One connection to one NATS server: the handshake, then bytes in both directions.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::ServerAddr;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use stepcast_shared::config::NatsConfig;
use stepcast_shared::nats::{self, Credentials, Login};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::parse::{self, Malformed, Op};

/// Longest time until a server has let us in.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest time that the server may take in what is said to it.
const WRITE: Duration = Duration::from_secs(5);
/// Room for at least this much is offered to a read: some hundred messages.
const READ: usize = 128 * 1024;

/// A connection that has been let in.
pub struct Link {
    stream: Box<dyn Duplex>,
    buffer: Vec<u8>,
    /// What has been read and not yet taken.
    begin: usize,
    end: usize,
    /// Other servers of the cluster, as this one names them.
    pub others: Vec<String>,
}

/// What a server tells of itself, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Info {
    headers: bool,
    tls_required: bool,
    /// What a user with a key is to sign.
    nonce: String,
    connect_urls: Vec<String>,
    /// It is about to stop and wants its clients to go elsewhere (`ldm`, lame duck mode).
    #[serde(rename = "ldm")]
    pub is_leaving: bool,
}

/// What we tell of ourselves.
#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "so the protocol has it")]
struct Connect<'a> {
    verbose: bool,
    pedantic: bool,
    tls_required: bool,
    name: &'a str,
    lang: &'a str,
    version: &'a str,
    protocol: u8,
    headers: bool,
    no_responders: bool,
    echo: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sig: Option<String>,
}

/// TCP, or TLS over it.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Link {
    /// Connects to one server. Errors if it cannot be reached, does not let us in, or takes longer than 5 s.
    pub async fn connect(
        server: &ServerAddr,
        login: Option<&Login>,
        config: &NatsConfig,
    ) -> anyhow::Result<Self> {
        timeout(HANDSHAKE, Self::handshake(server, login, config))
            .await
            .context("the server took too long")?
    }

    async fn handshake(
        server: &ServerAddr,
        login: Option<&Login>,
        config: &NatsConfig,
    ) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((server.host(), server.port())).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let mut link =
            Self { stream: Box::new(stream), buffer: Vec::new(), begin: 0, end: 0, others: Vec::new() };
        let info = link.info().await?;
        ensure!(info.headers, "the server does not know headers");
        let secure = info.tls_required || server.tls_required() || config.wants_tls();
        if secure {
            link.secure(server.host(), config).await.context("no TLS with the server")?;
        }
        let proof = match login {
            Some(Login::Credentials(path)) => Some(Credentials::read(path)?.sign(info.nonce.as_bytes())?),
            _ => None,
        };
        let (user, pass, token) = match login {
            Some(Login::User { name, password }) => {
                (Some(name.as_str()), Some(password.expose_secret()), None)
            }
            Some(Login::Token(token)) => (None, None, Some(token.expose_secret())),
            Some(Login::Credentials(_)) | None => (None, None, None),
        };
        let connect = Connect {
            verbose: false,
            pedantic: false,
            tls_required: secure,
            name: "stepcast-gateway-feed",
            lang: "rust",
            version: env!("CARGO_PKG_VERSION"),
            protocol: 1,
            headers: true,
            no_responders: true,
            echo: false,
            user,
            pass,
            auth_token: token,
            jwt: proof.as_ref().map(|proof| proof.jwt.as_str()),
            sig: proof.as_ref().map(|proof| URL_SAFE_NO_PAD.encode(&proof.signature)),
        };
        let connect = serde_json::to_string(&connect).context("credentials are text")?;
        link.say(format!("CONNECT {connect}\r\nPING\r\n").as_bytes()).await?;
        loop {
            match link.next()? {
                Some(Op::Pong) => break,
                Some(Op::Error(words)) => bail!("the server refuses: {}", String::from_utf8_lossy(words)),
                Some(_) => {}
                None => {
                    link.fill().await?;
                }
            }
        }
        link.others = info.connect_urls;
        Ok(link)
    }

    async fn info(&mut self) -> anyhow::Result<Info> {
        loop {
            match self.next()? {
                Some(Op::Info(json)) => return Ok(serde_json::from_slice(json)?),
                Some(_) => bail!("the server does not introduce itself"),
                None => {
                    self.fill().await?;
                }
            }
        }
    }

    async fn secure(&mut self, host: &str, config: &NatsConfig) -> anyhow::Result<()> {
        let plain = std::mem::replace(&mut self.stream, Box::new(tokio::io::empty()));
        let connector = TlsConnector::from(Arc::new(nats::client_config(config)?));
        let name = ServerName::try_from(host.to_owned())?;
        self.stream = Box::new(connector.connect(name, plain).await?);
        Ok(())
    }

    /// Reads more, and tells whether the server probably has more to say already. Cancel-safe.
    ///
    /// Errors if the connection is lost.
    pub async fn fill(&mut self) -> io::Result<bool> {
        if self.begin > 0 {
            self.buffer.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        if self.buffer.len() - self.end < READ {
            self.buffer.resize(self.end + READ, 0);
        }
        let space = &mut self.buffer[self.end..];
        let offered = space.len();
        let read = self.stream.read(space).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end += read;
        Ok(read == offered)
    }

    /// Takes the next operation of what was read; `None` if there is no whole one.
    pub fn next(&mut self) -> Result<Option<Op<'_>>, Malformed> {
        let parsed = parse::parse(&self.buffer[self.begin..self.end])?;
        Ok(parsed.map(|(op, length)| {
            self.begin += length;
            op
        }))
    }

    /// Says something. Errors if the server takes it in for longer than 5 s. Not cancel-safe.
    pub async fn say(&mut self, words: &[u8]) -> io::Result<()> {
        let written = timeout(WRITE, async {
            self.stream.write_all(words).await?;
            self.stream.flush().await
        });
        written.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}
