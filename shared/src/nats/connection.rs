//! A connection to NATS: the addresses, who logs in, and word of what may have been lost on the way.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::{Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};
use url::Url;

use crate::address::without_credentials;
use crate::config::NatsConfig;
use crate::nats::credentials::Credentials;
use crate::nats::tls;

/// How often a client that lost its server tries again: a watcher should not see more than this of a restart.
pub(super) const RECONNECT_DELAY: Duration = Duration::from_millis(250);
/// Longest wait for a first connection. Services start together; whoever is first waits for the broker.
const FIRST_CONNECTION: Duration = Duration::from_secs(30);
/// How often it is said that a subscription overflows: there is one notice for each message that is dropped.
const WARN_EVERY: Duration = Duration::from_secs(5);

/// A client, and word of what may have been lost on its connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// The word.
    pub gaps: Gaps,
}

/// Word that live messages may have been lost: the connection was away, or a subscription overflowed.
///
/// Both only say that something may be missing: whoever needs to know what reads the stream. Clones are told apart from
/// each other.
#[derive(Clone, Debug)]
pub struct Gaps(watch::Receiver<u64>);

impl Gaps {
    /// Gaps so far, for who looks from time to time. The first connection counts as one.
    pub fn count(&self) -> u64 {
        *self.0.borrow()
    }

    /// Resolves once there was a gap since this was handed out or last resolved; several at once are told as one. Pends
    /// for ever once every client of the connection is gone. Cancel-safe.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// As [`open`], for who reads nothing that must not be missed.
pub async fn connect(service: &str, config: &NatsConfig) -> anyhow::Result<Client> {
    Ok(open(service, config).await?.client)
}

/// As [`open_within`], waiting up to 30 s.
pub async fn open(service: &str, config: &NatsConfig) -> anyhow::Result<Connection> {
    open_within(FIRST_CONNECTION, service, config).await
}

/// Connects, waiting so long for a server to appear. Answers come to inboxes under `_INBOX.<service>`.
///
/// Errors say which address it was, and never with what password. An address that cannot be read, or a server that
/// refuses the log-in, is an error at once.
pub async fn open_within(
    patience: Duration,
    service: &str,
    config: &NatsConfig,
) -> anyhow::Result<Connection> {
    let servers = Servers::of(config)?;
    if config.wants_tls() {
        // Read for each connection anew; what is wrong with the files is told now.
        tls::client_config(config)?;
    }
    if let Some(Login::Credentials(path)) = &servers.login {
        Credentials::read(path)?;
    }
    let (told, gaps) = watch::channel(0);
    let reporter = Arc::new(Reporter { told, warned: Mutex::new(None) });
    let options = || {
        let reporter = reporter.clone();
        let options = servers
            .log_in()
            .name(format!("stepcast-{service}"))
            // Answers come where the server lets nobody else listen (deploy/nats/users.conf).
            .custom_inbox_prefix(format!("_INBOX.{service}"))
            .max_reconnects(None)
            .reconnect_delay_callback(|_| RECONNECT_DELAY)
            .request_timeout(Some(Duration::from_secs(5)))
            .event_callback(move |event| {
                reporter.report(&event);
                std::future::ready(())
            });
        secured(options, config)
    };
    let deadline = Instant::now() + patience;
    loop {
        let error = match options().connect(servers.addresses.as_slice()).await {
            Ok(client) => return Ok(Connection { client, gaps: Gaps(gaps) }),
            Err(error) => error,
        };
        let shown = &servers.shown;
        if let Some(why) = tls::refusal(&error) {
            bail!("no TLS with the NATS server at {shown}: {why}");
        }
        match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                bail!("the NATS server at {shown} refuses the log-in: check {}", servers.login_flags())
            }
            _ if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("no NATS server answers at {shown}"));
            }
            _ => tokio::time::sleep(RECONNECT_DELAY).await,
        }
    }
}

/// With whom we trust, and what we show.
fn secured(mut options: ConnectOptions, config: &NatsConfig) -> ConnectOptions {
    if let Some(ca) = &config.nats_ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let (Some(cert), Some(key)) = (&config.nats_cert, &config.nats_key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    options.require_tls(config.wants_tls())
}

/// Where the servers are, and how to log in there.
#[derive(Clone, Debug)]
pub struct Servers {
    /// Without credentials, as whoever is given an address may print it.
    pub addresses: Vec<ServerAddr>,
    /// How to log in, the same everywhere.
    pub login: Option<Login>,
    /// The addresses as people may see them.
    pub shown: String,
}

/// What a server is told.
#[derive(Clone, Debug)]
pub enum Login {
    /// A user.
    User {
        /// Its name.
        name: String,
        /// Its password.
        password: SecretString,
    },
    /// A token.
    Token(SecretString),
    /// A credentials file.
    Credentials(PathBuf),
}

impl Servers {
    /// Reads the addresses, and takes the credentials out of them: the client library would not use those.
    ///
    /// Errors name the address, and never its password.
    pub fn of(config: &NatsConfig) -> anyhow::Result<Self> {
        let shown = without_credentials(&config.nats_url);
        let mut servers = Self { addresses: Vec::new(), login: None, shown };
        let mut named: Option<(String, Option<String>)> = None;
        for (index, text) in config.nats_url.split(',').map(str::trim).enumerate() {
            let whole = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
            // All of them, as a comma may belong to a password.
            let bad = |what| format!("the NATS address {} cannot be {what}", servers.shown);
            let mut url = Url::parse(&whole).with_context(|| bad("read"))?;
            let found = (!url.username().is_empty())
                .then(|| (url.username().to_owned(), url.password().map(str::to_owned)));
            ensure!(
                index == 0 || found == named,
                "the NATS servers {} are one cluster: give each of them the same user and password",
                servers.shown
            );
            named = found;
            // Neither fails on an address with a host, and one without is refused below.
            let _ = (url.set_username(""), url.set_password(None));
            let address = ServerAddr::from_url(url).with_context(|| bad("used"))?;
            servers.addresses.push(address);
        }
        let flags = config.nats_user.clone().zip(config.nats_password.clone());
        servers.login = match (flags, named) {
            _ if config.nats_creds.is_some() => config.nats_creds.clone().map(Login::Credentials),
            (Some((name, password)), _) => Some(Login::User { name, password }),
            (None, Some((name, Some(password)))) => {
                Some(Login::User { name: decoded(&name), password: decoded(&password).into() })
            }
            (None, Some((token, None))) => Some(Login::Token(decoded(&token).into())),
            (None, None) => None,
        };
        Ok(servers)
    }

    fn log_in(&self) -> ConnectOptions {
        match &self.login {
            Some(Login::User { name, password }) => {
                ConnectOptions::with_user_and_password(name.clone(), password.expose_secret().to_owned())
            }
            Some(Login::Token(token)) => ConnectOptions::with_token(token.expose_secret().to_owned()),
            Some(Login::Credentials(path)) => {
                let path = path.clone();
                ConnectOptions::with_auth_callback(move |nonce| std::future::ready(prove(&path, &nonce)))
            }
            None => ConnectOptions::new(),
        }
    }

    fn login_flags(&self) -> &'static str {
        match &self.login {
            Some(Login::Credentials(_)) => "--nats-creds",
            Some(Login::User { .. } | Login::Token(_)) | None => "--nats-user and --nats-password",
        }
    }
}

