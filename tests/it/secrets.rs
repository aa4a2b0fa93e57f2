//! What logs somebody in is printed nowhere: not in help, not in a complaint, not in a log, however much is logged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use stepcast_sdnext_sim::Fault;
use stepcast_tests::client::Http;
use stepcast_tests::nats::NatsServer;
use stepcast_tests::postgres::Postgres;
use stepcast_tests::process::{Process, binary};
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::{until, within};
use tokio::process::{Child, Command};

const SECRET: &str = "hunter2";
/// `bob:hunter2` as Basic authentication sends it.
const ENCODED: &str = "Ym9iOmh1bnRlcjI";

const SERVICES: [&str; 3] = ["stepcast-api", "stepcast-gateway", "stepcast-poller"];

/// Variables that may hold a secret, each with one.
fn secrets() -> Vec<(&'static str, &'static str)> {
    vec![
        ("STEPCAST_NATS_URL", "nats://bob:hunter2@127.0.0.1:4222"),
        ("STEPCAST_NATS_USER", "bob"),
        ("STEPCAST_NATS_PASSWORD", "hunter2"),
        ("STEPCAST_DATABASE_URL", "postgres://bob:hunter2@127.0.0.1/stepcast"),
        ("STEPCAST_IMAGES_URL", "s3://bob:hunter2@bucket"),
        ("STEPCAST_SDNEXT", "gpu=http://bob:hunter2@127.0.0.1:7860"),
        ("STEPCAST_SERVER", "http://bob:hunter2@127.0.0.1:8000"),
    ]
}

