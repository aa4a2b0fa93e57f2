//! What holds when flags, a file and defaults say different things. Variables are tried on the real programs: they are
//! the process's own.

use std::path::PathBuf;

use clap::Parser as _;
use secrecy::ExposeSecret as _;
use tempfile::TempDir;

use super::*;

#[derive(Debug, clap::Parser)]
#[command(name = "program")]
struct Config {
    #[command(flatten)]
    listen: ListenConfig,
    #[command(flatten)]
    nats: NatsConfig,
    #[command(flatten)]
    telemetry: TelemetryConfig,
    #[command(flatten)]
    origins: OriginConfig,
    /// Has to be set.
    #[arg(long, env = "STEPCAST_TEST_MOST")]
    most: u32,
}

impl Program for Config {
    fn section(_: &ArgMatches) -> &'static str {
        "api"
    }

    fn check(&self) -> anyhow::Result<()> {
        self.listen.check()?;
        self.telemetry.check()?;
        self.nats.check()
    }
}

/// A file, and what a program makes of it.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new(text: &str) -> Self {
        let case = Self { folder: tempfile::tempdir().unwrap() };
        case.write("x.toml", text);
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, arguments: &[&str]) -> Result<Read<Config>, clap::Error> {
        let file = format!("--config={}", self.path("x.toml").display());
        let arguments = ["program", &file].into_iter().chain(arguments.iter().copied());
        read(arguments.map(OsString::from).collect())
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let error = self.read(arguments).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.render().to_string();
        text.replace(&self.folder.path().display().to_string(), "")
    }
}

#[test]
fn a_flag_goes_before_the_file_and_the_file_before_a_default() {
    let case = Case::new("most = 7\nlisten = '127.0.0.1:1'\nshutdown-grace = '3s'\nlog_format = 'json'\n");
    let config = case.read(&["--listen", "127.0.0.1:2"]).unwrap().program;
    assert_eq!(config.listen.listen.port(), 2);
    assert_eq!((config.most, config.listen.shutdown_grace), (7, Duration::from_secs(3)));
    assert!(matches!(config.telemetry.log_format, LogFormat::Json));
    assert_eq!(config.nats.nats_url, "nats://127.0.0.1:4222");
}

#[test]
fn lists_and_switches_have_their_own_kind_of_value() {
    let case = Case::new("most = 1\nallow_anonymous = true\nallow_origin = ['https://a', 'https://b']\n");
    let config = case.read(&[]).unwrap().program;
    assert!(config.listen.allow_anonymous);
    assert_eq!(config.origins.allow_origins, ["https://a", "https://b"]);
    let one = Case::new("most = 1\nallow_anonymous = false\nallow-origin = 'https://a,https://b'");
    let config = one.read(&["--allow-origin=https://c"]).unwrap().program;
    assert!(!config.listen.allow_anonymous);
    assert_eq!(config.origins.allow_origins, ["https://c"], "a flag replaces a list");
}

#[test]
fn a_value_from_the_file_is_refused_in_a_flags_words_and_with_its_place() {
    let refused = |text: &str| Case::new(text).refused(&[]);
    let flag = Config::try_parse_from(["program", "--most=many"]).unwrap_err().render().to_string();
    let words = flag.lines().next().unwrap().strip_prefix("error: ").unwrap();
    assert!(refused("\nmost = 'many'").starts_with(&format!("error: /x.toml:2: {words}")), "{words}");
    assert!(refused("most = 1\nallow_anonymous = 'yes'").contains("x.toml:2: invalid value 'yes'"));
    assert!(refused("most = [1, 2]").contains("x.toml:1: '--most' takes one value"));
    assert!(refused("most = 1\nnats_user = 'bob'").contains("--nats-password"), "what belongs together");
    assert!(refused("").contains("--most <MOST>"), "what has to be set");
    assert!(refused("most = 1\nlisten = '0.0.0.0:1'").contains("--allow-anonymous"), "what would not work");
    assert!(refused("most = 1\nlog = '=='").contains("log filter"));
    let nowhere = read::<Config>(vec!["program".into(), "--config=/nowhere".into()]).unwrap_err().to_string();
    assert!(nowhere.contains("the configuration /nowhere cannot be read"), "{nowhere}");
}

