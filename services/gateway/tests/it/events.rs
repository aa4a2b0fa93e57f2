//! A reader of server-sent events that fails rather than waits for ever.

use serde_json::{Value, json};
use stepcast_shared::ids::JobId;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::stage::{PATIENCE, Stage};

/// A reader of `/sse/progress`.
pub struct Events {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
}

impl Events {
    /// Asks, and reads the head of the answer.
    pub async fn open(stage: &Stage, query: &str, last_event_id: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(stage.address).await.unwrap();
        let last = last_event_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request = format!("GET /sse/progress{query} HTTP/1.1\r\nHost: {}\r\n{last}\r\n", stage.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let status = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        Self { lines }
    }

    /// The next message, which must be of this type, and the id that stands with it.
    pub async fn expect(&mut self, kind: &str) -> (Option<String>, Value) {
        let mut id = None;
        loop {
            let line = timeout(PATIENCE, self.lines.next_line()).await.expect("a timely line").unwrap();
            let line = line.expect("the stream goes on");
            if let Some(value) = line.strip_prefix("id: ") {
                id = Some(value.to_owned());
            }
            if let Some(data) = line.strip_prefix("data: ") {
                let message: Value = serde_json::from_str(data).unwrap();
                assert_eq!(message["type"], kind, "{message}");
                return (id, message["data"].clone());
            }
        }
    }

    /// The next message, which must be of this type and of this job; returns the id that stands with it.
    pub async fn expect_of(&mut self, kind: &str, job: JobId) -> Option<String> {
        let (id, data) = self.expect(kind).await;
        assert_eq!(data["job_id"], json!(job));
        id
    }
}
