//! Settings by flag, variable and file, on the real programs.

use std::collections::BTreeMap;
use std::path::Path;

use stepcast_tests::process::binary;
use stepcast_tests::wait::within;
use tempfile::TempDir;
use tokio::process::Command;

/// Each program with its command, and its section in a file.
const PROGRAMS: [(&str, &[&str], &str); 4] = [
    ("stepcast-api", &[], "api"),
    ("stepcast-poller", &[], "poller"),
    ("stepcast-gateway", &[], "gateway"),
    ("stepcast", &["up"], "up"),
];
/// What has to be set, where it is known.
const REQUIRED: [(&str, &str); 2] = [("database_url", "sqlite:///x.db"), ("images_url", "file:///x")];
/// Values to try, one after the other, where there is no default to try.
const CANDIDATES: [&str; 4] = ["'x'", "'1h'", "1", "'http://127.0.0.1:1/'"];

/// What a program said.
struct Said {
    code: Option<i32>,
    out: String,
    errors: String,
}

async fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    let mut command = Command::new(binary(program));
    command.args(arguments).envs(variables.iter().copied()).kill_on_drop(true);
    let output = within(&format!("{program} ends"), command.output()).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code(), out: text(&output.stdout), errors: text(&output.stderr) }
}

/// A setting as `--check-config` tells it: value and where it comes from.
type Settings = BTreeMap<String, (String, String)>;

fn settings(said: &Said) -> Settings {
    assert_eq!(said.code, Some(0), "{}", said.errors);
    let lines = said.out.lines().filter(|line| !line.starts_with('['));
    lines
        .map(|line| {
            let mut words = line.split("  ").map(str::trim).filter(|word| !word.is_empty());
            let mut word = || words.next().unwrap_or_default().to_owned();
            (word(), (word(), word()))
        })
        .collect()
}

/// A file and what a program makes of it.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new(text: &str) -> Self {
        let case = Self { folder: tempfile::tempdir().unwrap() };
        case.write(text);
        case
    }

    fn path(&self) -> String {
        self.folder.path().join("x.toml").display().to_string()
    }

    fn write(&self, text: &str) {
        std::fs::write(self.folder.path().join("x.toml"), text).unwrap();
    }

    async fn check(&self, program: &str, command: &[&str], variables: &[(&str, &str)]) -> Said {
        let path = self.path();
        let arguments = [command, &["--check-config", "--config", &path]].concat();
        run(program, &arguments, variables).await
    }
}

/// The long flags of a program that a person can set.
async fn flags(program: &str, command: &[&str]) -> Vec<String> {
    let help = run(program, &[command, &["--help"]].concat(), &[]).await.out;
    let words = help.lines().filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("-h, ").or(line.strip_prefix("-V, ")).unwrap_or(line).strip_prefix("--")
    });
    let own = ["config", "check-config", "help", "version", "json"];
    let names = words.map(|words| words.split([' ', '=']).next().unwrap_or_default());
    names.filter(|name| !own.contains(name)).map(|name| name.replace('-', "_")).collect()
}

#[tokio::test]
async fn every_flag_of_every_service_is_a_setting_of_the_file() {
    for (program, command, section) in PROGRAMS {
        let case = Case::new(&required(program));
        let defaults = settings(&case.check(program, command, &[]).await);
        let flags = flags(program, command).await;
        assert!(flags.len() > 15, "{program}: {flags:?}");
        for flag in &flags {
            let is_companion = flag.strip_suffix("_file").is_some_and(|secret| defaults.contains_key(secret));
            assert!(is_companion || defaults.contains_key(flag), "{program}: {flag} is no setting");
        }
        let mut values: BTreeMap<String, Vec<String>> = defaults
            .iter()
            .map(|(name, (value, from))| (name.clone(), candidates(name, value, from)))
            .collect();
        let told = loop {
            let lines: Vec<(String, String)> =
                values.iter().map(|(name, values)| (name.clone(), values[0].clone())).collect();
            let text: Vec<_> = lines.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
            case.write(&format!("[{section}]\n{}", text.concat()));
            let said = case.check(program, command, &[]).await;
            let Some(line) = place(&said.errors, &case.path()) else { break settings(&said) };
            let (name, value) = &lines[line - 2];
            let left = values.get_mut(name).unwrap();
            left.remove(0);
            assert!(
                !left.is_empty(),
                "{program}: {name} cannot be {value} nor anything else: {}",
                said.errors
            );
        };
        for (index, name) in values.keys().enumerate() {
            assert_eq!(told[name].1, format!("{}:{}", case.path(), index + 2), "{program}: {name}");
        }
    }
}

/// The line of the file that a complaint is about.
fn place(errors: &str, path: &str) -> Option<usize> {
    errors.split_once(&format!("error: {path}:"))?.1.split(':').next()?.parse().ok()
}

/// Values as they stand in a file, the likeliest first.
fn candidates(name: &str, value: &str, from: &str) -> Vec<String> {
    if let Some((_, value)) = REQUIRED.iter().find(|(required, _)| *required == name) {
        return vec![format!("'{value}'")];
    }
    match (value, from) {
        ("true" | "false", _) => vec!["true".to_owned()],
        (_, "not set") => CANDIDATES.map(str::to_owned).to_vec(),
        // Not one of the program's own, where that listens beyond this machine only if told so.
        (value, _) => vec![format!("'{value}'")],
    }
}

/// The settings without which a program does not start.
fn required(program: &str) -> String {
    let known = match program {
        "stepcast-api" => &REQUIRED[..],
        "stepcast-poller" => &REQUIRED[1..],
        _ => &[],
    };
    known.iter().map(|(name, value)| format!("{name} = '{value}'\n")).collect::<Vec<_>>().concat()
}

