//! What a scenario needs around the gateway: NATS, a stand-in for api, and the gateway itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, HeaderMap, jetstream};
use clap::Parser as _;
use futures_util::StreamExt as _;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use stepcast_gateway::Config;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::messages::{Status, Timestamp};
use stepcast_shared::nats;
use stepcast_shared::problem::{FieldError, Problem};
use stepcast_shared::rpc::{self, Accepted, AcceptedUrls};
use stepcast_shared::shutdown::Supervisor;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

use crate::client::WsClient;
use crate::jobs::Job;
use crate::nats_server::NatsServer;

/// Longest wait for anything; far beyond what it takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Stage {
    pub nats: NatsServer,
    /// A connection of our own, as a poller would have.
    pub client: Client,
    pub context: jetstream::Context,
    pub api: FakeApi,
    pub supervisor: Supervisor,
    pub address: SocketAddr,
}

impl Stage {
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With more arguments for the gateway.
    pub async fn with(arguments: &[&str]) -> Self {
        let nats = NatsServer::start().await;
        let url = nats.url();
        Self::over(nats, &url, arguments).await
    }

    /// With a gateway that reaches NATS by another address.
    pub async fn over(nats: NatsServer, gateway_url: &str, arguments: &[&str]) -> Self {
        let client = nats::connect("test", &NatsConfig::at(nats.url())).await.unwrap();
        let context = nats::prepare(&client).await.unwrap();
        let api = FakeApi::start(client.clone()).await;
        let (address, supervisor) = serve_gateway(gateway_url, arguments).await;
        Self { nats, client, context, api, supervisor, address }
    }

    /// A client that has read its greeting.
    pub async fn connect(&self) -> WsClient {
        let mut client = WsClient::connect(self.address).await;
        client.expect("connected").await;
        client
    }

    /// A client that watches these jobs and has read the confirmation.
    pub async fn watch(&self, jobs: &[&Job]) -> WsClient {
        let mut client = self.connect().await;
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        client.say(&json!({"type": "subscribe", "job_ids": ids})).await;
        client.expect("subscription_confirmed").await;
        client
    }

    /// A client that watches all jobs and has read the confirmation.
    pub async fn watch_all(&self) -> WsClient {
        let mut client = self.connect().await;
        client.say(&json!({"type": "subscribe", "job_ids": null})).await;
        client.expect("subscription_confirmed").await;
        client
    }

    /// A job that nobody has heard of yet.
    pub fn job(&self) -> Job {
        Job::new(self.client.clone(), self.context.clone())
    }
}

/// Starts a gateway in this process, with a backlog for many that connect at once.
pub async fn serve_gateway(nats_url: &str, arguments: &[&str]) -> (SocketAddr, Supervisor) {
    // Small buffers, which the accepted sockets inherit, so that a client is soon behind if it does not read.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(8 * 1024).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: TcpListener = socket.listen(4_096).unwrap();
    let address = listener.local_addr().unwrap();
    let config = Config::parse_from(["gateway", "--nats-url", nats_url].iter().chain(arguments));
    let supervisor = Supervisor::new(Duration::from_secs(10));
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    stepcast_gateway::start(config, listener, metrics, &supervisor).await.unwrap();
    (address, supervisor)
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.supervisor.stop();
    }
}

/// Answers `stepcast.v1.rpc.*` from a few lists.
pub struct FakeApi {
    lists: Arc<Mutex<Lists>>,
    _task: JoinSet<()>,
}

#[derive(Default)]
pub struct Lists {
    /// Answer of `active`.
    pub active: Vec<JobId>,
    pub truncated: bool,
    /// Answer of `last`: place and envelope.
    pub last: HashMap<JobId, (String, String)>,
    /// What was submitted.
    pub submitted: Vec<Value>,
    /// How often statistics were asked for.
    pub counted: u32,
    /// Answers nothing.
    pub silent: bool,
}

