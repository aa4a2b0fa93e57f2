//! The command line: every flag, its variable and its help. What is parsed here is valid.

use std::path::PathBuf;

use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};
use secrecy::SecretString;
use serde_json::{Map, Value};
use stepcast_poller::BackendSpec;
use stepcast_shared::config::{ListenConfig, Program};
use stepcast_shared::ids::{BackendId, JobId, Pool};
use stepcast_shared::messages::Status;
use url::Url;

use crate::sections::Sections;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something failed
  2  the command line cannot be understood
  3  a watched job failed
  4  a watched job was cancelled
  5  the server cannot be reached";

const ABOUT_UP: &str = "\
Runs the API, the WebSocket gateway, the poller and a NATS server on this machine, with everything it keeps in one
folder. It has all settings of these services; --help lists them.";

const ABOUT_DOCTOR: &str = "\
Looks at NATS, the database, the images' store and the SD.Next servers with the settings that a start would have, and says
what to do about what is not well. It changes nothing. Without --nats-url or --as it looks at this machine, where
`stepcast up` runs, or is to. It ends with 0 if nothing is wrong, with 1 otherwise; warnings alone are not wrong.";

/// A durable queue with live progress in front of SD.Next servers.
#[derive(Debug, Parser)]
#[command(name = "stepcast", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    /// Say it in JSON, for scripts.
    #[arg(long, env = "STEPCAST_JSON", global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Program for Cli {
    const COMMANDS: &'static [&'static str] = &["up", "doctor"];

    fn section(matches: &ArgMatches) -> &'static str {
        // Of `doctor` alone.
        let Ok(service) = matches.try_get_one::<Service>("service") else { return "up" };
        let user = || matches.get_one::<String>("nats_user").and_then(|user| Service::of_user(user));
        service.copied().or_else(user).map_or("up", Service::name)
    }

    fn check(&self) -> anyhow::Result<()> {
        match &self.command {
            Command::Up(up) => up.check(),
            Command::Doctor(doctor) => doctor.up.check_settings(),
            _ => Ok(()),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything on this machine.
    #[command(long_about = ABOUT_UP)]
    Up(Box<Up>),
    /// Look at everything that Stepcast rests on, and say what to do about what is not well.
    #[command(long_about = ABOUT_DOCTOR)]
    Doctor(Box<Doctor>),
    /// Submit a job.
    Submit(Box<Submit>),
    /// Watch jobs until they end.
    Watch(Watch),
    /// List jobs, newest first.
    Jobs(Jobs),
    /// Show one job.
    Get(Get),
    /// Cancel jobs.
    Cancel(Cancel),
    /// Show what the backends are doing, give one a rest, or empty one.
    Backends(Backends),
    /// Write the contracts with other programs: JSON Schema, AsyncAPI and OpenAPI.
    Contracts(Contracts),
    /// Become a NATS server that ends with its parent.
    #[command(hide = true)]
    NatsChild(NatsChild),
}

/// `contracts`.
#[derive(Debug, Args)]
pub struct Contracts {
    /// The folder to write them into.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// `backends`.
#[derive(Debug, Args)]
pub struct Backends {
    #[command(flatten)]
    pub server: Server,
    /// Give this backend no more work; what it renders is finished.
    #[arg(long, value_name = "ID", conflicts_with_all = ["resume", "drain"])]
    pub pause: Option<BackendId>,
    /// As `--pause`, and wait until it is empty and can be shut down.
    #[arg(long, value_name = "ID", conflicts_with = "resume")]
    pub drain: Option<BackendId>,
    /// Do not wait until the drained backend is empty.
    #[arg(long, requires = "drain", conflicts_with_all = ["pause", "resume"])]
    pub no_wait: bool,
    /// Give this backend work again.
    #[arg(long, value_name = "ID")]
    pub resume: Option<BackendId>,
}

/// `up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Bring two simulated backends, and leave SD.Next servers alone.
    #[arg(long, env = "STEPCAST_DEMO")]
    pub demo: bool,
    /// Where to listen, and when to stop waiting.
    #[command(flatten)]
    pub listen: ListenConfig,
    /// Where everything is kept [default: `$XDG_DATA_HOME/stepcast` or `~/.local/share/stepcast`].
    #[arg(long, env = "STEPCAST_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// SD.Next server, as `URL` or `ID=URL`; may be given several times. `user:password@` in the URL logs in.
    #[arg(
        long,
        env = "STEPCAST_SDNEXT",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7860",
        hide_env_values = true
    )]
    pub sdnext: Vec<BackendSpec>,
    /// A running NATS server to use instead of starting one; `user:password@` or `token@` in the URL logs in.
    #[arg(long, env = "STEPCAST_NATS_URL", value_name = "URL", hide_env_values = true)]
    pub nats_url: Option<String>,
    /// User name for it.
    #[arg(long, env = "STEPCAST_NATS_USER", requires_all = ["nats_url", "nats_password"])]
    pub nats_user: Option<String>,
    /// Password for it.
    #[arg(
        long,
        env = "STEPCAST_NATS_PASSWORD",
        hide_env_values = true,
        requires_all = ["nats_url", "nats_user"]
    )]
    pub nats_password: Option<SecretString>,
    /// The `nats-server` to start [default: the one on PATH, or in `.venv/bin`].
    #[arg(long, env = "STEPCAST_NATS_SERVER", value_name = "PATH")]
    pub nats_server: Option<PathBuf>,
    /// Database, `sqlite://FILE` or `postgres://…` [default: a file in the data directory].
    #[arg(long, env = "STEPCAST_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<SecretString>,
    /// Where images are kept, `file:///FOLDER`, or `s3://BUCKET/PREFIX` where that is built in [default: a folder in the data directory].
    #[arg(long, env = "STEPCAST_IMAGES_URL", value_name = "URL", hide_env_values = true)]
    pub images_url: Option<Url>,
    /// What to log to standard error [default: `warn` on a terminal, otherwise `info`].
    #[arg(long, env = "STEPCAST_LOG")]
    pub log: Option<String>,
    /// What the environment says of the machine.
    #[command(flatten)]
    pub surroundings: Surroundings,
    /// What the services can be told besides; behind everything else, as it leaves out what is there already.
    #[command(flatten)]
    pub sections: Sections,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Look as this service alone does, with its section of the configuration file and what it needs of NATS; unless
    /// said, as the one whose name --nats-user has.
    #[arg(long = "as", value_name = "SERVICE")]
    pub service: Option<Service>,
    /// A Stepcast that runs, to be asked how it is.
    #[arg(long, env = "STEPCAST_SERVER", value_name = "URL", value_parser = parse_server, hide_env_values = true)]
    pub server: Option<Url>,
    /// What a start would be told.
    #[command(flatten)]
    pub up: Up,
}

