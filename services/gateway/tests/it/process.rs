//! The real binary: its exit, its health, its refusals.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::client::WsClient;
use crate::nats_server::NatsServer;
use crate::stage::PATIENCE;

pub fn gateway(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_stepcast-gateway"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Where it says that it serves.
pub async fn address(process: &mut Child) -> SocketAddr {
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, address)) = line.split_once("address=") {
                return address.trim().parse().unwrap();
            }
        }
        panic!("it ended without serving");
    };
    let address = timeout(PATIENCE, reading).await.expect("it serves in time");
    // Whatever else it says has somewhere to go.
    process.stderr = Some(lines.into_inner().into_inner());
    address
}

pub async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn asked_to_end_it_says_goodbye_and_ends_well() {
    let nats = NatsServer::start().await;
    let mut process = gateway(&["--listen", "127.0.0.1:0", "--nats-url", &nats.url()]);
    let address = address(&mut process).await;
    let mut client = WsClient::connect(address).await;
    client.expect("connected").await;
    assert!(get(address, "/health/ready").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/metrics").await.contains("stepcast_gateway_connections 1"));
    assert!(get(address, "/ws/progress").await.starts_with("HTTP/1.1 426"));

    let pid = process.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    client.expect("going_away").await;
    assert_eq!(client.close_code().await, CloseCode::Away);
    drop(client);
    let status = timeout(PATIENCE, process.wait()).await.expect("an end in time").unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn it_does_not_open_itself_to_others_unasked() {
    let nats = NatsServer::start().await;
    let process = gateway(&["--listen", "0.0.0.0:0", "--nats-url", &nats.url()]);
    let output = timeout(PATIENCE, process.wait_with_output()).await.expect("an end in time").unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--allow-anonymous"));
}