#[test]
fn what_belongs_together_may_come_from_different_places() {
    let case = Case::new("most = 1\nnats_password = 'hunter2'\n");
    let nats = case.read(&["--nats-user=bob"]).unwrap().program.nats;
    assert_eq!(nats.nats_password.unwrap().expose_secret(), "hunter2");
}

#[test]
fn a_secret_may_be_in_a_file_of_its_own() {
    let case = Case::new("most = 1\nnats_user = 'bob'\n");
    case.write("secret", "hunter2\n");
    let flag = format!("--nats-password-file={}", case.path("secret").display());
    let password = |case: &Case, arguments: &[&str]| {
        let nats = case.read(arguments).unwrap().program.nats;
        nats.nats_password.unwrap().expose_secret().to_owned()
    };
    assert_eq!(password(&case, &[&flag]), "hunter2");
    let named =
        format!("most = 1\nnats_user = 'bob'\nnats_password_file = '{}'", case.path("secret").display());
    case.write("x.toml", &named);
    assert_eq!(password(&case, &[]), "hunter2");
    assert_eq!(password(&case, &["--nats-password=other"]), "other", "a flag goes before the file");
    case.write("x.toml", &format!("{named}\nnats_password = 'x'"));
    assert!(case.refused(&[]).contains("'--nats-password' cannot be used with '--nats-password-file'"));
    case.write("x.toml", "most = 1\nnats_user = 'bob'\nnats_password = 'x'");
    assert_eq!(password(&case, &[&flag]), "hunter2", "and so does a flag that names one");
    assert!(case.refused(&["--nats-password-file=/nowhere"]).contains("/nowhere cannot be read"));
}

#[test]
fn the_settings_that_hold_are_told_without_a_secret() {
    let case = Case::new(
        "most = 7\nnats_url = 'nats://bob:hunter2@a:1'\nnats_user = 'bob'\nnats_password = 'x://hunter2'\n[poller]\n",
    );
    let read = case.read(&["--check-config", "--listen=127.0.0.1:2"]).unwrap();
    let told = read.settings.unwrap().replace(&case.folder.path().display().to_string(), "");
    for (name, value, from) in [
        ("most", "7", "/x.toml:1"),
        ("listen", "127.0.0.1:2", "--listen"),
        ("nats_url", "nats://a:1", "/x.toml:2"),
        ("nats_password", "***", "/x.toml:4"),
        ("log_format", "text", "default"),
        ("allow_anonymous", "false", "default"),
        ("allow_origin", "-", "not set"),
        ("[poller]", "is", "for another service, and was not read"),
    ] {
        let line = told.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        let mut words = line.split_whitespace().skip(1);
        assert_eq!(words.next(), Some(value), "{line}");
        assert_eq!(words.collect::<Vec<_>>().join(" "), from, "{line}");
    }
    assert!(!told.contains("hunter2"), "{told}");
    assert!(!told.contains("_file"), "{told}");
    assert!(read.warning.is_some(), "the file can be read by everybody");
}

#[test]
fn every_complaint_keeps_the_secret() {
    for text in [
        "most = 1\nnats_url = 'http://bob:hunter2@a:1'",
        "most = 1\nnats_url = ['nats://bob:hunter2@a:1', 'x']",
        "most = 1\nnats_password = ['hunter2']",
        "most = 1\nnats_passwort = 'hunter2'",
        "most = 1\nnats_password = { value = 'hunter2' }",
        "most = 1\nnats_password = 'hunter2' 1",
    ] {
        let refused = Case::new(text).refused(&[]);
        assert!(!refused.contains("hunter2"), "{refused}");
    }
}

#[test]
fn the_equipped_command_line_is_well_formed() {
    equipped::<Config>().debug_assert();
}