/// A service that can be looked at by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Service {
    /// Accepts jobs.
    Api,
    /// Runs them.
    Poller,
    /// Tells of them.
    Gateway,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Api, Self::Poller, Self::Gateway];

    /// The service that logs in as this user of `deploy/nats/users.conf`.
    pub fn of_user(user: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name() == user)
    }

    /// Its name: that of its user on NATS, and of its section in a file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Poller => "poller",
            Self::Gateway => "gateway",
        }
    }
}

/// What the environment says of the machine; no flags for people.
#[derive(Debug, Args)]
pub struct Surroundings {
    #[arg(long, env = "XDG_DATA_HOME", hide = true)]
    pub xdg_data_home: Option<PathBuf>,
    #[arg(long, env = "PATH", hide = true)]
    pub search_path: Option<std::ffi::OsString>,
}

/// Which Stepcast to talk to.
#[derive(Clone, Debug, Args)]
pub struct Server {
    /// The Stepcast to talk to.
    #[arg(long, env = "STEPCAST_SERVER", value_name = "URL", default_value = "http://127.0.0.1:8000",
        value_parser = parse_server, hide_env_values = true)]
    pub server: Url,
}

/// `submit`.
#[derive(Debug, Args)]
pub struct Submit {
    /// What to paint.
    pub prompt: String,
    /// What to leave out.
    #[arg(long, value_name = "PROMPT")]
    pub negative: Option<String>,
    /// Sampling steps [default: 20].
    #[arg(long)]
    pub steps: Option<u32>,
    /// Pixels [default: 512].
    #[arg(long)]
    pub width: Option<u32>,
    /// Pixels [default: 512].
    #[arg(long)]
    pub height: Option<u32>,
    /// -1 lets the server choose [default: -1].
    #[arg(long, allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// How closely to follow the prompt [default: 7].
    #[arg(long)]
    pub cfg_scale: Option<f64>,
    /// Sampler, by SD.Next's name.
    #[arg(long)]
    pub sampler: Option<String>,
    /// Images made at once [default: 1].
    #[arg(long)]
    pub batch_size: Option<u32>,
    /// Batches made one after another [default: 1].
    #[arg(long)]
    pub n_iter: Option<u32>,
    /// Checkpoint, by SD.Next's title.
    #[arg(long)]
    pub model: Option<String>,
    /// How urgent it is.
    #[arg(long)]
    pub priority: Option<PriorityWord>,
    /// Which backends may take it.
    #[arg(long)]
    pub pool: Option<Pool>,
    /// The one backend that may take it.
    #[arg(long)]
    pub backend: Option<BackendId>,
    /// A mark of your own, to filter by.
    #[arg(long)]
    pub label: Option<String>,
    /// An image to begin from; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub init_image: Vec<PathBuf>,
    /// How much to change that image, 0 to 1.
    #[arg(long, requires = "init_image")]
    pub denoising_strength: Option<f64>,
    /// Whatever else SD.Next understands, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    pub sdnext: Option<Map<String, Value>>,
    /// The same key with the same job gives the first answer again for a day.
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Watch it until it ends.
    #[arg(long)]
    pub watch: bool,
    /// Save its images there once it has ended.
    #[arg(long, value_name = "DIR", requires = "watch")]
    pub out: Option<PathBuf>,
    /// Which Stepcast.
    #[command(flatten)]
    pub server: Server,
}

