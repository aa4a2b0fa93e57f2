//! `backends`: what the servers are doing, giving one a rest, and emptying one.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::{BackendCondition, BackendState};
use tokio::time::{Instant, sleep};

use crate::cli;
use crate::client::{Client, Error};
use crate::commands::show;
use crate::exit::Exit;
use crate::out;
use crate::table::{Table, shortened};

/// How often a backend that is being emptied is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a server that does not answer, or no longer speaks of the backend, is put up with.
const GIVE_UP: Duration = Duration::from_mins(1);

/// A backend, as far as it is shown. Whatever a newer server adds is skipped.
#[derive(Debug, Deserialize)]
struct Backend {
    #[serde(flatten)]
    state: BackendState,
    #[serde(flatten)]
    mode: Mode,
}

/// What was asked of a backend.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mode {
    paused: bool,
    draining: bool,
    drained: bool,
}

/// Does what the command line says.
pub async fn run(args: &cli::Backends, json: bool) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server.server)?;
    if let Some(id) = &args.drain {
        return drain(&client, id, !args.no_wait, json).await;
    }
    for (id, order, words) in
        [(&args.pause, "pause", "is paused"), (&args.resume, "resume", "is given work again")]
    {
        if let Some(id) = id {
            let answer = ask(&client, id, order).await?;
            return if json {
                show(&answer)
            } else {
                out::line(&format!("{id} {words}")).map(|()| Exit::Done)
            };
        }
    }
    list(&client, json).await
}

async fn list(client: &Client, json: bool) -> anyhow::Result<Exit> {
    let answer: Value = client.get(client.url("generation/backends")).await?;
    if json {
        return show(&answer);
    }
    let mut table = Table::new(&["BACKEND", "STATE", "ADDRESS", "MODEL", "JOB", "NOTE"]);
    for backend in answer["backends"].as_array().into_iter().flatten() {
        let Backend { state, mode } = Backend::deserialize(backend)?;
        table.row(vec![
            state.id.to_string(),
            words(state.state, &mode),
            state.url,
            shortened(state.model.as_deref().unwrap_or_default(), 40),
            state.job_id.map(|id| id.to_string()).unwrap_or_default(),
            shortened(state.message.or(state.foreign).as_deref().unwrap_or_default(), 80),
        ]);
    }
    out::line(&if table.is_empty() { "no backends".to_owned() } else { table.text() })?;
    Ok(Exit::Done)
}

/// Has a backend emptied, and waits for that unless told otherwise.
async fn drain(client: &Client, id: &BackendId, wait: bool, json: bool) -> anyhow::Result<Exit> {
    let answer = ask(client, id, "drain").await?;
    if json {
        out::json(&answer)?;
    } else if answer["drained"] != true {
        out::line(&format!("{id} is given no more work"))?;
    }
    let drained = if answer["drained"] == true || !wait {
        answer
    } else {
        let backend = emptied(client, id, json).await?;
        if json {
            out::json(&backend)?;
        }
        backend
    };
    if !json && drained["drained"] == true {
        out::line(&format!("{id} is empty and can be shut down"))?;
    }
    Ok(Exit::Done)
}

/// Waits until a draining backend is empty, and tells what it still does. Errors if it is given work again before.
async fn emptied(client: &Client, id: &BackendId, json: bool) -> anyhow::Result<Value> {
    let mut seen = Instant::now();
    let mut said = String::new();
    loop {
        match find(client, id).await {
            Ok(Some(answer)) => {
                let Backend { state, mode } = Backend::deserialize(&answer)?;
                if mode.drained {
                    return Ok(answer);
                }
                anyhow::ensure!(mode.draining, "{id} was asked for something else before it was empty");
                seen = Instant::now();
                let now = rest(client, &state).await;
                if !json && now != said {
                    out::line(&format!("{id} {now}"))?;
                    said = now;
                }
            }
            Ok(None) if seen.elapsed() > GIVE_UP => {
                anyhow::bail!("{id} is not heard of any more: no poller holds it")
            }
            Err(error) if seen.elapsed() > GIVE_UP || !is_passing(&error) => return Err(error.into()),
            // The server may be starting again, and then hears of its backends one after another.
            Ok(None) | Err(_) => {}
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn find(client: &Client, id: &BackendId) -> Result<Option<Value>, Error> {
    let mut answer: Value = client.get(client.url("generation/backends")).await?;
    let backends = answer["backends"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok(backends.into_iter().find(|backend| backend["id"] == id.as_str()))
}

/// What a backend has still to do, to the tenth.
async fn rest(client: &Client, state: &BackendState) -> String {
    let Some(job_id) = state.job_id else { return "ends what it holds".to_owned() };
    let job: Result<Value, _> = client.get(client.url(&format!("generation/jobs/{job_id}"))).await;
    // A job that is not ours to see is told by its id alone.
    match job.ok().and_then(|job| job["progress"].as_f64()) {
        Some(progress) => format!("finishes {job_id}, {:.0} %", (progress * 10.0).floor() * 10.0),
        None => format!("finishes {job_id}"),
    }
}

async fn ask(client: &Client, id: &BackendId, order: &str) -> Result<Value, Error> {
    client.post(client.url(&format!("generation/backends/{id}/{order}")), None, None).await
}

fn is_passing(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } => true,
        Error::Refused(problem) => problem.status >= 500,
        Error::NotStepcast { .. } => false,
    }
}

fn words(condition: BackendCondition, mode: &Mode) -> String {
    let state = match condition {
        BackendCondition::Idle => "idle",
        BackendCondition::Busy => "busy",
        BackendCondition::Foreign => "foreign work",
        BackendCondition::Starting => "starting",
        BackendCondition::Quarantined => "quarantined",
        BackendCondition::Drained => return "drained".to_owned(),
        BackendCondition::Down => "down",
    };
    match mode {
        Mode { drained: true, .. } => format!("{state}, drained"),
        Mode { draining: true, .. } => format!("{state}, draining"),
        Mode { paused: true, .. } => format!("{state}, paused"),
        _ => state.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_says_what_was_asked_of_the_backend() {
        let mode = |paused, draining, drained| Mode { paused, draining, drained };
        assert_eq!(words(BackendCondition::Idle, &mode(false, false, false)), "idle");
        assert_eq!(words(BackendCondition::Busy, &mode(true, false, false)), "busy, paused");
        assert_eq!(words(BackendCondition::Busy, &mode(false, true, false)), "busy, draining");
        assert_eq!(words(BackendCondition::Down, &mode(false, true, true)), "down, drained");
        assert_eq!(words(BackendCondition::Drained, &mode(false, true, true)), "drained");
    }
}
