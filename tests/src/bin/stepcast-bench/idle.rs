//! What a backend costs that has nothing to do: requests to its server, requests to the api, and processor time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::nats;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::{cpu, figure};

const BACKENDS: usize = 16;
const SETTLE: Duration = Duration::from_secs(5);
const WATCHED: Duration = Duration::from_secs(20);

pub(crate) async fn run() -> anyhow::Result<()> {
    let few = measure(1).await?;
    let many = measure(BACKENDS).await?;
    // What one more backend adds; the rest is there without any.
    let more = |of: fn(&Cost) -> f64| (of(&many) - of(&few)) / (BACKENDS - 1) as f64;
    figure("idle backend: HTTP requests a second to its server", &format!("{:.2}", more(|cost| cost.http)));
    figure("idle backend: claims asked a second", &format!("{:.2}", more(|cost| cost.claims)));
    for (name, of) in [
        ("poller", (|cost| cost.poller) as fn(&Cost) -> f64),
        ("api", |cost| cost.api),
        ("nats-server", |cost| cost.nats),
    ] {
        figure(&format!("idle backend: share of a core, {name}"), &format!("{:.3} %", more(of) * 100.0));
    }
    Ok(())
}

/// All of it a second.
struct Cost {
    http: f64,
    claims: f64,
    poller: f64,
    api: f64,
    nats: f64,
}

async fn measure(backends: usize) -> anyhow::Result<Cost> {
    let requests = Arc::new(AtomicU64::new(0));
    let mut sims = Vec::new();
    let mut doors = JoinSet::new();
    let mut specs = Vec::new();
    for n in 0..backends {
        let sim = Sim::start(Duration::from_millis(1)).await?;
        let door = TcpListener::bind("127.0.0.1:0").await?;
        specs.push((format!("gpu-{n}"), format!("http://{}", door.local_addr()?)));
        doors.spawn(count(door, sim.address(), requests.clone()));
        sims.push(sim);
    }
    let specs: Vec<(&str, String)> = specs.iter().map(|(id, url)| (id.as_str(), url.clone())).collect();
    let mut stack = Stack::start_on(Setup::unchecked(), &specs).await?;
    let client = nats::connect("bench", &NatsConfig::at(stack.nats.url())).await?;
    let mut claims = client.subscribe("stepcast.v1.rpc.claim").await?;
    let asked = Arc::new(AtomicU64::new(0));
    let counting = asked.clone();
    doors.spawn(async move {
        while claims.next().await.is_some() {
            counting.fetch_add(1, Ordering::Relaxed);
        }
    });
    sleep(SETTLE).await;
    let pids = [stack.poller.id(), stack.api.id(), stack.nats.process().id()];
    let read = || -> anyhow::Result<Vec<f64>> {
        let counts = [&requests, &asked].map(|count| Ok(count.load(Ordering::Relaxed) as f64));
        let times = pids.map(|pid| Ok(cpu::used(pid)?.as_secs_f64()));
        counts.into_iter().chain(times).collect()
    };
    let before = read()?;
    sleep(WATCHED).await;
    let after = read()?;
    let rate = |index: usize| (after[index] - before[index]) / WATCHED.as_secs_f64();
    Ok(Cost { http: rate(0), claims: rate(1), poller: rate(2), api: rate(3), nats: rate(4) })
}

/// Passes bytes on, and counts the requests among them.
async fn count(door: TcpListener, target: String, requests: Arc<AtomicU64>) {
    let mut open = JoinSet::new();
    while let Ok((mut client, _)) = door.accept().await {
        let (target, requests) = (target.clone(), requests.clone());
        open.spawn(async move {
            let Ok(mut server) = TcpStream::connect(target).await else { return };
            let (mut from_client, mut to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            let asking = async {
                let mut bytes = vec![0; 16 * 1024];
                while let Ok(read @ 1..) = from_client.read(&mut bytes).await {
                    // A client sends a head in one piece, and the next request only after an answer.
                    if bytes[..read].windows(10).any(|line| line == b" HTTP/1.1\r") {
                        requests.fetch_add(1, Ordering::Relaxed);
                    }
                    if to_server.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = asking => {}
                _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
            }
        });
    }
}
