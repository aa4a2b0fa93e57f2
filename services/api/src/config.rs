//! What the api can be told.

use std::time::Duration;

use clap::ArgMatches;
use secrecy::{ExposeSecret as _, SecretString};
use stepcast_shared::config::{ListenConfig, NatsConfig, OriginConfig, Program, TelemetryConfig};
use url::Url;

use crate::db::dialect_of;

/// Stepcast api: accepts jobs over HTTP, keeps them, and decides who runs what.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "stepcast-api", version)]
pub struct Config {
    #[command(flatten)]
    pub listen: ListenConfig,
    #[command(flatten)]
    pub nats: NatsConfig,
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
    #[command(flatten)]
    pub api: ApiConfig,
}

impl Program for Config {
    fn section(_: &ArgMatches) -> &'static str {
        "api"
    }

    fn check(&self) -> anyhow::Result<()> {
        self.listen.check()?;
        self.nats.check()?;
        self.telemetry.check()?;
        dialect_of(self.api.database_url.expose_secret()).map(drop)
    }
}

/// The part that is the same in every deployment.
#[derive(Clone, Debug, clap::Args)]
pub struct ApiConfig {
    /// Database: `sqlite://FILE` or `postgres://USER:PASSWORD@HOST/NAME`.
    #[arg(long, env = "STEPCAST_DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,
    /// Where images are kept: `file:///FOLDER`, or `s3://BUCKET/PREFIX` where that is built in.
    #[arg(long, env = "STEPCAST_IMAGES_URL", hide_env_values = true)]
    pub images_url: Url,
    #[command(flatten)]
    pub origins: OriginConfig,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub retention: RetentionConfig,
    /// Whether no other process can have pollers at work: then claims found at the start are left over from a crash.
    #[arg(skip)]
    pub sole_process: bool,
}

/// How long things are kept.
#[derive(Clone, Debug, clap::Args)]
pub struct RetentionConfig {
    /// How long an ended job is kept, with its images; best at least the 7 days for which its events are.
    #[arg(long, env = "STEPCAST_RETAIN", default_value = "30d", value_parser = humantime::parse_duration)]
    pub retain: Duration,
    /// How often what is too old is looked for.
    #[arg(long, env = "STEPCAST_SWEEP_EVERY", default_value = "1h", value_parser = humantime::parse_duration)]
    pub sweep_every: Duration,
    /// Age at which an image is removed that no job refers to; longer than an attempt takes to store its images.
    #[arg(long, env = "STEPCAST_UNREFERENCED_AFTER", default_value = "1h", value_parser = humantime::parse_duration)]
    pub unreferenced_after: Duration,
}

/// What a request may ask for.
#[derive(Clone, Debug, clap::Args)]
pub struct Limits {
    /// Most sampling steps of a job.
    #[arg(long, env = "STEPCAST_MAX_STEPS", default_value_t = 500)]
    pub max_steps: u32,
    /// Longest side of an image, in pixels.
    #[arg(long, env = "STEPCAST_MAX_SIDE", default_value_t = 4096)]
    pub max_side: u32,
    /// Most pixels of an image.
    #[arg(long, env = "STEPCAST_MAX_PIXELS", default_value_t = 4096 * 4096)]
    pub max_pixels: u64,
    /// Most images of a job (`batch_size` times `n_iter`).
    #[arg(long, env = "STEPCAST_MAX_IMAGES", default_value_t = 64)]
    pub max_images: u32,
    /// Longest prompt, in bytes.
    #[arg(long, env = "STEPCAST_MAX_PROMPT_BYTES", default_value_t = 32 * 1024)]
    pub max_prompt_bytes: usize,
    /// Most input images of a job.
    #[arg(long, env = "STEPCAST_MAX_INPUTS", default_value_t = 16)]
    pub max_inputs: usize,
    /// Largest body of a request, in bytes.
    #[arg(long, env = "STEPCAST_MAX_BODY_BYTES", default_value_t = 32 * 1024 * 1024)]
    pub max_body_bytes: usize,
    /// Most waiting jobs; more are refused with 429.
    #[arg(long, env = "STEPCAST_MAX_WAITING", default_value_t = 10_000)]
    pub max_waiting: i64,
    /// Longest time that a job may wait in all before it ends as `deadline`.
    #[arg(long, env = "STEPCAST_MAX_QUEUE_TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    pub max_queue_time: Duration,
    /// Longest time that a job is passed over for others whose checkpoint is loaded.
    #[arg(long, env = "STEPCAST_MAX_AFFINITY_WAIT", default_value = "60s", value_parser = humantime::parse_duration)]
    pub max_affinity_wait: Duration,
    /// Longest time that a blocking request may wait.
    #[arg(long, env = "STEPCAST_MAX_WAIT", default_value = "10m", value_parser = humantime::parse_duration)]
    pub max_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            limits: Limits,
        }
        <Alone as clap::Parser>::parse_from(["limits"]).limits
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Config::command().debug_assert();
    }
}
