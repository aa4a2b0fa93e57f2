//! `watch`: jobs until they end, over a WebSocket that may break and comes back.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use serde_json::Value;
use stepcast_shared::messages::{Envelope, JobMessage};
use tokio::time::{Instant, sleep};

use crate::bars::Bars;
use crate::cli;
use crate::client::{Client, Error};
use crate::exit::Exit;
use crate::follow::{Follow, is_end};
use crate::lines::Lines;
use crate::out;
use crate::socket::{Connection, Incoming};

/// First pause before a lost connection is tried again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long to try before giving up on a server that does not come back.
const GIVE_UP: Duration = Duration::from_mins(10);

/// Does what the command line says.
pub async fn run(args: cli::Watch, json: bool) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server.server)?;
    if args.all {
        let mut follow = Follow::all();
        return tokio::select! {
            outcome = watch(&client, &mut follow, json) => outcome.map(|()| Exit::Done),
            // Ending it is the only way to end it, so that is no failure.
            pressed = tokio::signal::ctrl_c() => Ok(pressed.map(|()| Exit::Done)?),
        };
    }
    // A subscription takes ids that nobody knows; a person who mistyped one would wait for ever.
    for job in &args.jobs {
        let _: Value = client.get(client.url(&format!("generation/jobs/{job}"))).await?;
    }
    let mut follow = Follow::jobs(args.jobs);
    watch(&client, &mut follow, json).await?;
    Ok(follow.exit())
}

/// Shows what happens until `follow` is over.
pub async fn watch(client: &Client, follow: &mut Follow, json: bool) -> anyhow::Result<()> {
    let mut show = Show::new(client, follow, json);
    let url = client.socket_url();
    let mut pause = FIRST_PAUSE;
    // Somebody who has just asked wants to hear at once that nobody is there.
    let mut give_up_at = Instant::now();
    loop {
        let mut wait = None;
        match Connection::open(&url, &follow.subscriptions()).await {
            Ok(mut connection) => {
                pause = FIRST_PAUSE;
                match converse(&mut connection, follow, &mut show).await? {
                    Ended::Over => {
                        connection.close().await;
                        show.leave();
                        return Ok(());
                    }
                    Ended::Refused(reason) => anyhow::bail!(reason),
                    Ended::Lost(named) => wait = named,
                }
                show.say("the connection was lost; trying again");
                give_up_at = Instant::now() + GIVE_UP;
            }
            Err(error) if Instant::now() >= give_up_at => return Err(error.into()),
            Err(error @ Error::NotStepcast { .. }) => return Err(error.into()),
            Err(_) => {}
        }
        sleep(wait.unwrap_or(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Ended {
    Over,
    Lost(Option<Duration>),
    Refused(String),
}

async fn converse(
    connection: &mut Connection,
    follow: &mut Follow,
    show: &mut Show<'_>,
) -> anyhow::Result<Ended> {
    loop {
        let text = match connection.next().await {
            Incoming::Text(text) => text,
            Incoming::Lost(wait) => return Ok(Ended::Lost(wait)),
            Incoming::Refused(reason) => return Ok(Ended::Refused(reason)),
        };
        match serde_json::from_str::<Envelope<JobMessage>>(&text) {
            Ok(Envelope { message, .. }) => {
                if follow.note(&message) {
                    show.message(&text, &message)?;
                }
                if is_end(&message) {
                    follow.forget_ended();
                }
            }
            Err(_) => {
                if let Some(refusal) = refusal(&text) {
                    return Ok(Ended::Refused(refusal));
                }
            }
        }
        if follow.is_over() {
            return Ok(Ended::Over);
        }
    }
}

/// What an `error` says; we send nothing but subscriptions, so each is about one of them.
fn refusal(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    if value["type"] != "error" {
        return None;
    }
    let words = |name: &str| value["data"][name].as_str().unwrap_or("unknown").to_owned();
    Some(format!("the server refuses to be watched: {} ({})", words("message"), words("code")))
}

/// How it is shown.
enum Show<'a> {
    /// The envelopes, as they came.
    Json,
    /// On a terminal.
    Bars(Bars),
    /// Everywhere else.
    Lines(Lines, &'a Client),
}

impl<'a> Show<'a> {
    fn new(client: &'a Client, follow: &Follow, json: bool) -> Self {
        if json {
            Self::Json
        } else if std::io::stderr().is_terminal() {
            Self::Bars(Bars::new(follow.is_endless()))
        } else {
            Self::Lines(Lines::default(), client)
        }
    }

    fn message(&mut self, text: &str, message: &JobMessage) -> anyhow::Result<()> {
        match self {
            Self::Json => out::line(text),
            Self::Bars(bars) => {
                bars.show(message);
                Ok(())
            }
            Self::Lines(lines, client) => {
                if let Some(line) = lines.line(message) {
                    out::line(&line)?;
                }
                let JobMessage::Complete(end) = message else { return Ok(()) };
                end.images.iter().try_for_each(|image| out::line(&format!("  {}", client.url(image))))
            }
        }
    }

    /// What follows is printed below.
    fn leave(self) {
        if let Self::Bars(bars) = self {
            bars.leave();
        }
    }

    /// Something that is not of the jobs; never on standard output, which may be read by a program.
    fn say(&self, text: &str) {
        match self {
            Self::Bars(bars) => bars.say(text),
            Self::Json | Self::Lines(..) => {
                let _ = writeln!(std::io::stderr(), "stepcast: {text}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_gateway_is_told() {
        let text = r#"{"type":"error","data":{"code":"too_many_subscriptions","message":"at most 1000"}}"#;
        assert_eq!(
            refusal(text).unwrap(),
            "the server refuses to be watched: at most 1000 (too_many_subscriptions)"
        );
        assert_eq!(refusal(r#"{"type":"pong","data":{}}"#), None);
        assert_eq!(refusal("not json"), None);
    }
}
