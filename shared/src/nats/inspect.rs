//! Looking at a server without changing anything on it, for who wants to know whether it is as Stepcast needs it.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, ServerAddr};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Part, differences, replicas, wanted};

/// Longest wait for a server's first word.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest first word.
const FIRST_WORD: usize = 64 * 1024;

/// What a server says of itself before anybody has logged in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Introduction {
    /// Its version, such as `2.15.1`.
    pub version: String,
    /// Whether it stores anything.
    pub jetstream: bool,
    /// Whether it speaks to nobody without TLS.
    pub tls_required: bool,
}

/// Hears what a server says of itself. Errors if it cannot be reached, or is no NATS server.
pub async fn introduction(server: &ServerAddr) -> anyhow::Result<Introduction> {
    let heard = timeout(PATIENCE, first_word(server)).await.context("it says nothing for 5 s")??;
    let json = heard.strip_prefix("INFO ").context("what listens there is no NATS server")?;
    serde_json::from_str(json).context("what listens there is no NATS server")
}

async fn first_word(server: &ServerAddr) -> anyhow::Result<String> {
    let stream = TcpStream::connect((server.host(), server.port())).await.context("it cannot be reached")?;
    let mut stream = BufReader::new(stream);
    let mut word = Vec::new();
    loop {
        match stream.read_u8().await.context("it hangs up")? {
            b'\n' => break,
            byte => word.push(byte),
        }
        ensure!(word.len() < FIRST_WORD, "what listens there is no NATS server");
    }
    Ok(String::from_utf8_lossy(&word).trim().to_owned())
}

/// What a logged-in user may do, and what time it is at the server.
#[derive(Clone, Debug)]
pub struct User {
    /// Its name.
    pub name: String,
    /// What it may say and hear; everything if the server does not limit it.
    pub permissions: Permissions,
    /// The server's clock.
    pub time: DateTime<Utc>,
}

/// What may be said and heard.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Permissions {
    /// What may be said.
    pub publish: Rules,
    /// What may be heard.
    pub subscribe: Rules,
}

/// Subjects, with wildcards.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// These alone, if there are any.
    allow: Vec<String>,
    /// Not these.
    deny: Vec<String>,
}

impl Rules {
    /// Whether all of `subject`, which may have wildcards, is permitted.
    pub fn permit(&self, subject: &str) -> bool {
        let allowed = self.allow.is_empty() || self.allow.iter().any(|allowed| covers(allowed, subject));
        allowed && !self.deny.iter().any(|denied| overlaps(denied, subject))
    }
}

/// Whether everything that `subject` matches is matched by `pattern`.
fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(own), Some(token)) if own == token => {}
            _ => return false,
        }
    }
}

/// Whether something is matched by both.
fn overlaps(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// Asks what the user of this connection may do. Errors if it may not even ask that, which is worth no alarm.
pub async fn user(client: &Client) -> anyhow::Result<User> {
    #[derive(Deserialize)]
    struct Answer {
        server: Server,
        data: Option<Data>,
    }
    #[derive(Deserialize)]
    struct Server {
        time: DateTime<Utc>,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        user: String,
        #[serde(default)]
        permissions: Permissions,
    }
    let answer = client.request("$SYS.REQ.USER.INFO", "".into()).await.context("no answer")?;
    let Answer { server, data } =
        serde_json::from_slice(&answer.payload).context("not the answer expected")?;
    let data = data.context("no answer")?;
    Ok(User { name: data.user, permissions: data.permissions, time: server.time })
}

/// How a stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is none.
    Missing,
    /// Nobody says.
    Unknown(String),
    /// It is there.
    There {
        /// Which of its settings are not as this release has them.
        differences: Vec<&'static str>,
        /// Copies that are up to date, and how many there are to be.
        copies: (usize, usize),
    },
}

/// How every stream is that a service of this kind needs, those behind the buckets included.
pub async fn streams(client: &Client, part: Part) -> Vec<(String, Standing)> {
    let mut context = jetstream::new(client.clone());
    context.set_timeout(PATIENCE);
    let mut streams = Vec::new();
    for mut wanted in wanted().into_iter().filter(|wanted| part.needs(wanted)) {
        wanted.num_replicas = replicas(client);
        let standing = match context.get_stream(&wanted.name).await {
            Ok(stream) => {
                let info = stream.cached_info();
                let peers = info.cluster.iter().flat_map(|cluster| &cluster.replicas);
                let up_to_date = 1 + peers.filter(|peer| peer.current && !peer.offline).count();
                let copies = (up_to_date, wanted.num_replicas);
                Standing::There { differences: differences(&info.config, &wanted), copies }
            }
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(refusal)
                    if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Standing::Missing
                }
                _ => Standing::Unknown(error.to_string()),
            },
        };
        streams.push((wanted.name, standing));
    }
    streams
}

/// Errors with a sentence if a version is older than what Stepcast needs; one that cannot be read is not.
pub fn check_version(version: &str) -> anyhow::Result<()> {
    let mut numbers =
        version.trim_start_matches('v').split('.').map_while(|number| number.parse::<u32>().ok());
    if let (Some(major), Some(minor)) = (numbers.next(), numbers.next())
        && (major, minor) < super::OLDEST
    {
        bail!("{}", super::too_old(version));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allow: &[&str], deny: &[&str]) -> Rules {
        let owned = |rules: &[&str]| rules.iter().map(|&rule| rule.to_owned()).collect();
        Rules { allow: owned(allow), deny: owned(deny) }
    }

    #[test]
    fn what_is_permitted_is_permitted_as_a_whole() {
        assert!(rules(&[], &[]).permit("a.>"), "nothing is said: nothing is limited");
        let some = rules(&["a.*.c", "b.>"], &["b.x.>"]);
        for subject in ["a.b.c", "a.*.c", "b.c", "b.y.>"] {
            assert!(some.permit(subject), "{subject}");
        }
        for subject in ["a.b", "a.b.d", "a.>", "a.*.*", "b", "c", "b.x.y", "b.*.y", "b.>"] {
            assert!(!some.permit(subject), "{subject}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(check_version("2.9.10").unwrap_err().to_string().contains("2.9.10 is too old"));
        for fine in ["2.14.0", "2.15.1-RC.1", "3.0.0", "dev", ""] {
            check_version(fine).unwrap();
        }
    }
}
