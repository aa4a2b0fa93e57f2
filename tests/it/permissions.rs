//! What each user of NATS may do, tried on a server with the configuration of the deployment.

use stepcast_shared::nats;
use stepcast_tests::bus::{Bus, password};
use stepcast_tests::wait::{until, within};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

const JOB: &str = "default.01999999-0000-7000-8000-000000000000";

/// A user that speaks the protocol itself, since only that tells at once what is refused.
struct User {
    name: &'static str,
    stream: BufReader<TcpStream>,
}

impl User {
    async fn connect(bus: &Bus, name: &'static str) -> Self {
        let stream = TcpStream::connect(bus.address()).await.unwrap();
        let mut user = Self { name, stream: BufReader::new(stream) };
        assert!(user.line().await.starts_with("INFO"));
        let password = password(name);
        let login =
            format!(r#"CONNECT {{"verbose":true,"user":"{name}","pass":"{password}","headers":true}}"#);
        assert_eq!(user.say(&login).await, "+OK", "{name} logs in");
        user
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        within("the server answers", self.stream.read_line(&mut line)).await.unwrap();
        line.trim().to_owned()
    }

    async fn say(&mut self, words: &str) -> String {
        self.stream.get_mut().write_all(format!("{words}\r\n").as_bytes()).await.unwrap();
        self.line().await
    }

    async fn may(&mut self, words: &str) -> bool {
        let answer = self.say(words).await;
        let refused = answer.contains("Permissions Violation");
        assert!(refused || answer == "+OK", "{}: {words}: {answer}", self.name);
        !refused
    }

    async fn may_publish(&mut self, subject: &str) -> bool {
        self.may(&format!("PUB {subject} 0\r\n")).await
    }

    async fn may_subscribe(&mut self, subject: &str) -> bool {
        self.may(&format!("SUB {subject} 1")).await
    }
}

/// Every subject on which something can be changed, and who may.
fn writes() -> Vec<(String, &'static [&'static str])> {
    let mut writes: Vec<(String, &'static [&'static str])> = Vec::new();
    for (kind, authors) in [
        ("queued", &["api"][..]),
        ("started", &["poller"]),
        ("retrying", &["api", "poller"]),
        ("completed", &["poller"]),
        ("failed", &["api", "poller"]),
        ("cancelled", &["api", "poller"]),
    ] {
        writes.push((format!("stepcast.v1.event.{JOB}.{kind}"), authors));
        // What is recorded is told by the stream alone.
        writes.push((format!("stepcast.v1.job.{JOB}.{kind}"), &[]));
    }
    for kind in ["progress", "preview"] {
        writes.push((format!("stepcast.v1.job.{JOB}.{kind}"), &["poller"]));
    }
    for (subject, authors) in [
        ("stepcast.v1.rpc.claim", &["poller"][..]),
        ("stepcast.v1.rpc.renew", &["poller"]),
        ("stepcast.v1.rpc.release", &["poller"]),
        ("stepcast.v1.rpc.submit", &["gateway"]),
        ("stepcast.v1.rpc.cancel", &["gateway"]),
        ("stepcast.v1.rpc.retry", &["gateway"]),
        // They change nothing; to ask is for those who tell others.
        ("stepcast.v1.rpc.stats", &["gateway", "reader"]),
        ("stepcast.v1.backend.gpu", &["poller"]),
        ("stepcast.v1.wake.default", &["api"]),
        ("stepcast.v1.control.some-job", &["api"]),
        ("$KV.stepcast_leases.gpu", &["poller"]),
        ("$KV.stepcast_inflight.gpu", &["poller"]),
        ("$JS.API.STREAM.CREATE.STEPCAST_EVENTS", &["api"]),
        ("$JS.API.STREAM.UPDATE.STEPCAST_EVENTS", &["api"]),
        ("$JS.API.STREAM.CREATE.ANOTHER", &[]),
        ("$JS.API.STREAM.DELETE.STEPCAST_EVENTS", &[]),
        ("$JS.API.STREAM.PURGE.STEPCAST_EVENTS", &[]),
        ("$JS.API.STREAM.MSG.DELETE.STEPCAST_EVENTS", &[]),
        ("$JS.API.CONSUMER.CREATE.STEPCAST_EVENTS.api-projector", &["api"]),
        ("$JS.API.CONSUMER.CREATE.STEPCAST_EVENTS.another", &[]),
        ("$JS.API.CONSUMER.CREATE.STEPCAST_EVENTS", &[]),
        ("$JS.API.CONSUMER.DELETE.STEPCAST_EVENTS.api-projector", &[]),
        ("$JS.ACK.STEPCAST_EVENTS.api-projector.1.1.1.1.1", &["api"]),
        ("$JS.ACK.domain.account.STEPCAST_EVENTS.api-projector.1.1.1.1.1", &["api"]),
        ("$JS.API.CONSUMER.MSG.NEXT.STEPCAST_EVENTS.api-projector", &["api"]),
        // A reader's own consumer, which the operator has made.
        ("$JS.API.CONSUMER.CREATE.STEPCAST_EVENTS.reader", &[]),
        ("$JS.API.CONSUMER.CREATE.STEPCAST_EVENTS.reader.filter", &[]),
        ("$JS.API.CONSUMER.DURABLE.CREATE.STEPCAST_EVENTS.reader", &[]),
        ("$JS.API.CONSUMER.DELETE.STEPCAST_EVENTS.reader", &[]),
        ("$JS.API.CONSUMER.MSG.NEXT.STEPCAST_EVENTS.reader", &["reader"]),
        ("$JS.ACK.STEPCAST_EVENTS.reader.1.1.1.1.1", &["api", "reader"]),
        ("$JS.ACK.domain.account.STEPCAST_EVENTS.reader.1.1.1.1.1", &["api", "reader"]),
        // An answer, which only an api gives.
        ("_INBOX.poller.x.y", &["api"]),
        ("anything.else", &[]),
    ] {
        writes.push((subject.to_owned(), authors));
    }
    writes
}

