//! What each user of NATS may do, tried on a server with the configuration of the deployment.

use async_nats::jetstream::consumer::pull;
use async_nats::{Client, HeaderMap, jetstream};
use futures_util::StreamExt as _;
use stepcast_shared::nats;
use stepcast_tests::bus::{Bus, password};
use stepcast_tests::wait::{until, within};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

const JOB: &str = "default.01999999-0000-7000-8000-000000000000";
const EVENTS: &str = "STEPCAST_EVENTS";
/// Everything that is stored.
const STREAMS: [&str; 5] =
    [EVENTS, "STEPCAST_BACKENDS", "STEPCAST_DEAD", "KV_stepcast_leases", "KV_stepcast_inflight"];

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

    /// What it is told, up to this line.
    async fn told(&mut self, last: &str) -> Vec<String> {
        let mut lines = vec![self.line().await];
        while lines.last().is_some_and(|line| line != last) {
            lines.push(self.line().await);
        }
        lines
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
        // Neither form may be taken for the other, in which it would be another's consumer.
        ("$JS.ACK.STEPCAST_EVENTS.api-projector.STEPCAST_EVENTS.reader.1.1.1", &["api"]),
        ("$JS.ACK.STEPCAST_EVENTS.reader.STEPCAST_EVENTS.api-projector.1.1.1.1.1", &["api"]),
        // An answer, which only an api gives: in its own account, and to another.
        ("_INBOX.poller.x.y", &["api"]),
        ("_R_.x.y", &["api"]),
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
    let (gateway, poller) = (connect(&bus, "gateway").await, connect(&bus, "poller").await);
    let api = connect(&bus, "api").await;
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

async fn connect(bus: &Bus, user: &'static str) -> Client {
    nats::connect(user, &bus.login(user)).await.unwrap()
}

/// A server with a recorded event, and a consumer from which a reader may take it.
struct Stage {
    bus: Bus,
    operator: Client,
    context: jetstream::Context,
}

impl Stage {
    async fn set() -> Self {
        let bus = Bus::single().await.unwrap();
        nats::prepare(&connect(&bus, "api").await).await.unwrap();
        let operator = connect(&bus, "operator").await;
        let context = jetstream::new(operator.clone());
        let reader = pull::Config { durable_name: Some("reader".to_owned()), ..pull::Config::default() };
        context.get_stream(EVENTS).await.unwrap().create_consumer(reader).await.unwrap();
        // One for each question for the next, should it be sent to nobody, and one more.
        for _ in 0..=TARGETS.len() {
            let event = context.publish(format!("stepcast.v1.event.{JOB}.queued"), "{}".into()).await;
            event.unwrap().await.unwrap();
        }
        Self { bus, operator, context }
    }

    /// How far each stream has come.
    async fn stored(&self) -> Vec<u64> {
        let mut stored = Vec::new();
        for name in STREAMS {
            let stream = self.context.get_stream(name).await.unwrap();
            stored.push(stream.cached_info().state.last_sequence);
        }
        stored
    }

    /// Asks as this user, and with its own inbox, all that a stream can be asked.
    async fn is_answered(&self, user: &'static str) {
        let client = connect(&self.bus, user).await;
        let subjects = [format!("stepcast.v1.event.{JOB}.queued")];
        assert_eq!(nats::multi_last(&client, EVENTS, &subjects, None).await.unwrap().len(), 1, "{user}");
        assert!(nats::newest(&client, EVENTS, &subjects[0]).await.unwrap().place > 0, "{user}");
        if user == "reader" {
            let stream = jetstream::new(client).get_stream(EVENTS).await.unwrap();
            stream.direct_get_last_for_subject(&subjects[0]).await.unwrap();
            let consumer = stream.get_consumer::<pull::Config>("reader").await.unwrap();
            let mut messages = consumer.fetch().max_messages(1).messages().await.unwrap();
            let next = within("the next event comes", messages.next()).await.unwrap().unwrap();
            assert_eq!(next.subject.as_str(), format!("stepcast.v1.event.{JOB}.queued"));
            within("the acknowledgement is taken", next.double_ack()).await.unwrap();
        }
    }
}

/// Where nobody but its author is to write: a lease, an event, an answer to somebody else, what is live, an order.
const TARGETS: [&str; 5] = [
    "$KV.stepcast_leases.gpu",
    "stepcast.v1.event.default.01999999-0000-7000-8000-000000000000.completed",
    "_INBOX.poller.x",
    "stepcast.v1.job.default.01999999-0000-7000-8000-000000000000.completed",
    "stepcast.v1.wake.default",
];

/// What a user may ask the server, which answers wherever it is told to.
fn questions(user: &str) -> Vec<(String, String)> {
    let event = format!("stepcast.v1.event.{JOB}.queued");
    let mut questions = vec![
        (format!("$JS.API.DIRECT.GET.{EVENTS}"), format!(r#"{{"last_by_subj":"{event}"}}"#)),
        (format!("$JS.API.STREAM.INFO.{EVENTS}"), String::new()),
        (format!("$JS.API.STREAM.MSG.GET.{EVENTS}"), format!(r#"{{"last_by_subj":"{event}"}}"#)),
    ];
    if user == "reader" {
        questions.push((format!("$JS.API.DIRECT.GET.{EVENTS}.{event}"), String::new()));
        questions.push((format!("$JS.API.CONSUMER.INFO.{EVENTS}.reader"), String::new()));
        questions.push((format!("$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.reader"), "1".to_owned()));
    }
    questions
}

/// Asks whatever may be asked, each time with somebody else's subject for the answer.
async fn has_nothing_sent_to_others(name: &'static str) {
    let stage = Stage::set().await;
    let mut heard = stage.operator.subscribe(">").await.unwrap();
    let before = stage.stored().await;
    let mut user = User::connect(&stage.bus, name).await;
    for target in TARGETS {
        for (question, payload) in questions(name) {
            let words = format!("PUB {question} {target} {}\r\n{payload}", payload.len());
            assert!(user.may(&words).await, "{name} may ask {question}");
        }
    }
    // These are answered after those before.
    stage.is_answered(name).await;
    assert_eq!(stage.stored().await, before, "{name} had something stored in one of {STREAMS:?}");
    stage.operator.publish("that-is-all", "".into()).await.unwrap();
    loop {
        let message = within("all is heard", heard.next()).await.unwrap();
        if message.subject.as_str() == "that-is-all" {
            break;
        }
        assert!(!TARGETS.contains(&message.subject.as_str()), "{name} had this sent: {message:?}");
    }
}

#[tokio::test]
async fn a_reader_cannot_have_answers_sent_where_it_may_not_write() {
    has_nothing_sent_to_others("reader").await;
}

#[tokio::test]
async fn a_gateway_cannot_have_answers_sent_where_it_may_not_write() {
    has_nothing_sent_to_others("gateway").await;
}

#[tokio::test]
async fn what_is_live_comes_into_other_accounts_as_it_was_said() {
    let stage = Stage::set().await;
    let (api, poller) = (connect(&stage.bus, "api").await, connect(&stage.bus, "poller").await);
    let headers = || HeaderMap::from_iter([("Stepcast-Seq".parse().unwrap(), "1.2".parse().unwrap())]);
    let say = async |subject: String, payload: &'static str| {
        poller.publish_with_headers(subject, headers(), payload.into()).await.unwrap();
    };
    // In the account in which it is said, and in the others.
    let mut listeners = Vec::new();
    for name in ["operator", "gateway", "reader"] {
        let mut user = User::connect(&stage.bus, name).await;
        assert_eq!(user.say(&format!("SUB stepcast.v1.job.{JOB}.* 1")).await, "+OK");
        assert_eq!(user.say("SUB stepcast.v1.backend.* 2").await, "+OK");
        listeners.push(user);
    }
    let context = jetstream::new(api);
    let event = format!("stepcast.v1.event.{JOB}.queued");
    context.publish_with_headers(event, headers(), "recorded".into()).await.unwrap().await.unwrap();
    let mut told = Vec::new();
    for user in &mut listeners {
        told.push(user.told("recorded").await);
    }
    say(format!("stepcast.v1.job.{JOB}.progress"), "half").await;
    say("stepcast.v1.backend.gpu".to_owned(), "busy").await;
    for (user, told) in listeners.iter_mut().zip(&mut told) {
        told.extend(user.told("busy").await);
        assert_eq!(user.say("UNSUB 1").await, "+OK");
    }
    for subject in
        [format!("job.{JOB}.queued 1 "), format!("job.{JOB}.progress 1 "), "backend.gpu 2 ".to_owned()]
    {
        let said = format!("HMSG stepcast.v1.{subject}");
        assert_eq!(told[0].iter().filter(|line| line.starts_with(&said)).count(), 1, "{told:#?}");
    }
    assert_eq!(told[0].iter().filter(|line| *line == "Stepcast-Seq: 1.2").count(), 3, "{told:#?}");
    assert!(told.iter().all(|others| *others == told[0]), "{told:#?}");

    // A job that is no longer listened to is not heard of, the rest still is.
    say(format!("stepcast.v1.job.{JOB}.progress"), "all").await;
    say("stepcast.v1.backend.gpu".to_owned(), "idle").await;
    for user in &mut listeners {
        let told = user.told("idle").await;
        assert!(told[0].starts_with("HMSG stepcast.v1.backend.gpu 2 "), "{}: {told:#?}", user.name);
    }
}

#[tokio::test]
async fn what_a_gateway_asks_and_says_comes_to_whom_it_concerns() {
    let bus = Bus::single().await.unwrap();
    let (api, poller) = (connect(&bus, "api").await, connect(&bus, "poller").await);
    let gateway = connect(&bus, "gateway").await;
    let ask = || gateway.request("stepcast.v1.rpc.last", "which?".into());
    // At once, not only when it has waited long enough.
    let nobody = ask().await.unwrap_err();
    assert_eq!(nobody.kind(), async_nats::RequestErrorKind::NoResponders, "{nobody}");

    let mut questions = api.subscribe("stepcast.v1.rpc.*").await.unwrap();
    let mut demands = poller.subscribe("stepcast.v1.demand.*").await.unwrap();
    for client in [&api, &poller] {
        // Once the server answers, it knows what was subscribed to before.
        nats::inspect::user(client).await.unwrap();
    }
    let answering = async {
        let question = questions.next().await.unwrap();
        assert_eq!(
            (question.subject.as_str(), &question.payload[..]),
            ("stepcast.v1.rpc.last", &b"which?"[..])
        );
        let headers = HeaderMap::from_iter([("A".parse().unwrap(), "b".parse().unwrap())]);
        api.publish_with_headers(question.reply.unwrap(), headers, "these".into()).await.unwrap();
    };
    let (answer, ()) = within("it is answered", async { tokio::join!(ask(), answering) }).await;
    let answer = answer.unwrap();
    assert_eq!(
        (&answer.payload[..], answer.headers.unwrap().get("A").unwrap().as_str()),
        (&b"these"[..], "b")
    );
    gateway.publish("stepcast.v1.demand.some-job", "now".into()).await.unwrap();
    let demand = within("it is heard", demands.next()).await.unwrap();
    assert_eq!((demand.subject.as_str(), &demand.payload[..]), ("stepcast.v1.demand.some-job", &b"now"[..]));
    assert_eq!(bus.violations(), [""; 0]);
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
