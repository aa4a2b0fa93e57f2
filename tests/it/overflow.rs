//! Word of what a connection to NATS may have lost, as a gateway hears it.

use std::time::Duration;

use futures_util::StreamExt as _;
use rustix::process::Signal;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::nats::{self, Connection};
use stepcast_tests::nats::{NatsServer, settled};
use stepcast_tests::wait::{until, within};
use tokio::time::timeout;

/// More than a subscription holds for a reader that does not come.
const FLOOD: usize = 70_000;
/// Less than it holds.
const PART: usize = 30_000;

async fn open(server: &NatsServer) -> Connection {
    let connection = nats::open("test", &NatsConfig::at(server.url())).await.unwrap();
    until("the first connection is told", async || (connection.gaps.count() == 1).then_some(())).await;
    connection
}

#[tokio::test]
async fn a_subscription_that_overflows_is_a_gap_and_one_that_is_read_is_none() {
    let server = NatsServer::start().await.unwrap();
    let Connection { client, gaps } = open(&server).await;
    let mut gaps = gaps.clone();
    gaps.next().await;
    let publisher = nats::connect("publisher", &NatsConfig::at(server.url())).await.unwrap();
    let flood = async |messages| {
        for _ in 0..messages {
            publisher.publish("flood", "".into()).await.unwrap();
        }
        settled(&publisher).await.unwrap();
    };

    let mut read = client.subscribe("flood").await.unwrap();
    settled(&client).await.unwrap();
    for _ in 0..3 {
        flood(PART).await;
        let reading = async {
            for _ in 0..PART {
                read.next().await.unwrap();
            }
        };
        within("all is read", reading).await;
    }
    drop(read);
    assert_eq!(gaps.count(), 1, "nothing was dropped");

    let mut unread = client.subscribe("flood").await.unwrap();
    settled(&client).await.unwrap();
    flood(FLOOD).await;
    within("the overflow is told", gaps.next()).await;
    // The server delivers in order: once this answers, everything before it was delivered or dropped.
    within("all has arrived", settled(&client)).await.unwrap();
    let mut kept = 0;
    while timeout(Duration::from_secs(2), unread.next()).await.is_ok_and(|message| message.is_some()) {
        kept += 1;
    }
    assert!(kept < FLOOD, "something was dropped: {kept} of {FLOOD} are there");
    assert!(gaps.count() > 1);
}

#[tokio::test]
async fn a_connection_that_was_away_is_a_gap() {
    let mut server = NatsServer::start().await.unwrap();
    let Connection { client: _client, mut gaps } = open(&server).await;
    gaps.next().await;
    server.process().signal(Signal::KILL);
    server.process().end().await;
    let early = timeout(Duration::from_secs(1), gaps.next()).await;
    assert!(early.is_err(), "it is told once there is something to be read again");
    server.restart().await.unwrap();
    within("the gap is told", gaps.next()).await;
    assert_eq!(gaps.count(), 2);
}
