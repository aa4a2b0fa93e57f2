//! A database that is locked, away, or gone without a word: told within a bound, nothing lost, no restart.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sqlx::{Connection as _, Executor as _};
use stepcast_sdnext_sim::Fault;
use stepcast_tests::postgres::{Postgres, url_behind};
use stepcast_tests::proxy::{Mode, Proxy};
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use stepcast_tests::wait::{until, within};
use tokio::sync::watch;

use crate::outage::{
    ANSWERED_WITHIN, SUBMIT, assert_image, assert_try_later, let_go, rows, small, with_priority,
};

/// Longer than SQLite waits for a lock.
const LOCKED_FOR: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_locked_database_is_told_within_a_bound_and_goes_on_once_it_is_free() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    sim.handle.arm(Fault::Hang, 1);
    let rendering = http.submit(&small("while it is locked")).await;
    until("it renders", async || sim.truth().running).await;

    sqlx::any::install_default_drivers();
    let mut lock = sqlx::AnyConnection::connect(&stack.database_url()).await.unwrap();
    lock.execute("BEGIN EXCLUSIVE").await.unwrap();
    let locked = Instant::now();
    let_go(&sim).await;
    let answers = join_all((0..5).map(async |n| {
        let asked = Instant::now();
        let answer = http.post(SUBMIT, &small(&format!("refused {n}"))).await;
        (answer, asked.elapsed())
    }));
    let reading = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        http.get("/generation/jobs").await
    };
    let (answers, read) = tokio::join!(answers, reading);
    assert_eq!(read.status, 200, "what is there can still be read");
    for (answer, took) in &answers {
        assert_try_later(answer, "database-unavailable");
        assert!(*took < ANSWERED_WITHIN, "{took:?}");
    }
    tokio::time::sleep(LOCKED_FOR.saturating_sub(locked.elapsed())).await;
    lock.execute("COMMIT").await.unwrap();

    let after = until("submits are taken again", async || {
        let answer = http.post(SUBMIT, &small("after")).await;
        (answer.status == 202).then(|| answer.json["job_id"].as_str().unwrap().to_owned())
    })
    .await;
    for id in [&rendering, &after] {
        let job = http.ended(id).await;
        assert_image(&http, &job).await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
    assert_eq!((rows(&stack.database_url(), "jobs").await, sim.truth().renders_started), (2, 2));
}

