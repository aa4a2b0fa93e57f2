//! Three NATS servers: everything is kept three times, and the loss of one is outlasted.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::json;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::{nats, subjects};
use stepcast_tests::client::Http;
use stepcast_tests::cluster::{NatsCluster, standing};
use stepcast_tests::nats::NatsServer;
use stepcast_tests::process::Process;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::service;
use stepcast_tests::wait::{until, within};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::recorded;

const STREAMS: [&str; 5] = [
    subjects::EVENTS_STREAM,
    subjects::BACKENDS_STREAM,
    subjects::DEAD_STREAM,
    "KV_stepcast_leases",
    "KV_stepcast_inflight",
];

async fn connect(url: String) -> async_nats::Client {
    nats::connect("test", &NatsConfig::at(url)).await.unwrap()
}

async fn everything_is_kept_three_times(client: &async_nats::Client) {
    for stream in STREAMS {
        until(&format!("{stream} has three copies"), async || {
            standing(client, stream).await.ok().flatten().filter(|(copies, _)| *copies == 3)
        })
        .await;
    }
}

#[tokio::test]
async fn services_that_start_with_the_cluster_make_everything_three_times() {
    let mut cluster = NatsCluster::reserve().unwrap();
    // Two servers can elect a leader, and have no place for three copies: the third is on its way.
    cluster.start_server(0).await.unwrap();
    cluster.start_server(1).await.unwrap();
    let clients = join_all((0..4).map(|_| connect(cluster.url()))).await;
    let preparing = join_all(clients.iter().map(nats::prepare));
    let third = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.start_server(2).await.unwrap();
    };
    let (prepared, ()) = tokio::join!(within("all are prepared", preparing), third);
    for outcome in prepared {
        outcome.unwrap();
    }
    everything_is_kept_three_times(&clients[0]).await;
    nats::prepare(&clients[1]).await.unwrap();
}

#[tokio::test]
async fn what_was_made_with_one_copy_is_raised_to_three() {
    let cluster = NatsCluster::start().await.unwrap();
    let client = connect(cluster.url()).await;
    let context = nats::prepare(&client).await.unwrap();
    for stream in STREAMS {
        let mut config = context.get_stream(stream).await.unwrap().cached_info().config.clone();
        config.num_replicas = 1;
        context.update_stream(config).await.unwrap();
    }
    nats::prepare(&client).await.unwrap();
    everything_is_kept_three_times(&client).await;
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_in_a_sentence() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let old_server = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let info = json!({"server_id": "old", "server_name": "old", "version": "2.10.29", "go": "go1", "host": "127.0.0.1",
            "port": 4222, "headers": true, "max_payload": 1_048_576, "proto": 1, "client_id": 1, "jetstream": true});
        socket.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
        let mut bytes = [0; 4096];
        while let Ok(1..) = socket.read(&mut bytes).await {
            if socket.write_all(b"PONG\r\n").await.is_err() {
                return;
            }
        }
    };
    let refused = async {
        let client = connect(url).await;
        nats::prepare(&client).await.unwrap_err().to_string()
    };
    let refused = tokio::select! {
        refused = within("the server is looked at", refused) => refused,
        () = old_server => panic!("the server is looked at before it is left"),
    };
    assert_eq!(refused, "NATS 2.10.29 is too old for Stepcast, which needs 2.14 or later");
}

#[tokio::test]
async fn one_server_alone_keeps_one_copy() {
    let server = NatsServer::start().await.unwrap();
    let client = connect(server.url()).await;
    let context = nats::prepare(&client).await.unwrap();
    let stream = context.get_stream(subjects::EVENTS_STREAM).await.unwrap();
    assert_eq!(stream.cached_info().config.num_replicas, 1);
}

/// An api, a poller and their clients on a cluster.
struct Services {
    http: Http,
    _api: Process,
    _poller: Process,
    _folder: TempDir,
}

impl Services {
    async fn start(cluster: &NatsCluster, sim: &Sim) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (path, url) = (folder.path().display(), cluster.url());
        let mut api = service("stepcast-api", &url);
        api.env("STEPCAST_DATABASE_URL", format!("sqlite://{path}/stepcast.db"));
        api.env("STEPCAST_IMAGES_URL", format!("file://{path}/images"));
        let mut poller = service("stepcast-poller", &url);
        poller.env("STEPCAST_SDNEXT", format!("gpu={}", sim.url())).env("STEPCAST_POSTS_PER_MINUTE", "0");
        poller.env("STEPCAST_IMAGES_URL", format!("file://{path}/images"));
        let mut api = Process::start("api", &mut api).unwrap();
        let poller = Process::start("poller", &mut poller).unwrap();
        let http = Http::to(&api.address().await.unwrap());
        Self { http, _api: api, _poller: poller, _folder: folder }
    }
}

#[tokio::test]
async fn jobs_submitted_while_the_leader_is_killed_are_neither_lost_nor_doubled() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let sim = Sim::start(Duration::from_millis(50)).await.unwrap();
    let services = Services::start(&cluster, &sim).await;
    let client = connect(cluster.url()).await;
    everything_is_kept_three_times(&client).await;
    let http = &services.http;
    let small = |n| json!({"prompt": format!("job {n}"), "steps": 4, "width": 64, "height": 64});

    let mut jobs = BTreeMap::new();
    for n in 0..10 {
        jobs.insert(http.submit(&small(n)).await, format!("job {n}"));
    }
    until("it renders", async || sim.truth().running).await;
    let (_, leader) = standing(&client, subjects::EVENTS_STREAM).await.unwrap().unwrap();
    cluster.server(leader).signal(Signal::KILL);
    cluster.server(leader).end().await;
    for n in 10..30 {
        jobs.insert(http.submit(&small(n)).await, format!("job {n}"));
    }
    assert_eq!(jobs.len(), 30);
    until("half of them have ended without that server", async || {
        let done = http.get("/generation/jobs?status=completed").await.json["jobs"].as_array()?.len();
        (done >= 15).then_some(())
    })
    .await;
    cluster.start_server(leader).await.unwrap();

    for id in jobs.keys() {
        let job = http.ended(id).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
    }
    let mut renders: BTreeMap<String, u32> = BTreeMap::new();
    for job in sim.truth().finished {
        *renders.entry(job.prompt).or_default() += 1;
    }
    for prompt in jobs.values() {
        assert_eq!(renders.get(prompt), Some(&1), "{prompt} was rendered once");
    }
    recorded::each_job_went_straight_through(&client, jobs.keys()).await;
}
