//! A NATS server whose version cannot be read is judged by what it does.
//!
//! An older server ignores a header or a field of a request that it does not know. A link that spells one of them
//! differently makes the same of a server of today.

use stepcast_shared::config::NatsConfig;
use stepcast_shared::nats;
use stepcast_tests::nats::NatsServer;
use stepcast_tests::wait::within;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Of one length, as messages say how long they are.
type Spelling = (&'static str, &'static str);

/// How the server's version is hidden: it is told in a line, so that the length is free.
const VERSION: Spelling = ("\"version\":\"2.", "\"version\":\"built-by-hand-2.");

/// A link to the server on which the client's words are spelt differently.
async fn link(server: &NatsServer, spelling: Spelling) -> (String, JoinSet<()>) {
    let target = server.url().trim_start_matches("nats://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut links = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&target).await.unwrap();
            links.spawn(async move {
                let (from_client, to_client) = client.split();
                let (from_server, to_server) = server.split();
                tokio::join!(
                    respell(from_client, to_server, spelling),
                    respell(from_server, to_client, VERSION)
                );
            });
        }
    });
    (url, serving)
}

async fn respell(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, (word, other): Spelling) {
    let mut held = Vec::new();
    while let Ok(1..) = from.read_buf(&mut held).await {
        let mut said = Vec::new();
        while let Some(at) = held.windows(word.len()).position(|bytes| bytes == word.as_bytes()) {
            said.extend(held.drain(..at));
            said.extend(other.as_bytes());
            held.drain(..word.len());
        }
        // The rest of a word that has begun is still to come.
        let begun = (1..word.len()).rev().find(|&length| held.ends_with(&word.as_bytes()[..length]));
        said.extend(held.drain(..held.len() - begun.unwrap_or(0)));
        if to.write_all(&said).await.is_err() {
            return;
        }
    }
}

/// What is said of such a server.
async fn judged(spelling: Spelling) -> anyhow::Result<()> {
    let server = NatsServer::start().await?;
    let (url, _link) = link(&server, spelling).await;
    let client = nats::connect("test", &NatsConfig::at(url)).await?;
    within("the server is judged", nats::prepare(&client)).await.map(drop)
}

#[tokio::test]
async fn a_server_of_an_unknown_version_that_does_all_is_used() {
    judged(("nothing is said like this", "")).await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_compare_sequences_is_refused_in_a_sentence() {
    let refused = judged(("Nats-Expected-Last-", "Nats-Of-Tomorrow-1-")).await.unwrap_err();
    let refused = format!("{refused:#}");
    assert!(
        refused.contains("too old for Stepcast, which needs 2.14")
            && refused.contains("does not check the expected sequence of a subject"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_server_that_does_not_know_multi_last_is_refused_in_a_sentence() {
    let refused = judged(("multi_last", "multi_most")).await.unwrap_err();
    let refused = format!("{refused:#}");
    assert!(
        refused.contains("too old for Stepcast, which needs 2.14")
            && refused.contains("does not answer multi_last"),
        "{refused}"
    );
}
