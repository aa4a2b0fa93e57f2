//! What the poller can be told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ArgMatches;
use secrecy::SecretString;
use stepcast_shared::config::{NatsConfig, Program, TelemetryConfig};
use stepcast_shared::ids::{BackendId, Pool};
use url::Url;

/// Stepcast poller: runs claimed jobs on SD.Next servers and publishes their progress.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "stepcast-poller", version)]
pub struct Config {
    /// Where health and metrics are served; port 0 takes a free one.
    #[arg(long, env = "STEPCAST_LISTEN", default_value = "127.0.0.1:8002")]
    pub listen: SocketAddr,
    /// How long to finish what is in hand when asked to stop.
    #[arg(long, env = "STEPCAST_SHUTDOWN_GRACE", default_value = "20s", value_parser = humantime::parse_duration)]
    pub shutdown_grace: Duration,
    #[command(flatten)]
    pub nats: NatsConfig,
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
    #[command(flatten)]
    pub poller: PollerConfig,
}

impl Program for Config {
    fn section(_: &ArgMatches) -> &'static str {
        "poller"
    }

    fn check(&self) -> anyhow::Result<()> {
        self.nats.check()?;
        self.telemetry.check()?;
        self.poller.check()
    }
}

/// The part that is the same in every deployment.
#[derive(Clone, Debug, clap::Args)]
pub struct PollerConfig {
    /// SD.Next servers, as `URL` or `ID=URL`, separated by commas; `user:password@` in a URL is for Basic
    /// authentication.
    #[arg(
        long,
        env = "STEPCAST_SDNEXT",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7860",
        hide_env_values = true
    )]
    pub sdnext: Vec<BackendSpec>,
    /// Pools that these servers serve, separated by commas.
    #[arg(long, env = "STEPCAST_POOLS", value_delimiter = ',', default_value = "default")]
    pub pools: Vec<Pool>,
    /// Where images are kept: `file:///FOLDER`, or `s3://BUCKET/PREFIX` where that is built in.
    #[arg(long, env = "STEPCAST_IMAGES_URL", hide_env_values = true)]
    pub images_url: Url,
    /// Where learnt timings are kept; without it they are learnt again after each start.
    #[arg(long, env = "STEPCAST_WEIGHTS_DIR")]
    pub weights_dir: Option<PathBuf>,
    /// How often a render is looked at. SD.Next refuses more than 300 looks a minute.
    #[arg(long, env = "STEPCAST_POLL_INTERVAL", default_value = "250ms", value_parser = humantime::parse_duration)]
    pub poll_interval: Duration,
    /// Most renders a minute on one server, 0 for no limit: SD.Next drops the 61st after rendering it.
    #[arg(long, env = "STEPCAST_POSTS_PER_MINUTE", default_value_t = 55)]
    pub posts_per_minute: u32,
    /// Longest time that one render may take.
    #[arg(long, env = "STEPCAST_RENDER_TIMEOUT", default_value = "1h", value_parser = humantime::parse_duration)]
    pub render_timeout: Duration,
    /// How long a render may show no change before it is interrupted and tried elsewhere; never less than the stage at
    /// hand needs to count as stalled: 15 s between two steps, up to some minutes elsewhere.
    #[arg(long, env = "STEPCAST_STALL_TIMEOUT", default_value = "10m", value_parser = humantime::parse_duration)]
    pub stall_timeout: Duration,
    /// How long rendered images are held for a store that is full or away, before their job is rendered again.
    #[arg(long, env = "STEPCAST_STORE_PATIENCE", default_value = "10m", value_parser = humantime::parse_duration)]
    pub store_patience: Duration,
    /// Make SD.Next keep every image that it renders for us, so that a render outlives the poller that asked for it.
    #[arg(long, env = "STEPCAST_ADOPT")]
    pub adopt: bool,
    /// Whether no other poller can exist: then a lease left by a crash is taken over at once.
    #[arg(skip)]
    pub sole_holder: bool,
}

impl PollerConfig {
    /// Refuses servers that could not be told apart.
    pub fn check(&self) -> anyhow::Result<()> {
        for (index, spec) in self.sdnext.iter().enumerate() {
            let twice = self.sdnext[..index].iter().any(|other| other.id == spec.id);
            anyhow::ensure!(!twice, "two SD.Next servers are called {}; name them as ID=URL", spec.id);
        }
        Ok(())
    }
}

/// One SD.Next server.
#[derive(Clone, Debug)]
pub struct BackendSpec {
    /// Its name in Stepcast.
    pub id: BackendId,
    /// Its address, without credentials.
    pub url: Url,
    /// For Basic authentication.
    pub credentials: Option<(String, SecretString)>,
}

/// A server could not be read from its text.
#[derive(Debug, thiserror::Error)]
pub enum BadSpec {
    /// The part before `=` is no name.
    #[error(transparent)]
    Id(#[from] stepcast_shared::ids::NotASlug),
    /// The address is none.
    #[error("an SD.Next server is named by an http:// or https:// address")]
    Url,
}

impl FromStr for BackendSpec {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let (id, address) = match text.split_once('=') {
            Some((id, address)) if !id.contains(':') => (Some(id.trim()), address.trim()),
            _ => (None, text.trim()),
        };
        let mut url = Url::parse(address)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
            .ok_or(BadSpec::Url)?;
        let credentials = (!url.username().is_empty()).then(|| {
            (decoded(url.username()), SecretString::from(decoded(url.password().unwrap_or_default())))
        });
        url.set_username("").expect("an http URL can go without a user");
        url.set_password(None).expect("an http URL can go without a password");
        url.set_query(None);
        url.set_fragment(None);
        let id = match id {
            Some(id) => id.parse()?,
            None => name_of(&url).parse()?,
        };
        Ok(Self { id, url, credentials })
    }
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// A name made from an address: `127-0-0-1-7860`.
fn name_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    let name: String = format!("{host}-{port}")
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let name = name.trim_matches('-');
    name[..name.len().min(64)].to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Config::command().debug_assert();
    }

    fn spec(text: &str) -> BackendSpec {
        text.parse().unwrap()
    }

    #[test]
    fn a_server_is_named_or_gets_its_address_as_name() {
        let named = spec("gpu-0=http://10.0.0.1:7860");
        assert_eq!((named.id.as_str(), named.url.as_str()), ("gpu-0", "http://10.0.0.1:7860/"));
        assert_eq!(spec("http://127.0.0.1:7860").id.as_str(), "127-0-0-1-7860");
        assert_eq!(spec("https://sd.example.org/a?b=c").id.as_str(), "sd-example-org-443");
    }

    #[test]
    fn credentials_leave_the_address() {
        let spec = spec("gpu=http://bob:s=e%40c@host:1");
        let (user, password) = spec.credentials.unwrap();
        assert_eq!((user.as_str(), password.expose_secret()), ("bob", "s=e@c"));
        assert_eq!(spec.url.as_str(), "http://host:1/");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "gpu", "gpu=", "ftp://x", "a b=http://x", "http://"] {
            assert!(text.parse::<BackendSpec>().is_err(), "{text}");
        }
    }
}
