//! Two simulated backends of different speed, so that everything can be seen without a GPU.

use std::time::Duration;

use anyhow::Context as _;
use stepcast_poller::BackendSpec;
use stepcast_sdnext_sim as sim;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The simulated backends: name, and time of one step of a 512×512 picture.
const BACKENDS: [(&str, Duration); 2] =
    [("demo-fast", Duration::from_millis(60)), ("demo-slow", Duration::from_millis(200))];

/// Running simulators.
#[derive(Debug)]
pub struct Demo {
    servers: JoinSet<anyhow::Result<()>>,
    stopping: CancellationToken,
    /// How to reach them.
    pub backends: Vec<BackendSpec>,
}

impl Demo {
    /// Starts the simulators on free loopback ports.
    pub async fn start() -> anyhow::Result<Self> {
        let stopping = CancellationToken::new();
        let (mut servers, mut backends) = (JoinSet::new(), Vec::new());
        for (id, step_time) in BACKENDS {
            let listener =
                TcpListener::bind("127.0.0.1:0").await.context("a simulated backend finds no free port")?;
            let address = listener.local_addr().context("a bound listener has an address")?;
            backends
                .push(format!("{id}=http://{address}").parse().context("a simulated backend has no name")?);
            servers.spawn(sim::start(config(step_time), listener, stopping.clone()));
        }
        Ok(Self { servers, stopping, backends })
    }

    /// Resolves if one of them ends, to an error that says so. Cancel-safe.
    pub async fn died(&mut self) -> anyhow::Error {
        let how = match self.servers.join_next().await {
            Some(Ok(Err(error))) => format!("{error:#}"),
            Some(Err(error)) => error.to_string(),
            Some(Ok(Ok(()))) | None => "it stopped".to_owned(),
        };
        anyhow::anyhow!("a simulated backend ended by itself: {how}")
    }

    /// Stops them, once nobody renders on them any more.
    pub async fn stop(mut self) {
        self.stopping.cancel();
        while self.servers.join_next().await.is_some() {}
    }
}

fn config(step_time: Duration) -> sim::Config {
    // Everything else keeps its proportion to a step.
    let real = sim::Config::default();
    let pace = step_time.as_secs_f64() / real.step_time.as_secs_f64();
    sim::Config {
        step_time,
        load_time: real.load_time.mul_f64(pace),
        decode_time: real.decode_time.mul_f64(pace),
        ..real
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_backends_start_and_stop() {
        let demo = Demo::start().await.unwrap();
        let ids: Vec<_> = demo.backends.iter().map(|backend| backend.id.as_str()).collect();
        assert_eq!(ids, ["demo-fast", "demo-slow"]);
        demo.stop().await;
    }
}
