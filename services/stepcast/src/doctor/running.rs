//! A Stepcast that runs: whether it is ready, and takes watchers.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use url::Url;

use super::report::Report;
use crate::client::Client;

const PART: &str = "stepcast";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the server at this address how it is.
pub async fn look(server: &Url, report: &mut Report) {
    let shown = stepcast_shared::address::without_credentials(server.as_str());
    match ready(server).await {
        Ok(Ok(())) => report.ok(PART, format!("{shown} is ready")),
        Ok(Err(parts)) => {
            let advice = "what it names is looked at above; its log says more";
            report.wrong(PART, format!("{shown} is not ready: {parts}"), advice);
        }
        Err(error) => {
            let advice = "start it with `stepcast up`, or name another with --server";
            return report.wrong(PART, format!("{shown}: {error:#}"), advice);
        }
    }
    match timeout(PATIENCE, greeting(server)).await.context("it says nothing").and_then(|greeted| greeted) {
        Ok(()) => report.ok(PART, format!("{shown} takes watchers")),
        Err(error) => {
            let advice =
                "start a gateway, and let what is in front of it pass on WebSockets and the Host header";
            report.wrong(PART, format!("{shown} takes no watchers: {error:#}"), advice);
        }
    }
}

/// Whether it is ready, and otherwise what is not.
async fn ready(server: &Url) -> anyhow::Result<Result<(), String>> {
    let client = Client::new(server)?;
    let asked = client.http().get(client.url("health/ready")).timeout(PATIENCE).send();
    let answer = asked.await.map_err(reqwest::Error::without_url).context("it does not answer")?;
    let is_ready = answer.status().is_success();
    let body: Value =
        answer.json().await.map_err(reqwest::Error::without_url).context("it is no Stepcast")?;
    let Some(parts) = body["parts"].as_object() else { anyhow::bail!("it is no Stepcast") };
    let amiss = parts.iter().filter(|(_, state)| *state != "ok");
    let amiss = amiss.map(|(part, state)| format!("{part}: {}", state.as_str().unwrap_or_default()));
    Ok(if is_ready { Ok(()) } else { Err(amiss.collect::<Vec<_>>().join(", ")) })
}

/// Connects as a watcher, and waits to be greeted.
async fn greeting(server: &Url) -> anyhow::Result<()> {
    let url = Client::new(server)?.socket_url();
    let (mut socket, _) = tokio_tungstenite::connect_async(url.as_str()).await.context("no WebSocket")?;
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message? {
            let greeting: Value = serde_json::from_str(&text)?;
            anyhow::ensure!(greeting["type"] == "connected", "it greets nobody");
            return Ok(socket.close(None).await?);
        }
    }
    anyhow::bail!("it hangs up")
}
