//! `stepcast doctor` over real parts, in health and in sickness.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use stepcast_tests::bus::{Bus, password};
use stepcast_tests::nats::{NatsServer, server_binary};
use stepcast_tests::postgres::Postgres;
use stepcast_tests::process::{Process, binary};
use stepcast_tests::sim::Sim;
use stepcast_tests::wait::within;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;

type Variables = Vec<(&'static str, String)>;

/// What it found, and with what it ended.
struct Found {
    code: Option<i32>,
    report: Value,
}

impl Found {
    /// The first finding of this state whose words contain these.
    fn says(&self, state: &str, words: &str) -> bool {
        let findings = self.report["findings"].as_array().unwrap();
        findings.iter().any(|finding| {
            let told = finding["message"].as_str().unwrap_or_default().contains(words);
            let advised = finding["advice"].as_str().is_some_and(|advice| advice.len() > 10);
            // What is not well comes with what to do.
            finding["state"] == state && told && (advised || matches!(state, "ok" | "skipped"))
        })
    }

    /// Warnings, but for those of the disk that the tests happen to run on.
    fn warnings(&self) -> Vec<&Value> {
        let findings = self.report["findings"].as_array().unwrap().iter();
        let warnings = findings.filter(|finding| finding["state"] == "warning");
        warnings.filter(|finding| !finding["message"].as_str().unwrap().contains("GiB are free")).collect()
    }

    fn assert(&self, code: i32, state: &str, words: &str) {
        assert!(self.code == Some(code) && self.says(state, words), "{state} {words:?}: {:#}", self.report);
    }
}

fn command(arguments: &[&str], variables: &Variables) -> Command {
    let mut command = Command::new(binary("stepcast"));
    command.arg("doctor").args(arguments).envs(variables.iter().cloned()).kill_on_drop(true);
    command.env("STEPCAST_NATS_SERVER", server_binary());
    command
}

async fn found(command: &mut Command) -> Found {
    let output = within("the doctor comes to an end", command.arg("--json").output()).await.unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!out.contains("hunter2") && !errors.contains("hunter2"), "{out}{errors}");
    let report = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{errors}"));
    Found { code: output.status.code(), report }
}

async fn doctor(arguments: &[&str], variables: &Variables) -> Found {
    found(&mut command(arguments, variables)).await
}

/// A folder that nobody has touched since.
fn untouched(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A deployment: NATS with its users, PostgreSQL where there is one, a folder of images and a server.
struct Site {
    bus: Bus,
    postgres: Option<Postgres>,
    sim: Sim,
    folder: TempDir,
}

impl Site {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        Self {
            bus: Bus::single().await.unwrap(),
            postgres: Postgres::start().await.unwrap(),
            sim: Sim::start(Duration::from_millis(20)).await.unwrap(),
            folder,
        }
    }

    /// What a service is told.
    fn variables(&self, user: &'static str) -> Variables {
        let folder = self.folder.path().display();
        let database = self.postgres.as_ref().map(Postgres::url);
        vec![
            ("STEPCAST_NATS_URL", self.bus.url()),
            ("STEPCAST_NATS_USER", user.to_owned()),
            ("STEPCAST_NATS_PASSWORD", password(user)),
            ("STEPCAST_DATABASE_URL", database.unwrap_or_else(|| format!("sqlite://{folder}/x.db"))),
            ("STEPCAST_IMAGES_URL", format!("file://{folder}/images")),
            ("STEPCAST_SDNEXT", format!("gpu={}", self.sim.url())),
        ]
    }
}

#[tokio::test]
async fn a_deployment_that_is_well_is_said_to_be_for_each_service() {
    let site = Site::new().await;
    let early = doctor(&["--as", "api"], &site.variables("api")).await;
    early.assert(0, "warning", "KV_stepcast_inflight do not exist yet");
    assert!(
        early.says("ok", "no schema yet") || early.says("ok", "does not exist yet"),
        "{:#}",
        early.report
    );

    let mut api = Command::new(binary("stepcast-api"));
    api.envs(site.variables("api")).env("STEPCAST_LISTEN", "127.0.0.1:0").env("STEPCAST_LOG_FORMAT", "json");
    let mut api = Process::start("api", &mut api).unwrap();
    let server = format!("http://{}", api.address().await.unwrap());
    for service in ["api", "poller", "gateway"] {
        let well = doctor(&["--as", service], &site.variables(service)).await;
        well.assert(0, "ok", &format!("{service} may do all that is needed"));
        assert!(well.report["well"] == true && well.warnings().is_empty(), "{service}: {:#}", well.report);
        assert_eq!(well.says("ok", "its schema is this release's"), service == "api");
        assert_eq!(well.says("ok", "can be written and read"), service != "gateway");
        assert_eq!(well.says("ok", "sdnext, with"), service == "poller");
    }
    // The user says which service it is.
    let asked = doctor(&["--server", &server], &site.variables("api")).await;
    assert!(asked.says("ok", "api may do all that is needed"), "{:#}", asked.report);
    asked.assert(1, "ok", "is ready");
    assert!(asked.says("wrong", "takes no watchers"), "an api alone has none: {:#}", asked.report);
    assert_eq!(untouched(&site.folder.path().join("images")), [""; 0]);
}