/// All that a program says until it ends.
async fn said(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(binary(program));
    command.args(arguments).envs(variables.iter().copied()).kill_on_drop(true);
    let output = within(&format!("{program} ends"), command.output()).await.unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn assert_kept(text: &str) {
    assert!(!text.contains(SECRET) && !text.contains(ENCODED), "{text}");
}

#[tokio::test]
async fn help_names_what_can_be_set_and_no_secret_that_is_set() {
    let own = ["up", "doctor", "submit", "watch", "jobs", "get", "cancel", "backends"]
        .map(|command| ("stepcast", command));
    for (program, command) in SERVICES.map(|service| (service, "")).into_iter().chain(own) {
        let arguments: Vec<&str> = [command, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        let help = said(program, &arguments, &secrets()).await;
        assert!(help.contains("[env: STEPCAST_"), "{help}");
        assert_kept(&help);
    }
}

/// A start that fails: what runs, with which variables, and what is said of it.
struct Failing {
    program: &'static str,
    arguments: &'static [&'static str],
    variables: Vec<(&'static str, String)>,
    told: &'static str,
}

impl Failing {
    fn new(program: &'static str, told: &'static str, variables: &[(&'static str, &str)]) -> Self {
        let defaults = [
            ("STEPCAST_LISTEN", "127.0.0.1:0"),
            ("STEPCAST_DATABASE_URL", "sqlite::memory:"),
            ("STEPCAST_IMAGES_URL", "s3://bucket"),
        ];
        let variables = defaults.iter().chain(variables).map(|(name, value)| (*name, (*value).to_owned()));
        Self { program, arguments: &[], variables: variables.collect(), told }
    }

    async fn check(&self) {
        let variables: Vec<_> = self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let text = said(self.program, self.arguments, &variables).await;
        assert!(text.contains(self.told), "{} says {:?}: {text}", self.program, self.told);
        assert_kept(&text);
    }
}

#[tokio::test]
async fn a_start_that_fails_names_the_address_and_not_the_password() {
    let nats = NatsServer::start().await.unwrap();
    let url = nats.url();
    let mut cases = vec![
        Failing::new(
            "stepcast-api",
            "begins with neither sqlite:// nor postgres://",
            &[("STEPCAST_NATS_URL", &url), ("STEPCAST_DATABASE_URL", "mysql://bob:hunter2@db/stepcast")],
        ),
        Failing::new(
            "stepcast-api",
            "the database cannot be opened",
            &[
                ("STEPCAST_NATS_URL", &url),
                ("STEPCAST_DATABASE_URL", "postgres://bob:hunter2@127.0.0.1:1/stepcast"),
            ],
        ),
        Failing::new(
            "stepcast-api",
            "the database cannot be opened",
            &[
                ("STEPCAST_NATS_URL", &url),
                ("STEPCAST_DATABASE_URL", "postgres://bob:hunter2@db:port/stepcast"),
            ],
        ),
        Failing::new(
            "stepcast-poller",
            "AWS_SECRET_ACCESS_KEY",
            &[("STEPCAST_NATS_URL", &url), ("STEPCAST_IMAGES_URL", "s3://bob:hunter2@bucket")],
        ),
        Failing::new(
            "stepcast-poller",
            "invalid value 'bucket'",
            &[("STEPCAST_IMAGES_URL", "//bob:hunter2@bucket")],
        ),
        Failing::new(
            "stepcast-poller",
            "invalid value 'gpu=ftp://10.0.0.1'",
            &[("STEPCAST_SDNEXT", "gpu=ftp://bob:hunter2@10.0.0.1")],
        ),
    ];
    for service in SERVICES {
        for (address, told) in [
            ("nats://bob:hunter2@10.0.0.1:port", "nats://10.0.0.1:port cannot be read"),
            ("http://bob:hunter2@10.0.0.1", "http://10.0.0.1 cannot be used"),
            ("nats://bob:hunter2@127.0.0.1:1", "no NATS server answers at nats://127.0.0.1:1"),
        ] {
            cases.push(Failing::new(service, told, &[("STEPCAST_NATS_URL", address)]));
        }
    }
    for (command, address, told) in [
        (&["jobs"][..], "http://bob:hunter2@127.0.0.1:1", "no Stepcast answers at http://127.0.0.1:1/"),
        (&["watch", "--all"], "http://bob:hunter2@127.0.0.1:1", "127.0.0.1:1/"),
        (&["jobs"], "ftp://bob:hunter2@10.0.0.1", "invalid value 'ftp://10.0.0.1'"),
    ] {
        let failing = Failing::new("stepcast", told, &[("STEPCAST_SERVER", address)]);
        cases.push(Failing { arguments: command, ..failing });
    }
    join_all(cases.iter().map(Failing::check)).await;
}

#[tokio::test]
async fn a_refused_log_in_is_told_at_once_and_without_the_password() {
    let nats = NatsServer::start_with(&["--user", "bob", "--pass", "other"]).await.unwrap();
    let url = nats.url().replace("nats://", "nats://bob:hunter2@");
    let cases =
        SERVICES.map(|service| Failing::new(service, "refuses the log-in", &[("STEPCAST_NATS_URL", &url)]));
    join_all(cases.iter().map(Failing::check)).await;
}

/// A service whose every word is kept.
struct Wordy {
    _child: Child,
    log: PathBuf,
}

impl Wordy {
    fn start(service: &str, folder: &Path, variables: &[(&str, String)]) -> Self {
        let log = folder.join(format!("{service}.log"));
        let words = std::fs::File::create(&log).unwrap();
        let mut command = Command::new(binary(service));
        command.envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
        command.env("STEPCAST_LISTEN", "127.0.0.1:0").env("STEPCAST_LOG_FORMAT", "json");
        command.env("STEPCAST_LOG", "trace").kill_on_drop(true);
        command.stdout(words.try_clone().unwrap()).stderr(words);
        Self { _child: command.spawn().unwrap(), log }
    }

    fn words(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    async fn address(&self) -> String {
        until("it listens", async || {
            self.words().lines().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                let ours = line["target"].as_str()?.starts_with("stepcast");
                line["fields"]["address"].as_str().filter(|_| ours).map(str::to_owned)
            })
        })
        .await
    }
}

#[tokio::test]
async fn who_logs_in_by_address_is_let_in_and_logged_nowhere() {
    let nats = NatsServer::start_with(&["--user", "bob", "--pass", SECRET]).await.unwrap();
    let postgres = Postgres::start().await.unwrap();
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let database = postgres.as_ref().map_or_else(
        || format!("sqlite://{}/stepcast.db", path.display()),
        |postgres| postgres.url().replace("stepcast@", "stepcast:hunter2@"),
    );
    let variables = [
        ("STEPCAST_NATS_URL", nats.url().replace("nats://", "nats://bob:hunter2@")),
        ("STEPCAST_DATABASE_URL", database),
        ("STEPCAST_IMAGES_URL", format!("file://{}/images", path.display())),
        ("STEPCAST_SDNEXT", format!("gpu={}", sim.url().replace("http://", "http://bob:hunter2@"))),
    ];
    let services = SERVICES.map(|service| Wordy::start(service, path, &variables));
    let http = Http::to(&services[0].address().await);
    let id = http.submit(&json!({"prompt": "secret", "steps": 2, "width": 64, "height": 64})).await;
    assert_eq!(http.ended(&id).await["status"], "completed");
    for service in &services {
        service.address().await;
        assert_kept(&service.words());
    }
}

#[tokio::test]
async fn a_prompt_stands_in_no_line_whatever_becomes_of_its_job() {
    const PROMPT: &str = "a lighthouse that nobody may read of";
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let job = |more: Value| {
        let mut body = json!({"prompt": PROMPT, "steps": 2, "width": 64, "height": 64, "max_attempts": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for fault in [None, Some(Fault::Http500), Some(Fault::HttpStatus(422)), Some(Fault::DropConnection)] {
        if let Some(fault) = fault {
            sim.handle.arm(fault, 1);
        }
        http.ended(&http.submit(&job(json!({}))).await).await;
    }
    http.ended(&http.submit(&job(json!({"sampler_name": "NoSuchSampler"}))).await).await;
    let refused = http.post("/generation/queue-generation", &job(json!({"steps": 0}))).await;
    assert_eq!(refused.status, 422, "{}", refused.json);
    let mut watcher = stack.watcher().await.unwrap();
    watcher.send(&json!({"type": "submit", "job": job(json!({"no_such_field": PROMPT}))})).await;
    watcher.wait("the refusal", |message| message["type"] == "error").await;
    for service in [&stack.api, &stack.gateway, &stack.poller] {
        let said = service.output();
        assert!(said.contains("INFO") && !said.contains("lighthouse"), "{said}");
    }
}

#[tokio::test]
async fn one_process_for_everything_keeps_them_too() {
    let nats = NatsServer::start_with(&["--user", "bob", "--pass", SECRET]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("stepcast"));
    command.args(["up", "--demo", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path());
    command.env("STEPCAST_NATS_URL", nats.url().replace("nats://", "nats://bob:hunter2@"));
    let mut up = Process::start("stepcast up", &mut command).unwrap();
    up.line(|line| line.contains("NATS").then_some(())).await.unwrap();
    assert_kept(&up.output());
}
