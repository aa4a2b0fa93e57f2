//! The command line, and sections of configuration that several services share.
//!
//! Whatever can be set by a flag can be set by a variable and by a file ([`parse`]). A value that may log somebody in is a
//! [`SecretString`], or stays out of the help and out of complaints.

mod file;
mod layers;
mod show;

use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::error::ContextValue;
use clap::{ArgMatches, Command};
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

use self::layers::{Layers, complaint};
use crate::address::without_credentials;
use crate::nats::Servers;
use crate::trace::TraceConfig;

/// A program with a configuration.
pub trait Program: clap::Parser {
    /// Those of its commands that read a configuration; none if the program has no commands.
    const COMMANDS: &'static [&'static str] = &[];

    /// Its section in a configuration file, by what it was told.
    fn section(matches: &ArgMatches) -> &'static str;

    /// Refuses values that can be read, but with which nothing would work. Opens nothing.
    fn check(&self) -> anyhow::Result<()>;
}

/// Reads the command line, the environment and the configuration file; call it first thing in `main`.
///
/// A flag goes before a variable, a variable before the file, the file before a default. Ends the process with a word
/// about it where they cannot be understood, where help is asked for, or where only the settings are.
pub fn parse<P: Program>() -> P {
    let read = read::<P>(std::env::args_os().collect()).unwrap_or_else(|error| error.exit());
    // Nobody is left to tell if one of these fails.
    if let Some(warning) = read.warning {
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    if let Some(settings) = read.settings {
        let _ = std::io::stdout().write_all(settings.as_bytes());
        std::process::exit(0);
    }
    read.program
}

/// What was read.
#[derive(Debug)]
struct Read<P> {
    program: P,
    /// What somebody should be told.
    warning: Option<String>,
    /// The settings, if only they are asked for.
    settings: Option<String>,
}

fn read<P: Program>(mut arguments: Vec<OsString>) -> Result<Read<P>, clap::Error> {
    let mut command = equipped::<P>();
    let mut layers = Layers::default();
    // What is wrong with flags and variables is told by the second reading, and so is help.
    if let Ok(matches) = command.clone().ignore_errors(true).try_get_matches_from(&arguments)
        && let Some((command, matches)) = chosen::<P>(&command, &matches)
    {
        layers = Layers::read(command, matches, P::section(matches))?;
        arguments.append(&mut layers.arguments);
    }
    let told = |error| layers.place(without_secrets(error));
    let mut matches = command.try_get_matches_from_mut(&arguments).map_err(told)?;
    let settings = chosen::<P>(&command, &matches)
        .filter(|(_, matches)| layers::is_check(matches))
        .map(|(command, matches)| show::settings(command, matches, &layers));
    let program = P::from_arg_matches_mut(&mut matches).map_err(|error| told(error.format(&mut command)))?;
    program.check().map_err(|error| complaint(format!("{error:#}")))?;
    Ok(Read { program, warning: layers.warning, settings })
}

fn equipped<P: Program>() -> Command {
    if P::COMMANDS.is_empty() {
        return layers::equip(P::command());
    }
    P::COMMANDS.iter().fold(P::command(), |command, name| command.mut_subcommand(name, layers::equip))
}

/// The command that reads a configuration, if it is one of those that was given.
fn chosen<'a, P: Program>(
    command: &'a Command,
    matches: &'a ArgMatches,
) -> Option<(&'a Command, &'a ArgMatches)> {
    if P::COMMANDS.is_empty() {
        return Some((command, matches));
    }
    let (name, matches) = matches.subcommand()?;
    let command = command.find_subcommand(name).filter(|_| P::COMMANDS.contains(&name))?;
    Some((command, matches))
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
    /// Credentials file of a NATS user, with its token and its key; goes before users and passwords.
    #[arg(long, env = "STEPCAST_NATS_CREDS", value_name = "FILE")]
    pub nats_creds: Option<PathBuf>,
    /// Whom to trust as a NATS server, in PEM: who has a certificate of this authority, and nobody else. Without it, and
    /// with `tls://` addresses, whom this machine trusts.
    #[arg(long, env = "STEPCAST_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
    /// Certificate to show to NATS, in PEM.
    #[arg(long, env = "STEPCAST_NATS_CERT", value_name = "FILE", requires = "nats_key")]
    pub nats_cert: Option<PathBuf>,
    /// The key that belongs to it.
    #[arg(long, env = "STEPCAST_NATS_KEY", value_name = "FILE", requires = "nats_cert")]
    pub nats_key: Option<PathBuf>,
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
        Self {
            nats_url: url.into(),
            nats_user: None,
            nats_password: None,
            nats_creds: None,
            nats_ca: None,
            nats_cert: None,
            nats_key: None,
        }
    }

    /// Whether nothing is to be said without TLS, whatever the server would be content with: who names a certificate
    /// or an authority wants it.
    pub fn wants_tls(&self) -> bool {
        self.nats_ca.is_some() || self.nats_cert.is_some()
    }

    /// Refuses addresses that cannot be read.
    pub fn check(&self) -> anyhow::Result<()> {
        Servers::of(self).map(drop)
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
    /// What it says of single jobs, elsewhere.
    #[command(flatten)]
    pub trace: TraceConfig,
}

impl TelemetryConfig {
    /// Refuses a filter that cannot be read.
    pub fn check(&self) -> anyhow::Result<()> {
        EnvFilter::builder().parse(&self.log).map(drop).context("the log filter cannot be read")
    }
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

#[cfg(test)]
mod tests;
