//! Sections of configuration that several services share.

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::SecretString;

/// How to reach NATS.
#[derive(Clone, Debug, clap::Args)]
pub struct NatsConfig {
    /// NATS servers, separated by commas.
    #[arg(long, env = "STEPCAST_NATS_URL", default_value = "nats://127.0.0.1:4222")]
    pub nats_url: String,
    /// User name for NATS.
    #[arg(long, env = "STEPCAST_NATS_USER")]
    pub nats_user: Option<String>,
    /// Password for NATS.
    #[arg(long, env = "STEPCAST_NATS_PASSWORD", hide_env_values = true)]
    pub nats_password: Option<SecretString>,
}

impl NatsConfig {
    /// A server without credentials.
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