fn prove(credentials: &Path, nonce: &[u8]) -> Result<Auth, AuthError> {
    let proof = Credentials::read(credentials).and_then(|credentials| credentials.sign(nonce));
    let proof = proof.map_err(|error| AuthError::new(format!("{error:#}")))?;
    let mut auth = Auth::new();
    (auth.jwt, auth.signature) = (Some(proof.jwt), Some(proof.signature));
    Ok(auth)
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Logs and counts what happens to a connection.
struct Reporter {
    told: watch::Sender<u64>,
    /// When it was last said that a subscription overflows.
    warned: Mutex<Option<Instant>>,
}

impl Reporter {
    fn report(&self, event: &Event) {
        match event {
            Event::Connected => {
                info!("connected to nats");
                self.told.send_modify(|gaps| *gaps += 1);
            }
            Event::Disconnected => warn!("lost the connection to nats"),
            Event::SlowConsumer(_) => {
                metrics::counter!("stepcast_nats_slow_consumer_total").increment(1);
                self.told.send_modify(|gaps| *gaps += 1);
                if self.is_time_to_warn() {
                    warn!("a nats subscription overflowed, and messages were dropped");
                }
            }
            // What a process does when it stops.
            Event::Closed | Event::Draining => {}
            other => warn!(event = %other, "nats reports"),
        }
    }

    fn is_time_to_warn(&self) -> bool {
        let mut warned = self.warned.lock().expect("no code panics while it holds this lock");
        let due = warned.is_none_or(|at| at.elapsed() >= WARN_EVERY);
        if due {
            *warned = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &NatsConfig) -> (Vec<String>, Option<(String, String)>) {
        let servers = Servers::of(config).unwrap();
        let addresses = servers.addresses.iter().map(|server| server.as_url_str().to_owned()).collect();
        let login = servers.login.map(|login| match login {
            Login::User { name, password } => (name, password.expose_secret().to_owned()),
            Login::Token(token) => (String::new(), token.expose_secret().to_owned()),
            Login::Credentials(path) => (path.display().to_string(), String::new()),
        });
        (addresses, login)
    }

    fn pair(user: &str, password: &str) -> (String, String) {
        (user.to_owned(), password.to_owned())
    }

    #[test]
    fn credentials_leave_the_addresses() {
        for (address, servers, login) in [
            ("nats://a:1", vec!["nats://a:1"], None),
            ("a:1, nats://b:2", vec!["nats://a:1", "nats://b:2"], None),
            ("nats://bob:s%40c@a:1", vec!["nats://a:1"], Some(pair("bob", "s@c"))),
            ("tls://bob:s@a:1,tls://bob:s@b:2", vec!["tls://a:1", "tls://b:2"], Some(pair("bob", "s"))),
            ("nats://t%2Fk@a:1", vec!["nats://a:1"], Some(pair("", "t/k"))),
        ] {
            let servers: Vec<String> = servers.into_iter().map(str::to_owned).collect();
            assert_eq!(read(&NatsConfig::at(address)), (servers, login), "{address}");
        }
    }

    #[test]
    fn a_named_user_goes_before_one_in_the_address() {
        let config = NatsConfig {
            nats_user: Some("ann".to_owned()),
            nats_password: Some("other".into()),
            ..NatsConfig::at("nats://bob:s@a:1")
        };
        assert_eq!(read(&config).1, Some(pair("ann", "other")));
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_a_word_of_the_password() {
        for address in [
            "nats://bob:hunter2@a:port",
            "http://bob:hunter2@a:1",
            "nats://bob:hunter2@a:1,nats://b:2",
            "nats://bob:hunter2@a:1,nats://bob:hunter3@b:2",
            "nats://bob:hunt,er2@a:1",
            "nats://bob:hunter2@",
        ] {
            let Err(error) = Servers::of(&NatsConfig::at(address)) else { panic!("{address} is refused") };
            let error = format!("{error:#}");
            assert!(error.contains("NATS") && !error.contains("hunt"), "{error}");
        }
    }
}