/// A server that says one thing to everybody who connects.
async fn saying(words: &'static str, after: usize) -> (JoinSet<()>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Whoever hangs up has heard enough.
            if after > 0 {
                let _ = stream.read(&mut vec![0; after]).await;
            }
            let _ = stream.write_all(words.as_bytes()).await;
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    (server, address)
}

#[tokio::test]
async fn what_is_wrong_with_nats_is_told_with_what_to_do() {
    let bus = Bus::single().await.unwrap();
    let look = async |variables: Variables| doctor(&["--as", "gateway"], &variables).await;
    let at = |url: &str| vec![("STEPCAST_NATS_URL", url.to_owned())];

    look(at("nats://bob:hunter2@127.0.0.1:1")).await.assert(1, "wrong", "127.0.0.1:1: it cannot be reached");
    let (_old, old) =
        saying("INFO {\"version\":\"2.9.10\",\"jetstream\":true,\"headers\":true}\r\n", 0).await;
    look(at(&old)).await.assert(1, "wrong", "NATS 2.9.10 is too old");
    let (_web, web) = saying("HTTP/1.1 400 Bad Request\r\n\r\n", 0).await;
    look(at(&web)).await.assert(1, "wrong", "no NATS server");
    let (_core, core) = saying("INFO {\"version\":\"2.15.1\",\"headers\":true}\r\n", 0).await;
    look(at(&core)).await.assert(1, "wrong", "which stores nothing");

    let mut wrong = at(&bus.url());
    wrong.extend([
        ("STEPCAST_NATS_USER", "gateway".to_owned()),
        ("STEPCAST_NATS_PASSWORD", "hunter2".to_owned()),
    ]);
    look(wrong).await.assert(1, "wrong", "refuses the log-in");
    let one_of_two = vec![
        ("STEPCAST_NATS_URL", format!("{},nats://127.0.0.1:1", bus.url())),
        ("STEPCAST_NATS_USER", "gateway".to_owned()),
        ("STEPCAST_NATS_PASSWORD", password("gateway")),
    ];
    look(one_of_two).await.assert(0, "warning", "127.0.0.1:1");
}

#[tokio::test]
async fn what_a_user_may_not_do_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("nats.conf");
    let text = r#"authorization { users = [
        { user: gateway, password: "x", permissions: {
            publish: { allow: ["stepcast.v1.rpc.*", "$JS.API.>", "$SYS.REQ.USER.INFO"] }
            subscribe: { allow: ["_INBOX.gateway.>", "stepcast.v1.job.*.*.completed"] } } }
        { user: silent, password: "x", permissions: {
            publish: { allow: ["stepcast.>", "$JS.API.>"] }, subscribe: { allow: [">"] } } }
    ] }"#;
    std::fs::write(&config, text).unwrap();
    let nats = NatsServer::start_with(&["-c", &config.display().to_string()]).await.unwrap();
    let look = async |user: &str| {
        let login = [("STEPCAST_NATS_USER", user.to_owned()), ("STEPCAST_NATS_PASSWORD", "x".to_owned())];
        let url = [("STEPCAST_NATS_URL", nats.url())];
        doctor(&["--as", "gateway"], &url.into_iter().chain(login).collect()).await
    };
    let limited = look("gateway").await;
    limited.assert(1, "wrong", "publish stepcast.v1.demand.*");
    assert!(limited.says("wrong", "subscribe stepcast.v1.job.>") && !limited.says("wrong", "rpc.submit"));
    look("silent").await.assert(0, "warning", "could not be found out");
}

