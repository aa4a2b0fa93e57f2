//! Encrypted connections to NATS and PostgreSQL, certificates that are not trusted, and log-in by key.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use stepcast_tests::authority::Authority;
use stepcast_tests::client::Http;
use stepcast_tests::nats::NatsServer;
use stepcast_tests::operator::Operator;
use stepcast_tests::postgres::Postgres;
use stepcast_tests::process::{Process, binary};
use stepcast_tests::sim::Sim;
use stepcast_tests::wait::{until, within};
use stepcast_tests::watcher::Watcher;
use tempfile::TempDir;
use tokio::process::Command;

const SERVICES: [&str; 3] = ["stepcast-api", "stepcast-gateway", "stepcast-poller"];

/// The services, each with nothing but a configuration file.
struct Chain {
    api: Process,
    gateway: Process,
    _poller: Process,
}

impl Chain {
    async fn start(config: &Path) -> Self {
        let mut started = Vec::new();
        for service in SERVICES {
            let mut command = Command::new(binary(service));
            command.arg("--config").arg(config);
            let mut process = Process::start(service, &mut command).unwrap();
            process.address().await.unwrap();
            started.push(process);
        }
        let [api, gateway, poller] = started.try_into().unwrap_or_else(|_| panic!("there are three"));
        Self { api, gateway, _poller: poller }
    }

    /// Has a job rendered, and watched from its beginning to its end.
    async fn renders_a_job(&mut self) {
        let http = Http::to(&self.api.address().await.unwrap());
        let mut watcher = Watcher::connect(&self.gateway.address().await.unwrap()).await.unwrap();
        watcher.subscribe(None).await;
        let job = http.submit(&json!({"prompt": "a letter", "steps": 8, "width": 64, "height": 64})).await;
        assert_eq!(watcher.ended(&job).await["data"]["status"], "completed");
        let told = watcher.about(&job);
        assert!(told.iter().any(|told| told.message["type"] == "generation_started"), "{told:?}");
    }
}

