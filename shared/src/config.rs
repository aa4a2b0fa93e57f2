//! The command line, and sections of configuration that several services share.
//!
//! A value that may log somebody in is a [`SecretString`], or stays out of the help and out of complaints.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use clap::error::ContextValue;
use secrecy::SecretString;

use crate::address::without_credentials;

/// Reads the command line and the environment; call it first thing in `main`.
///
/// Ends the process with a word about it where they cannot be understood, or where help is asked for.
pub fn parse<C: clap::Parser>() -> C {
    C::try_parse().unwrap_or_else(|error| without_secrets(error).exit())
}

/// A complaint about the command line, without the credentials of the addresses that it repeats.
pub fn without_secrets(mut error: clap::Error) -> clap::Error {
    let shown: Vec<_> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) => Some((kind, ContextValue::String(without_credentials(text)))),
            ContextValue::Strings(texts) => Some((
                kind,
                ContextValue::Strings(texts.iter().map(|text| without_credentials(text)).collect()),
            )),
            _ => None,
        })
        .collect();
    for (kind, value) in shown {
        error.insert(kind, value);
    }
    error
}

/// How to reach NATS; [`crate::nats::Servers`] reads it.
#[derive(Clone, clap::Args)]
pub struct NatsConfig {
    /// NATS servers of one cluster, separated by commas. `user:password@` or `token@` in the addresses logs in;
    /// characters of these that mean something in an address are written as `%40` and the like.
    #[arg(long, env = "STEPCAST_NATS_URL", default_value = "nats://127.0.0.1:4222", hide_env_values = true)]
    pub nats_url: String,
    /// User name for NATS; goes before one in the addresses.
    #[arg(long, env = "STEPCAST_NATS_USER", requires = "nats_password")]
    pub nats_user: Option<String>,
    /// Password for NATS.
    #[arg(long, env = "STEPCAST_NATS_PASSWORD", hide_env_values = true, requires = "nats_user")]
    pub nats_password: Option<SecretString>,
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = without_credentials(&self.nats_url);
        f.debug_struct("NatsConfig")
            .field("nats_url", &shown)
            .field("nats_user", &self.nats_user)
            .finish_non_exhaustive()
    }
}

impl NatsConfig {
    /// Servers by their addresses.
    pub fn at(url: impl Into<String>) -> Self {
        Self { nats_url: url.into(), nats_user: None, nats_password: None }
    }
}

/// Where and how a service listens.
#[derive(Clone, Debug, clap::Args)]
pub struct ListenConfig {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, env = "STEPCAST_LISTEN", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Allow listening beyond this machine although nobody has to log in.
    #[arg(long, env = "STEPCAST_ALLOW_ANONYMOUS")]
    pub allow_anonymous: bool,
    /// How long to finish what is in hand when asked to stop.
    #[arg(long, env = "STEPCAST_SHUTDOWN_GRACE", default_value = "20s", value_parser = humantime::parse_duration)]
    pub shutdown_grace: Duration,
}

impl ListenConfig {
    /// Refuses an address that others can reach unless that was said aloud.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.listen.ip().is_loopback() || self.allow_anonymous,
            "listening on {} would let anybody who reaches this machine use it: there is no log-in yet. \
             Listen on 127.0.0.1, or add --allow-anonymous if that is what you want",
            self.listen
        );
        Ok(())
    }
}

/// Which pages of other hosts may use a server.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OriginConfig {
    /// Origins of pages on other hosts that may use this server, such as `https://example.org`; separated by commas.
    #[arg(long = "allow-origin", env = "STEPCAST_ALLOW_ORIGINS", value_delimiter = ',')]
    pub allow_origins: Vec<String>,
}

/// What the process says of itself.
#[derive(Clone, Debug, clap::Args)]
pub struct TelemetryConfig {
    /// What to log: a level, or `target=level` pairs separated by commas.
    #[arg(long, env = "STEPCAST_LOG", default_value = "info,async_nats=warn")]
    pub log: String,
    /// How to log.
    #[arg(long, env = "STEPCAST_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How to log.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines, one object a line.
    Json,
}