impl FakeApi {
    async fn start(client: Client) -> Self {
        let lists = Arc::<Mutex<Lists>>::default();
        let mut requests =
            client.subscribe(format!("{}.*", stepcast_shared::subjects::RPC_PREFIX)).await.unwrap();
        // An answer says that the server has read the subscription; a flush of the client does not.
        nats::inspect::user(&client).await.unwrap();
        let mut task = JoinSet::new();
        let answering = Arc::clone(&lists);
        task.spawn(async move {
            while let Some(request) = requests.next().await {
                let name = request.subject.rsplit('.').next().unwrap().to_owned();
                let body = serde_json::from_slice(&request.payload).unwrap();
                let answer = answering.lock().unwrap().answer(&name, &body);
                let (Some(reply), Some(answer)) = (request.reply, answer) else { continue };
                let (headers, payload) = match answer {
                    Ok(value) => (HeaderMap::new(), serde_json::to_vec(&value).unwrap()),
                    Err(problem) => {
                        let mut headers = HeaderMap::new();
                        headers.insert("Nats-Service-Error-Code", problem.status.to_string().as_str());
                        headers.insert("Nats-Service-Error", problem.title.as_str());
                        (headers, serde_json::to_vec(&problem).unwrap())
                    }
                };
                client.publish_with_headers(reply, headers, payload.into()).await.unwrap();
            }
        });
        Self { lists, _task: task }
    }

    pub fn set(&self, change: impl FnOnce(&mut Lists)) {
        change(&mut self.lists.lock().unwrap());
    }

    pub fn counted(&self) -> u32 {
        self.lists.lock().unwrap().counted
    }

    pub fn submitted(&self) -> Vec<Value> {
        self.lists.lock().unwrap().submitted.clone()
    }
}

impl Lists {
    fn answer(&mut self, name: &str, body: &Value) -> Option<Result<Value, Problem>> {
        if self.silent {
            return None;
        }
        if name == rpc::STATS {
            self.counted += 1;
            return Some(Ok(
                json!({"at": Timestamp::now(), "window": body["window"], "count": self.counted}),
            ));
        }
        assert_eq!(body["owner"], json!(Owner::anonymous()));
        Some(match name {
            rpc::ACTIVE => Ok(json!({"jobs": self.active, "truncated": self.truncated})),
            rpc::LAST => {
                let asked: Vec<JobId> = serde_json::from_value(body["job_ids"].clone()).unwrap();
                let known = asked.iter().filter_map(|id| {
                    let (seq, envelope) = self.last.get(id)?;
                    let envelope: Value = serde_json::from_str(envelope).unwrap();
                    Some(json!({"job_id": id, "seq": seq, "envelope": envelope}))
                });
                Ok(json!({"jobs": known.collect::<Vec<_>>()}))
            }
            rpc::SUBMIT => self.submit(body["jobs"].as_array().unwrap()),
            rpc::CANCEL => {
                let asked = body["job_ids"].as_array().unwrap().iter();
                let outcomes = asked.map(|id| {
                    json!({"job_id": id, "success": true, "status": "cancelled", "message": "cancelled"})
                });
                Ok(json!({"jobs": outcomes.collect::<Vec<_>>()}))
            }
            other => panic!("nobody asks for {other}"),
        })
    }

    fn submit(&mut self, jobs: &[Value]) -> Result<Value, Problem> {
        if jobs.iter().any(|job| job["prompt"].is_null()) {
            return Err(Problem::new(422, "invalid-job", "Invalid job")
                .errors(vec![FieldError::new("/prompt", "is missing")]));
        }
        self.submitted.extend_from_slice(jobs);
        let accepted = jobs.iter().map(|_| {
            let job_id = JobId::mint();
            Accepted {
                job_id,
                delivery_id: job_id,
                status: Status::Pending,
                position: 1,
                urls: AcceptedUrls::of(job_id),
            }
        });
        Ok(json!({"jobs": accepted.collect::<Vec<_>>()}))
    }
}