#[tokio::test]
async fn what_is_wrong_with_the_rest_is_told_with_what_to_do() {
    let nats = NatsServer::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let diary = folder.path().join("diary");
    std::fs::write(&diary, "This is a diary, and has been one for a long time already.").unwrap();
    let secret = Sim::with(stepcast_sdnext_sim::Config {
        auth: Some("bob:other".to_owned()),
        ..stepcast_sdnext_sim::Config::default()
    })
    .await
    .unwrap();
    let (_web, web) =
        saying("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", 1024).await;
    let backends = format!(
        "away=http://bob:hunter2@127.0.0.1:1,web=http://{web},secret={}",
        secret.url().replace("http://", "http://bob:hunter2@")
    );
    let variables = vec![
        ("STEPCAST_NATS_URL", nats.url()),
        ("STEPCAST_DATABASE_URL", format!("sqlite://{path}/diary")),
        ("STEPCAST_IMAGES_URL", format!("file://{path}/diary")),
        ("STEPCAST_SDNEXT", backends),
    ];
    let all = doctor(&[], &variables).await;
    all.assert(1, "wrong", "the schema cannot be read");
    all.assert(1, "wrong", "is no folder");
    all.assert(1, "wrong", "away (http://127.0.0.1:1/): SD.Next does not answer");
    all.assert(1, "wrong", "SD.Next answers with HTTP 404");
    all.assert(1, "wrong", "refuses our user name and password");

    let elsewhere = |database: &str, images: &str| {
        vec![
            ("STEPCAST_NATS_URL", nats.url()),
            ("STEPCAST_DATABASE_URL", database.to_owned()),
            ("STEPCAST_IMAGES_URL", images.to_owned()),
        ]
    };
    let away = elsewhere("postgres://bob:hunter2@127.0.0.1:1/x", "file:///proc/self");
    let away = doctor(&["--as", "api"], &away).await;
    away.assert(1, "wrong", "postgres://127.0.0.1:1/x: the database cannot be opened");
    away.assert(1, "wrong", "nothing can be written to /proc/self");
    assert_eq!(untouched(folder.path()), ["diary"]);
}

#[tokio::test]
async fn a_full_disk_is_called_one() {
    let nats = NatsServer::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut full = Command::new("sh");
    // The kernel's signal is ignored, so that writes beyond the limit fail as on a full disk.
    full.args(["-c", r#"trap "" XFSZ; ulimit -f 100; exec "$0" "$@""#]).arg(binary("stepcast"));
    full.args(["doctor", "--as", "api"]).env("STEPCAST_NATS_URL", nats.url()).kill_on_drop(true);
    full.env("STEPCAST_IMAGES_URL", format!("file://{}", folder.path().display()));
    let full = found(&mut full).await;
    full.assert(1, "wrong", "nothing can be written to");
    assert!(full.report.to_string().contains("make room there"), "{:#}", full.report);
    assert!(full.says("skipped", "no address is set (--database-url)"), "{:#}", full.report);
    assert_eq!(untouched(folder.path()), [""; 0], "what was tried is removed");
}

#[tokio::test]
async fn one_machine_is_looked_at_before_and_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let data_dir = data.display().to_string();
    let variables =
        vec![("STEPCAST_DATA_DIR", data_dir.clone()), ("STEPCAST_SDNEXT", format!("gpu={}", sim.url()))];
    let before = doctor(&["--listen", "127.0.0.1:0"], &variables).await;
    before.assert(0, "ok", "does not exist yet");
    before.assert(0, "ok", "is version 2.");
    before.assert(0, "ok", "127.0.0.1:0 is free");
    assert!(!data.exists(), "nothing was made");
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    doctor(&["--listen", &address], &variables).await.assert(1, "wrong", "cannot be listened on");
    let no_server = doctor(&["--listen", "127.0.0.1:0", "--nats-server", "/nowhere"], &variables).await;
    no_server.assert(1, "wrong", "there is no nats-server at /nowhere");

    let mut up = Command::new(binary("stepcast"));
    up.args(["up", "--json", "--listen", "127.0.0.1:0"]).envs(variables.iter().cloned());
    up.env("STEPCAST_NATS_SERVER", server_binary());
    let mut up = Process::start("stepcast up", &mut up).unwrap();
    up.line(|line| serde_json::from_str::<Value>(line).ok().filter(|line| line["event"] == "ready"))
        .await
        .unwrap();
    let running = doctor(&["--listen", &address], &variables).await;
    for words in [
        "a Stepcast runs on it (process",
        "with JetStream",
        "is this release's",
        "is ready",
        "takes watchers",
    ] {
        running.assert(0, "ok", words);
    }
    assert_eq!(running.report["well"], json!(true));

    let plain = within("it ends", command(&[], &variables).output()).await.unwrap();
    let text = String::from_utf8_lossy(&plain.stdout);
    let last = text.lines().last().unwrap_or_default();
    assert!(last == "All is well" || last.starts_with("It works"), "{text}");
    assert!(text.contains("machine") && !text.contains('\x1b'), "{text}");
    let usage = within("it ends", command(&["--as", "nobody"], &variables).output()).await.unwrap();
    assert_eq!(usage.status.code(), Some(2));
}