#[tokio::test]
async fn a_flag_goes_before_a_variable_and_that_before_the_file_and_that_before_a_default() {
    let case =
        Case::new("listen = '127.0.0.1:1'\nlog = 'warn'\nlog_format = 'json'\nnats_url = 'nats://a:1'\n");
    let path = case.path();
    let arguments = ["--check-config", "--listen", "127.0.0.1:3", "--nats-url=nats://c:3"];
    let variables =
        [("STEPCAST_CONFIG", path.as_str()), ("STEPCAST_LISTEN", "127.0.0.1:2"), ("STEPCAST_LOG", "debug")];
    let told = settings(&run("stepcast-gateway", &arguments, &variables).await);
    for (name, value, from) in [
        ("listen", "127.0.0.1:3", "--listen".to_owned()),
        ("log", "debug", "STEPCAST_LOG".to_owned()),
        ("log_format", "json", format!("{path}:3")),
        ("nats_url", "nats://c:3", "--nats-url".to_owned()),
        ("shutdown_grace", "20s", "default".to_owned()),
    ] {
        assert_eq!(told[name], (value.to_owned(), from), "{name}");
    }
}

#[tokio::test]
async fn one_file_serves_all_services_of_a_machine() {
    let case = Case::new(
        "nats_url = 'nats://bus:4222'\n[api]\ndatabase_url = 'sqlite:///x.db'\nimages-url = 'file:///x'\n\
         max_steps = 100\n[poller]\nimages_url = 'file:///x'\nsdnext = ['a=http://a:1', 'b=http://b:2']\n\
         [gateway]\nlisten = '127.0.0.1:8001'\n[up]\nmax_steps = 200\n",
    );
    let mut told = BTreeMap::new();
    for (program, command, section) in PROGRAMS {
        told.insert(section, settings(&case.check(program, command, &[]).await));
    }
    let value = |section: &str, name: &str| told[section][name].0.clone();
    assert!(told.values().all(|settings| settings["nats_url"].0 == "nats://bus:4222"));
    assert_eq!((value("api", "max_steps"), value("up", "max_steps")), ("100".to_owned(), "200".to_owned()));
    assert_eq!(value("poller", "sdnext"), "a=http://a:1,b=http://b:2");
    assert_eq!(value("gateway", "listen"), "127.0.0.1:8001");

    case.write("[api]\nmax_step = 1\n");
    let refused = case.check("stepcast-api", &[], &[]).await;
    assert_eq!(refused.code, Some(2));
    assert!(refused.errors.contains("x.toml:2: unknown setting 'max_step'; did you mean 'max_steps'?"));
    assert_eq!(
        case.check("stepcast-gateway", &[], &[]).await.code,
        Some(0),
        "another's mistake is not its own"
    );
}

#[tokio::test]
async fn what_is_wrong_is_told_in_the_same_words_wherever_it_comes_from() {
    let case = Case::new("gateway_idle = '1'\n");
    let by_file = case.check("stepcast-gateway", &[], &[]).await;
    let by_flag = run("stepcast-gateway", &["--check-config", "--gateway-idle=1"], &[]).await;
    assert_eq!((by_file.code, by_flag.code), (Some(2), Some(2)));
    let words = by_flag.errors.strip_prefix("error: ").unwrap();
    assert_eq!(by_file.errors, format!("error: {}:1: {words}", case.path()));
    case.write("gateway_heartbeat = '0s'");
    let useless = case.check("stepcast-gateway", &[], &[]).await;
    assert_eq!(useless.code, Some(2));
    assert!(useless.errors.contains("--gateway-heartbeat must be more than 0"), "{}", useless.errors);
}

#[tokio::test]
async fn the_settings_are_told_without_a_secret_and_nothing_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (password, database) = (file("nats", "hunter2\n"), folder.path().join("data/x.db"));
    let url = file("database", &format!("sqlite://{}\n", database.display()));
    let images = format!("file://{}/images", folder.path().display());
    let variables = [
        ("STEPCAST_NATS_USER", "bob"),
        ("STEPCAST_NATS_PASSWORD_FILE", password.as_str()),
        ("STEPCAST_DATABASE_URL_FILE", url.as_str()),
        ("STEPCAST_IMAGES_URL", images.as_str()),
        ("STEPCAST_NATS_URL", "nats://bob:hunter2@127.0.0.1:1,nats://bob:hunter2@127.0.0.1:2"),
    ];
    let said = run("stepcast-api", &["--check-config"], &variables).await;
    let told = settings(&said);
    assert_eq!(told["nats_password"], ("***".to_owned(), password.clone()));
    assert_eq!(told["nats_url"].0, "nats://127.0.0.1:1,nats://127.0.0.1:2");
    assert_eq!(told["database_url"], (format!("sqlite://{}", database.display()), url.clone()));
    assert!(!said.out.contains("hunter2") && !said.errors.contains("hunter2"), "{}{}", said.out, said.errors);
    let left: Vec<_> = names(folder.path());
    assert_eq!(left, ["database", "nats"], "nothing was made");
    let both = [&variables[..], &[("STEPCAST_NATS_PASSWORD", "hunter3")]].concat();
    let refused = run("stepcast-api", &["--check-config"], &both).await;
    assert_eq!(refused.code, Some(2));
    assert!(
        refused.errors.contains("cannot be used with") && !refused.errors.contains("hunter"),
        "{}",
        refused.errors
    );
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