/// How urgent a job is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PriorityWord {
    /// After everything else.
    Low,
    /// In turn.
    Normal,
    /// Before everything else.
    High,
}

/// `watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// Jobs to watch, by id.
    #[arg(required_unless_present = "all", value_name = "JOB")]
    pub jobs: Vec<JobId>,
    /// Watch all jobs, until Ctrl-C.
    #[arg(long, conflicts_with = "jobs")]
    pub all: bool,
    /// Which Stepcast.
    #[command(flatten)]
    pub server: Server,
}

/// `jobs`.
#[derive(Debug, Args)]
pub struct Jobs {
    /// Only jobs in this state: pending, running, completed, failed or cancelled.
    #[arg(long, value_parser = parse_status)]
    pub status: Option<Status>,
    /// Only jobs with this mark.
    #[arg(long)]
    pub label: Option<String>,
    /// At most so many, 1 to 500.
    #[arg(long, default_value_t = 20)]
    pub limit: u32,
    /// Only jobs that wait or run, in the order in which they will be served.
    #[arg(long, conflicts_with_all = ["status", "label", "limit"])]
    pub active: bool,
    /// Which Stepcast.
    #[command(flatten)]
    pub server: Server,
}

/// `get`.
#[derive(Debug, Args)]
pub struct Get {
    /// The job's id.
    pub job: JobId,
    /// Which Stepcast.
    #[command(flatten)]
    pub server: Server,
}

/// `cancel`.
#[derive(Debug, Args)]
pub struct Cancel {
    /// Jobs to cancel, by id.
    #[arg(required = true, value_name = "JOB")]
    pub jobs: Vec<JobId>,
    /// Which Stepcast.
    #[command(flatten)]
    pub server: Server,
}

/// `nats-child`.
#[derive(Debug, Args)]
pub struct NatsChild {
    /// The process to end with.
    #[arg(long)]
    pub parent: i32,
    /// What to become.
    pub program: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
}

/// An address, with or without `http://`, made to end in `/` so that paths can be joined to it.
fn parse_server(text: &str) -> Result<Url, String> {
    let text = text.trim();
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let mut url = Url::parse(&full).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("this is not an http:// or https:// address".to_owned());
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

fn parse_object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("this is JSON, but not an object".to_owned()),
        Err(error) => Err(format!("this is not JSON: {error}")),
    }
}

fn parse_status(word: &str) -> Result<Status, String> {
    word.parse().map_err(|()| "one of pending, running, completed, failed, cancelled".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_server_may_be_named_without_a_scheme() {
        assert_eq!(parse_server("localhost:9000").unwrap().as_str(), "http://localhost:9000/");
        assert_eq!(parse_server("https://a.b/c").unwrap().as_str(), "https://a.b/c/");
        for wrong in ["", "ftp://x", "http://"] {
            assert!(parse_server(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn watching_nothing_is_a_usage_error() {
        let error = Cli::try_parse_from(["stepcast", "watch"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(Cli::try_parse_from(["stepcast", "watch", "--all"]).is_ok());
        assert!(Cli::try_parse_from(["stepcast", "watch", "not-an-id"]).is_err());
    }

    #[test]
    fn one_thing_is_asked_of_one_backend() {
        let parses =
            |arguments: &[&str]| Cli::try_parse_from([&["stepcast", "backends"], arguments].concat()).is_ok();
        assert!(parses(&["--drain", "gpu", "--no-wait"]));
        assert!(
            !parses(&["--drain", "gpu", "--resume", "gpu"]) && !parses(&["--drain", "a", "--pause", "b"])
        );
        assert!(!parses(&["--pause", "gpu", "--no-wait"]) && !parses(&["--drain", "not an id"]));
    }

    #[test]
    fn what_is_passed_on_to_sdnext_must_be_an_object() {
        assert!(Cli::try_parse_from(["stepcast", "submit", "x", "--sdnext", "[1]"]).is_err());
        assert!(Cli::try_parse_from(["stepcast", "submit", "x", "--sdnext", r#"{"clip_skip":2}"#]).is_ok());
    }

    #[test]
    fn several_servers_can_be_named() {
        let cli = Cli::parse_from(["stepcast", "up", "--sdnext", "a=http://x:1", "--sdnext", "b=http://y:2"]);
        let Command::Up(up) = cli.command else { panic!("this is `up`") };
        let ids: Vec<_> = up.sdnext.iter().map(|spec| spec.id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
    }
}
