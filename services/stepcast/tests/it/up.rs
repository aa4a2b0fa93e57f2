//! `up`: started, stopped, killed, and started again.

use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use rustix::process::Signal;
use stepcast_sdnext_sim as sim;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::harness::{DEADLINE, Up, nats_is_gone, output, send, stepcast, text};

#[tokio::test]
async fn a_job_survives_a_clean_restart_on_the_same_data_directory() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(data.path(), &["--demo"]).await;
    // 2 s in the open; ten times that on a machine that compiles at the same time.
    assert!(up.took < Duration::from_secs(20), "{:?}", up.took);
    assert_eq!(up.ready["backends"][0]["id"], "demo-fast");
    assert_eq!(up.ready["backends"][1]["reached"], true);
    let job = up.submit(&["a lighthouse", "--steps", "4", "--backend", "demo-fast"]).await;
    up.wait_for(&job, "completed").await;
    let nats = up.nats_pid();
    up.stop().await;
    nats_is_gone(nats).await;

    let up = Up::start(data.path(), &["--demo"]).await;
    let known = up.job(&job).await;
    assert_eq!(
        (&known["status"], &known["images"][0]),
        (&"completed".into(), &format!("/generation/jobs/{job}/images/0").into())
    );
    let next = up.submit(&["another", "--steps", "4", "--backend", "demo-fast"]).await;
    up.wait_for(&next, "completed").await;
    up.stop().await;
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused_with_its_holder() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(data.path(), &["--demo"]).await;
    let second =
        output(stepcast().args(["up", "--demo", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data.path()))
            .await;
    assert_eq!(second.status.code(), Some(1));
    let words = text(&second.stderr);
    assert!(words.contains(up.url()), "{words}");
    assert!(words.contains(&format!("process {}", up.ready["pid"])), "{words}");
    up.stop().await;
}

#[tokio::test]
async fn a_killed_parent_takes_its_nats_server_along() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(data.path(), &["--demo"]).await;
    let nats = up.nats_pid();
    let job = up.submit(&["slow", "--steps", "100", "--backend", "demo-slow"]).await;
    up.wait_for(&job, "running").await;
    up.signal(Signal::KILL);
    assert_eq!(up.ended().await.0, None, "killed by the signal");
    nats_is_gone(nats).await;
    // What was accepted is not lost, and can still be ended.
    let up = Up::start(data.path(), &["--demo"]).await;
    let cancelled = up.client(&["cancel", &job]).await;
    assert!(cancelled.status.success(), "{cancelled:?}");
    let known = up.job(&job).await;
    assert!(known["cancelling"] == true || known["status"] == "cancelled", "{known}");
    up.stop().await;
}

#[tokio::test]
async fn a_nats_server_that_dies_ends_the_process_with_an_error() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(data.path(), &["--demo", "--shutdown-grace", "2s"]).await;
    send(up.nats_pid(), Signal::KILL);
    let (code, errors) = up.ended().await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("nats-server ended by itself"), "{errors}");
}

#[tokio::test]
async fn a_leftover_nats_server_is_stopped_first() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(data.path(), &["--demo"]).await;
    let program = up.nats_program();
    up.stop().await;
    let folder = data.path().canonicalize().unwrap().join("nats");
    let pid_file = folder.join("nats-server.pid");
    let mut leftover = std::process::Command::new(program);
    leftover.arg0("nats-server").arg("-c").arg(folder.join("nats-server.conf"));
    let mut leftover = tokio::process::Command::from(leftover).kill_on_drop(true).spawn().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !pid_file.exists() {
        assert!(Instant::now() < deadline, "the leftover does not start");
        sleep(Duration::from_millis(20)).await;
    }
    let up = Up::start(data.path(), &["--demo"]).await;
    timeout(DEADLINE, leftover.wait()).await.expect("the leftover is stopped").unwrap();
    up.stop().await;
}

#[tokio::test]
async fn an_sdnext_that_appears_later_is_put_to_work() {
    let data = tempfile::tempdir().unwrap();
    let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let up = Up::start(data.path(), &["--sdnext", &format!("gpu=http://{address}")]).await;
    assert_eq!(up.ready["backends"][0]["reached"], false);
    let job = up.submit(&["patience", "--steps", "2"]).await;
    assert_eq!(up.job(&job).await["status"], "pending");

    let stop = CancellationToken::new();
    let listener = TcpListener::bind(address).await.unwrap();
    let config = sim::Config { time_scale: 0.1, ..sim::Config::default() };
    let simulator = sim::start(config, listener, stop.clone());
    let work = async {
        up.wait_for(&job, "completed").await;
        up.stop().await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(simulator, work);
    served.unwrap();
}

#[tokio::test]
async fn what_cannot_be_started_is_said_in_a_sentence() {
    let data = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (arguments, code, words) in [
        (vec!["--listen", &address], 1, "another program listens on"),
        (vec!["--listen", "0.0.0.0:0"], 2, "--allow-anonymous"),
        (
            vec!["--listen", "127.0.0.1:0", "--nats-server", "/nowhere/nats-server"],
            1,
            "there is no nats-server at",
        ),
        (vec!["--listen", "127.0.0.1:0", "--nats-server", "/bin/echo"], 1, "is it a nats-server?"),
    ] {
        let refused =
            output(stepcast().args(["up", "--demo", "--data-dir"]).arg(data.path()).args(&arguments)).await;
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}");
        assert!(text(&refused.stderr).contains(words), "{arguments:?}: {}", text(&refused.stderr));
    }
}
