//! The program itself: what it prints, and how it ends.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

async fn run() -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_stepcast-sdnext-sim"))
        .args(["--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    timeout(DEADLINE, output.read_line(&mut line)).await.expect("a line in time").expect("a line");
    let address = line.trim().strip_prefix("listening on ").expect("an address").to_owned();
    (child, address)
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

async fn exit_code(mut child: Child) -> Option<i32> {
    timeout(DEADLINE, child.wait()).await.expect("it ends").expect("it ran").code()
}

#[tokio::test]
async fn sigterm_ends_it_cleanly() {
    let (child, address) = run().await;
    let status = client().get(format!("{address}/sdapi/v1/status")).send().await.expect("it answers");
    assert_eq!(status.status(), 200);
    let id = child.id().expect("it runs").to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status().await.expect("a signal");
    assert!(sent.success());
    assert_eq!(exit_code(child).await, Some(0));
}

#[tokio::test]
async fn kill_ends_it_without_an_answer() {
    let (child, address) = run().await;
    let client = client();
    let request = client.post(format!("{address}/sdapi/v1/txt2img")).json(&serde_json::json!({"steps": 500}));
    let kill = async {
        let state = format!("{address}/sim/state");
        let running = async {
            loop {
                let text = client.get(&state).send().await.expect("it answers").text().await.expect("a body");
                if text.contains("\"renders_started\":1") {
                    break;
                }
            }
        };
        timeout(DEADLINE, running).await.expect("the job starts");
        // The answer to this may or may not get out.
        let _ = client.post(format!("{address}/sim/kill")).send().await;
    };
    let (answer, ()) = tokio::join!(request.send(), kill);
    assert!(answer.is_err(), "closed without an answer");
    assert_eq!(exit_code(child).await, Some(137));
}
