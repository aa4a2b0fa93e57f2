//! What holds of a SQLite file in particular: one api at a time, and other programs' locks waited for.

use std::time::{Duration, Instant};

use sqlx::{AnyConnection, Connection as _, Executor as _};
use stepcast_tests::stack::Stack;
use tokio::time::sleep;

#[tokio::test]
async fn a_second_api_on_a_sqlite_file_is_refused_in_a_sentence_and_starts_once_the_first_is_gone() {
    let mut stack = Stack::start(&[("away", "http://127.0.0.1:9".to_owned())]).await.unwrap();
    let id = stack.http().submit(&serde_json::json!({"prompt": "first"})).await;
    let Err(refused) = stack.another_api().await else { panic!("two apis use one file") };
    assert!(format!("{refused:#}").contains("a SQLite file serves one api"), "{refused:#}");
    assert_eq!(stack.http().job(&id).await["status"], "pending", "the first goes on");

    stack.api.signal(rustix::process::Signal::KILL);
    stack.api.end().await;
    stack.restart_api().await.unwrap();
    assert_eq!(stack.http().job(&id).await["status"], "pending", "a killed one keeps nobody off");
}

#[tokio::test]
async fn a_submit_waits_while_another_program_writes() {
    let stack = Stack::start(&[("away", "http://127.0.0.1:9".to_owned())]).await.unwrap();
    sqlx::any::install_default_drivers();
    let mut other = AnyConnection::connect(&stack.database_url()).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let held = Duration::from_secs(1);
    let begun = Instant::now();
    let writing = async {
        sleep(held).await;
        other.execute("UPDATE jobs SET label = 'seen'").await.unwrap();
        other.execute("COMMIT").await.unwrap();
    };
    // Ten that would each have read before they write, if they were let to.
    let submits = futures_util::future::join_all((0..10).map(|n| {
        let http = stack.http();
        async move { http.submit(&serde_json::json!({"prompt": format!("{n}")})).await }
    }));
    let (ids, ()) = tokio::join!(submits, writing);
    assert!(begun.elapsed() >= held, "they were stored after the other's commit");
    assert_eq!(ids.len(), 10);
}