#[tokio::test]
async fn a_postgres_that_is_stopped_and_started_again_loses_and_doubles_nothing() {
    let Some(mut postgres) = Postgres::start().await.unwrap() else { return };
    let sims = [
        Sim::start(Duration::from_millis(100)).await.unwrap(),
        Sim::start(Duration::from_millis(100)).await.unwrap(),
    ];
    let setup = Setup { database_url: Some(postgres.url()), ..Setup::default() };
    let backends = [("one", sims[0].url()), ("two", sims[1].url())];
    let mut stack = Stack::start_on(setup, &backends).await.unwrap();
    let (_other, other_http) = stack.another_api().await.unwrap();
    let apis = [stack.http(), other_http];
    let mut accepted = Vec::new();
    for n in 0..8 {
        accepted.push(apis[n % 2].submit(&small(&format!("before {n}"))).await);
    }
    until("both render", async || sims.iter().all(|sim| sim.truth().running.is_some()).then_some(())).await;

    postgres.stop().await;
    for http in &apis {
        let asked = Instant::now();
        assert_try_later(&http.post(SUBMIT, &small("refused")).await, "database-unavailable");
        assert_try_later(&http.get("/generation/jobs").await, "database-unavailable");
        assert!(asked.elapsed() < 2 * ANSWERED_WITHIN);
        until("it is not ready", async || (http.get("/health/ready").await.status == 503).then_some(()))
            .await;
        assert_eq!(http.get("/health/live").await.status, 200, "a restart of ours would not help");
    }
    postgres.start_again().await.unwrap();

    for (n, http) in apis.iter().enumerate() {
        accepted.push(
            until("submits are taken again", async || {
                let answer = http.post(SUBMIT, &small(&format!("after {n}"))).await;
                (answer.status == 202).then(|| answer.json["job_id"].as_str().unwrap().to_owned())
            })
            .await,
        );
        until("it is ready", async || (http.get("/health/ready").await.status == 200).then_some(())).await;
    }
    for id in &accepted {
        let job = apis[0].ended(id).await;
        assert_image(&apis[1], &job).await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
    assert_eq!(rows(&stack.database_url(), "jobs").await, 10);
    assert_eq!(sims.iter().map(|sim| sim.truth().renders_started).sum::<u64>(), 10, "each was rendered once");
    until("the outbox is empty", async || (rows(&stack.database_url(), "outbox").await == 0).then_some(()))
        .await;
    assert!(stack.api.is_running() && stack.poller.is_running());
}

#[tokio::test]
async fn a_postgres_that_says_nothing_is_given_up_within_a_bound() {
    let Some(postgres) = Postgres::start().await.unwrap() else { return };
    let link = Proxy::to(&postgres.address()).await.unwrap();
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let setup = Setup { database_url: Some(url_behind(&link.address())), ..Setup::default() };
    let mut stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    sim.handle.arm(Fault::Hang, 1);
    let rendering = http.submit(&small("meanwhile")).await;
    until("it renders", async || sim.truth().running).await;

    link.set(Mode::Stall);
    let_go(&sim).await;
    let answers = join_all((0..20).map(async |n| {
        let asked = Instant::now();
        let answer = match n % 3 {
            0 => http.post(SUBMIT, &small(&format!("refused {n}"))).await,
            1 => http.get("/generation/jobs").await,
            _ => http.get(&format!("/generation/jobs/{rendering}")).await,
        };
        (answer, asked.elapsed())
    }));
    for (answer, took) in answers.await {
        assert_try_later(&answer, "database-unavailable");
        assert!(took < ANSWERED_WITHIN, "{took:?}");
    }
    until("it is not ready", async || (http.get("/health/ready").await.status == 503).then_some(())).await;
    // What was under way is lost for good: the ends of these connections never meet again.
    link.set(Mode::Cut);
    tokio::time::sleep(Duration::from_millis(200)).await;
    link.set(Mode::Pass);

    let after = until("submits are taken again", async || {
        let answer = http.post(SUBMIT, &small("after")).await;
        (answer.status == 202).then(|| answer.json["job_id"].as_str().unwrap().to_owned())
    })
    .await;
    for id in [&rendering, &after] {
        let job = http.ended(id).await;
        assert_image(&http, &job).await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
    assert_eq!((rows(&postgres.url(), "jobs").await, sim.truth().renders_started), (2, 2));
    assert!(stack.api.is_running());
}

#[tokio::test]
async fn connections_to_postgres_that_died_without_a_word_are_replaced() {
    let Some(postgres) = Postgres::start().await.unwrap() else { return };
    let link = Proxy::to(&postgres.address()).await.unwrap();
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let setup = Setup { database_url: Some(url_behind(&link.address())), ..Setup::default() };
    let mut stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let waits = with_priority(&small("many"), "low");
    // So many that every connection is in the midst of a statement when it dies.
    let answered = watch::Sender::new(0_u64);
    let client = async || {
        loop {
            let list = http.get("/generation/jobs?limit=500");
            let (submitted, _) = tokio::join!(http.post(SUBMIT, &waits), list);
            if submitted.status == 202 {
                answered.send_modify(|answered| *answered += 1);
            }
        }
    };
    let clients = join_all((0..24).map(|_| client()));
    let watched = async {
        let mut seen = answered.subscribe();
        within("they are busy", seen.wait_for(|answered| *answered > 200)).await.unwrap();
        link.forget();
        let forgotten = Instant::now();
        let before = *answered.borrow();
        within("they are answered again", seen.wait_for(|answered| *answered > before + 200)).await.unwrap();
        forgotten.elapsed()
    };
    let took = tokio::select! {
        never = clients => panic!("{never:?} clients never end"),
        took = watched => took,
    };
    assert!(took < 2 * ANSWERED_WITHIN, "{took:?}");
    let last = http.submit(&with_priority(&small("last"), "high")).await;
    assert_image(&http, &http.ended(&last).await).await;
    assert!(stack.api.is_running());
}