/// A file for all services, with what is said of NATS.
fn config(folder: &TempDir, nats: &str, database: &str, sim: &Sim) -> std::path::PathBuf {
    let images = format!("file://{}/images", folder.path().display());
    let text = format!(
        "listen = '127.0.0.1:0'\nlog_format = 'json'\n{nats}\n\
         [api]\ndatabase_url = '{database}'\nimages_url = '{images}'\n\
         [poller]\nimages_url = '{images}'\nsdnext = ['gpu={}']\nposts_per_minute = 0\n",
        sim.url()
    );
    let path = folder.path().join("stepcast.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// A server that asks everybody for a certificate.
async fn nats(authority: &Authority) -> NatsServer {
    let (cert, key) = authority.issue("nats", &["127.0.0.1", "localhost"]).unwrap();
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    NatsServer::start_with(&[
        "--tlsverify",
        &flag("tlscert", &cert),
        &flag("tlskey", &key),
        &flag("tlscacert", &authority.certificate()),
    ])
    .await
    .unwrap()
}

#[tokio::test]
async fn everything_works_over_tls_to_nats_and_to_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ours").unwrap();
    let mut nats = nats(&authority).await;
    let postgres = Postgres::start_with_tls(&authority).await.unwrap();
    let database = postgres.as_ref().map_or_else(
        || format!("sqlite://{}/x.db", folder.path().display()),
        |postgres| {
            let url = postgres.url().replace("127.0.0.1", "localhost");
            format!("{url}?sslmode=verify-full&sslrootcert={}", authority.certificate().display())
        },
    );
    let (cert, key) = authority.issue("client", &[]).unwrap();
    let said = format!(
        "nats_url = '{}'\nnats_ca = '{}'\nnats_cert = '{}'\nnats_key = '{}'\n",
        nats.url().replace("nats://", "tls://"),
        authority.certificate().display(),
        cert.display(),
        key.display(),
    );
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let mut chain = Chain::start(&config(&folder, &said, &database, &sim)).await;
    chain.renders_a_job().await;

    // Both connections of a gateway come back over TLS.
    nats.process().signal(rustix::process::Signal::KILL);
    nats.process().end().await;
    nats.restart().await.unwrap();
    let gateway = Http::to(&chain.gateway.address().await.unwrap());
    until("the gateway is ready again", async || {
        (gateway.get("/health/ready").await.status == 200).then_some(())
    })
    .await;
    chain.renders_a_job().await;
}

/// What a service says that cannot start.
async fn refused(service: &str, variables: &[(&str, String)]) -> String {
    let mut command = Command::new(binary(service));
    command
        .env("STEPCAST_LISTEN", "127.0.0.1:0")
        .env("STEPCAST_IMAGES_URL", "file:///tmp")
        .kill_on_drop(true);
    command.env("STEPCAST_DATABASE_URL", "sqlite::memory:").envs(variables.iter().cloned());
    let output = within(&format!("{service} gives up"), command.output()).await.unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn who_is_not_trusted_is_told_so_at_once_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours").unwrap();
    let other = Authority::new(folder.path(), "other").unwrap();
    let nats = nats(&ours).await;
    let shown = |path: &Path| path.display().to_string();
    let url = ("STEPCAST_NATS_URL", nats.url());
    let (ca, cas) = (shown(&ours.certificate()), shown(&other.certificate()));
    let (cert, key) = other.issue("client", &[]).unwrap();
    let not_trusted = "its certificate is not trusted";
    for service in SERVICES {
        let told = refused(service, &[url.clone(), ("STEPCAST_NATS_CA", cas.clone())]).await;
        assert!(told.contains(not_trusted) && told.contains("--nats-ca"), "{told}");
    }
    let gateway = "stepcast-gateway";
    let by_another = [
        url.clone(),
        ("STEPCAST_NATS_CA", ca.clone()),
        ("STEPCAST_NATS_CERT", shown(&cert)),
        ("STEPCAST_NATS_KEY", shown(&key)),
    ];
    for variables in [&by_another[..], &by_another[..2]] {
        let told = refused(gateway, variables).await;
        assert!(told.contains("does not accept our certificate") && told.contains("--nats-cert"), "{told}");
    }
    let mut swapped = by_another.clone();
    swapped[3].1 = shown(&cert);
    assert!(refused(gateway, &swapped).await.contains("holds no key"));
    swapped[1].1 = "/nowhere.pem".to_owned();
    assert!(refused(gateway, &swapped).await.contains("/nowhere.pem cannot be read"));
    let plain = NatsServer::start().await.unwrap();
    let told = refused(gateway, &[("STEPCAST_NATS_URL", plain.url()), ("STEPCAST_NATS_CA", ca)]).await;
    assert!(told.contains("it does not speak TLS"), "{told}");
}

#[tokio::test]
async fn a_database_that_is_not_trusted_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours").unwrap();
    let other = Authority::new(folder.path(), "other").unwrap();
    let Some(postgres) = Postgres::start_with_tls(&ours).await.unwrap() else { return };
    let nats = NatsServer::start().await.unwrap();
    let localhost = postgres.url().replace("127.0.0.1", "localhost");
    let mode = |url: &str, authority: &Authority| {
        format!("{url}?sslmode=verify-full&sslrootcert={}", authority.certificate().display())
    };
    for (url, why) in [
        (mode(&localhost, &other), "UnknownIssuer"),
        // The certificate is for `localhost`.
        (mode(&postgres.url(), &ours), "certificate not valid for name"),
        (format!("{localhost}?sslmode=disable"), "no encryption"),
    ] {
        let told = refused(
            "stepcast-api",
            &[("STEPCAST_NATS_URL", nats.url()), ("STEPCAST_DATABASE_URL", url.clone())],
        )
        .await;
        assert!(told.contains("the database cannot be opened") && told.contains(why), "{url}: {told}");
    }
}

#[tokio::test]
async fn a_user_may_log_in_with_a_token_and_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let (operator, other) = (Operator::new().unwrap(), Operator::new().unwrap());
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("nats.conf"), &operator.config).unwrap();
    operator.write_credentials(&file("ours.creds")).unwrap();
    other.write_credentials(&file("other.creds")).unwrap();
    let nats = NatsServer::start_with(&["-c", &file("nats.conf").display().to_string()]).await.unwrap();
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let said = format!("nats_url = '{}'\nnats_creds = '{}'\n", nats.url(), file("ours.creds").display());
    let database = format!("sqlite://{}/x.db", folder.path().display());
    Chain::start(&config(&folder, &said, &database, &sim)).await.renders_a_job().await;

    let creds = |name: &str| {
        [("STEPCAST_NATS_URL", nats.url()), ("STEPCAST_NATS_CREDS", file(name).display().to_string())]
    };
    let told = refused("stepcast-gateway", &creds("other.creds")).await;
    assert!(told.contains("refuses the log-in: check --nats-creds"), "{told}");
    let told = refused("stepcast-gateway", &creds("nats.conf")).await;
    assert!(told.contains("holds no credentials of a NATS user"), "{told}");
}