#[tokio::test]
async fn each_service_writes_what_is_its_own_and_nothing_else() {
    let bus = Bus::single().await.unwrap();
    for name in ["api", "poller", "gateway", "reader"] {
        let mut user = User::connect(&bus, name).await;
        for (subject, authors) in writes() {
            assert_eq!(
                user.may_publish(&subject).await,
                authors.contains(&name),
                "{name} publishes on {subject}"
            );
        }
    }
    let mut operator = User::connect(&bus, "operator").await;
    for (subject, _) in writes() {
        assert!(operator.may_publish(&subject).await, "an operator publishes on {subject}");
    }
}

#[tokio::test]
async fn each_service_hears_what_concerns_it_and_nobody_hears_anothers_answers() {
    let bus = Bus::single().await.unwrap();
    let all = ["api", "poller", "gateway", "reader"];
    for name in all {
        let mut user = User::connect(&bus, name).await;
        for (subject, listeners) in [
            (format!("stepcast.v1.job.{JOB}.*"), &["api", "gateway", "reader"][..]),
            ("stepcast.v1.job.>".to_owned(), &["gateway", "reader"]),
            // As published, before it is known to be recorded.
            (format!("stepcast.v1.event.{JOB}.completed"), &[]),
            ("stepcast.v1.rpc.claim".to_owned(), &["api"]),
            ("stepcast.v1.backend.*".to_owned(), &["api", "gateway", "reader"]),
            ("stepcast.v1.wake.default".to_owned(), &["poller"]),
            ("stepcast.v1.control.some-job".to_owned(), &["poller"]),
            ("_INBOX.>".to_owned(), &[]),
            (">".to_owned(), &[]),
        ] {
            assert_eq!(
                user.may_subscribe(&subject).await,
                listeners.contains(&name),
                "{name} hears {subject}"
            );
        }
        for other in all {
            let subject = format!("_INBOX.{other}.>");
            assert_eq!(user.may_subscribe(&subject).await, other == name, "{name} hears {subject}");
        }
    }
}

#[tokio::test]
async fn who_may_not_make_streams_waits_for_who_may() {
    let bus = Bus::single().await.unwrap();
    let connect = async |user: &'static str| nats::connect(user, &bus.login(user)).await.unwrap();
    let (gateway, poller, api) = (connect("gateway").await, connect("poller").await, connect("api").await);
    let later = async {
        until("both were refused", async || {
            let refused = bus.violations();
            let of = |user| refused.iter().any(|line| line.contains(&format!("/user:{user}\"")));
            (of("gateway") && of("poller")).then_some(())
        })
        .await;
        nats::prepare(&api).await
    };
    let prepared = async { tokio::join!(nats::prepare_to_read(&gateway), nats::prepare(&poller), later) };
    let (gateway, poller, api) = within("all are prepared", prepared).await;
    assert!(gateway.is_ok() && poller.is_ok() && api.is_ok(), "{gateway:?} {poller:?} {api:?}");
}

#[tokio::test]
async fn nobody_gets_in_without_a_password() {
    let bus = Bus::single().await.unwrap();
    for login in ["{}", r#"{"user":"gateway","pass":""}"#, r#"{"user":"gateway","pass":"api-0123"}"#] {
        let mut stream = BufReader::new(TcpStream::connect(bus.address()).await.unwrap());
        let mut said = String::new();
        within("the server introduces itself", stream.read_line(&mut said)).await.unwrap();
        stream.get_mut().write_all(format!("CONNECT {login}\r\nPING\r\n").as_bytes()).await.unwrap();
        said.clear();
        within("the server answers", stream.read_line(&mut said)).await.unwrap();
        assert!(said.contains("Authorization Violation"), "{login}: {said}");
    }
}
