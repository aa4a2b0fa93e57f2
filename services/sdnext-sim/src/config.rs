//! Everything that can be set about a stand-in server.
//!
//! One flat struct, usable as a section of a command line and, through `Default`, from a test. The defaults are the
//! pace of the recorded server, which ran on two CPU cores.

use std::time::Duration;

use crate::dialect::Dialect;

/// How a stand-in SD.Next behaves.
///
/// Durations are those of a 512×512 picture and grow with the number of pixels; `time_scale` stretches all of them.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Which kind of server to be.
    #[arg(long, env = "SDNEXT_SIM_DIALECT", value_enum, default_value_t)]
    pub dialect: Dialect,
    /// Time of one sampling step of one 512×512 picture.
    #[arg(long, env = "SDNEXT_SIM_STEP_TIME", default_value = "240ms", value_parser = humantime::parse_duration)]
    pub step_time: Duration,
    /// Time to load a model.
    #[arg(long, env = "SDNEXT_SIM_LOAD_TIME", default_value = "1200ms", value_parser = humantime::parse_duration)]
    pub load_time: Duration,
    /// Time to decode one 512×512 picture after its last step.
    #[arg(long, env = "SDNEXT_SIM_DECODE_TIME", default_value = "300ms", value_parser = humantime::parse_duration)]
    pub decode_time: Duration,
    /// Time before the server listens at all; when it is not zero, a model is loaded in view of the clients too.
    #[arg(long, env = "SDNEXT_SIM_START_UP_TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub start_up_time: Duration,
    /// Multiplies every duration: 0.1 is ten times as fast.
    #[arg(long, env = "SDNEXT_SIM_TIME_SCALE", default_value_t = 1.0)]
    pub time_scale: f64,
    /// Models that can be loaded, the first being the one loaded at start.
    #[arg(
        long,
        env = "SDNEXT_SIM_MODELS",
        value_delimiter = ',',
        default_value = "Diffusers/tiny-sd,Diffusers/tiny-sd-b"
    )]
    pub models: Vec<String>,
    /// Require HTTP Basic credentials, given as `user:password`.
    #[arg(long, env = "SDNEXT_SIM_AUTH", hide_env_values = true)]
    pub auth: Option<String>,
    /// Requests a minute for each client address and path, a render costing five; 0 switches the limit off.
    #[arg(long, env = "SDNEXT_SIM_RATE_LIMIT", default_value_t = 300)]
    pub rate_limit: u32,
    /// How previews are made: Approximate, Simple, Full, TAESD or None.
    #[arg(long, env = "SDNEXT_SIM_PREVIEWS", default_value = "Approximate")]
    pub previews: String,
    /// Idle time after which a kept-alive connection is closed.
    #[arg(long, env = "SDNEXT_SIM_KEEP_ALIVE", default_value = "5s", value_parser = humantime::parse_duration)]
    pub keep_alive: Duration,
    /// Requests handled at once; posts waiting for their turn count, so enough of them stall every endpoint.
    #[arg(long, env = "SDNEXT_SIM_THREADS", default_value_t = 40)]
    pub threads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dialect: Dialect::Sdnext,
            step_time: Duration::from_millis(240),
            load_time: Duration::from_millis(1200),
            decode_time: Duration::from_millis(300),
            start_up_time: Duration::ZERO,
            time_scale: 1.0,
            models: vec!["Diffusers/tiny-sd".to_owned(), "Diffusers/tiny-sd-b".to_owned()],
            auth: None,
            rate_limit: 300,
            previews: "Approximate".to_owned(),
            keep_alive: Duration::from_secs(5),
            threads: 40,
        }
    }
}

impl Config {
    /// `duration` at this server's pace.
    pub fn scaled(&self, duration: Duration) -> Duration {
        duration.mul_f64(self.time_scale.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn command_line_and_default_agree() {
        let parsed = <Cli as clap::Parser>::parse_from(["sim"]).config;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Config::default()));
    }
}
