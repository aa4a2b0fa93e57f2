//! What `up` shows: one screen once it is ready, and a line when a backend comes or goes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::{BackendCondition, BackendState};

/// Everything that runs, and where. Its JSON form is what `up --json` prints: a contract with scripts.
#[derive(Debug, Serialize)]
pub struct Screen {
    /// `ready`.
    pub event: &'static str,
    /// Of this program.
    pub version: &'static str,
    /// Of this process.
    pub pid: u32,
    /// The one origin, without a slash at its end.
    pub url: String,
    /// The API's documentation.
    pub docs: String,
    /// Live progress.
    pub websocket: String,
    /// What is truly listened on.
    pub listen: SocketAddr,
    /// The NATS server.
    pub nats_url: String,
    /// Its process, if it is ours.
    pub nats_pid: Option<u32>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where rows are kept, without credentials.
    pub database: String,
    /// Where images are kept.
    pub images: String,
    /// Whether the backends are simulated.
    pub demo: bool,
    /// The backends.
    pub backends: Vec<BackendLine>,
}

/// A backend on the screen.
#[derive(Debug, Serialize)]
pub struct BackendLine {
    /// Its name.
    pub id: BackendId,
    /// Its address, without credentials.
    pub url: String,
    /// Whether it answered.
    pub reached: bool,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// Where a browser on this machine finds a server that listens on `address`.
pub fn origin(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

impl Screen {
    /// The screen for people.
    pub fn text(&self) -> String {
        let mut text = format!("Stepcast {} is ready", self.version);
        if self.demo {
            text.push_str(" (demo: the backends are simulated)");
        }
        text.push_str("\n\n");
        let mut row = |name: &str, value: &str| {
            let _ = writeln!(text, "  {name:<11} {value}");
        };
        row("Page", &format!("{}/", self.url));
        row("API docs", &self.docs);
        row("WebSocket", &self.websocket);
        if !self.listen.ip().is_loopback() {
            row("Listens on", &format!("{}: anybody who reaches it may use it", self.listen));
        }
        let width = self.backends.iter().map(|backend| backend.id.as_str().len()).max().unwrap_or(0);
        for (index, backend) in self.backends.iter().enumerate() {
            let name = ["Backends", ""][index.min(1)];
            row(name, &format!("{:<width$}  {}  {}", backend.id.as_str(), backend.url, backend.state()));
        }
        let child = self.nats_pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
        row("NATS", &format!("{}{child}", self.nats_url));
        row("Data", &self.data_dir.display().to_string());
        text.push_str(&self.what_next());
        text
    }

    fn what_next(&self) -> String {
        let server = match self.url.as_str() {
            "http://127.0.0.1:8000" => String::new(),
            url => format!(" --server {url}"),
        };
        let mut text = String::new();
        if self.backends.iter().all(|backend| !backend.reached) {
            text.push_str(
                "\nNo backend answers yet. Jobs are accepted and wait; work begins when one appears.\n",
            );
            if !self.demo {
                text.push_str("No SD.Next at hand? Try `stepcast up --demo`.\n");
            }
        }
        let _ = write!(
            text,
            "\nTry this\n\
             \x20 stepcast submit \"a lighthouse at dusk\" --watch{server}\n\
             \x20 curl {}/generation/queue-generation -d '{{\"prompt\": \"a lighthouse at dusk\"}}'\n\
             \x20 stepcast watch --all{server}\n\
             \nCtrl-C stops",
            self.url
        );
        text
    }
}

impl BackendLine {
    fn state(&self) -> String {
        match (&self.problem, self.reached) {
            (Some(problem), _) => problem.clone(),
            (None, true) => "reached".to_owned(),
            (None, false) => "not reachable yet: waiting for it".to_owned(),
        }
    }
}

/// Tells when a backend comes or goes, and nothing else.
#[derive(Debug)]
pub struct Comings(BTreeMap<BackendId, bool>);

impl Comings {
    /// Begins from what the screen said.
    pub fn new(backends: &[BackendLine]) -> Self {
        Self(backends.iter().map(|backend| (backend.id.clone(), backend.reached)).collect())
    }

    /// A line, if the backend has come or gone.
    pub fn note(&mut self, state: &BackendState) -> Option<String> {
        let there = state.state != BackendCondition::Down;
        let was_there = self.0.insert(state.id.clone(), there);
        if was_there == Some(there) {
            return None;
        }
        if there {
            return Some(format!("{} at {} is there", state.id, state.url));
        }
        let why = state.message.as_deref().map(|message| format!(" ({message})")).unwrap_or_default();
        Some(format!("{} at {} cannot be reached{why}: jobs wait for it", state.id, state.url))
    }
}

#[cfg(test)]
mod tests {
    use stepcast_shared::messages::Timestamp;

    use super::*;

    fn screen(listen: &str, reached: bool) -> Screen {
        let listen = listen.parse().unwrap();
        let url = origin(listen);
        let backend = BackendLine {
            id: "gpu".parse().unwrap(),
            url: "http://10.0.0.1:7860/".to_owned(),
            reached,
            problem: None,
        };
        Screen {
            event: "ready",
            version: "1",
            pid: 1,
            docs: format!("{url}/docs"),
            websocket: String::new(),
            url,
            listen,
            nats_url: "nats://127.0.0.1:4".to_owned(),
            nats_pid: None,
            data_dir: "/data".into(),
            database: String::new(),
            images: String::new(),
            demo: false,
            backends: vec![backend],
        }
    }

    #[test]
    fn an_unspecified_address_is_shown_as_one_that_a_browser_can_open() {
        assert_eq!(origin("0.0.0.0:80".parse().unwrap()), "http://127.0.0.1:80");
        assert_eq!(origin("[::]:80".parse().unwrap()), "http://[::1]:80");
        assert_eq!(origin("10.1.2.3:80".parse().unwrap()), "http://10.1.2.3:80");
    }

    #[test]
    fn the_screen_names_the_server_only_where_it_is_not_the_default() {
        assert!(!screen("127.0.0.1:8000", true).text().contains("--server"));
        assert!(screen("127.0.0.1:8001", true).text().contains("--watch --server http://127.0.0.1:8001"));
    }

    #[test]
    fn a_backend_that_is_away_is_said_to_be_waited_for() {
        let text = screen("127.0.0.1:8000", false).text();
        assert!(text.contains("gpu  http://10.0.0.1:7860/  not reachable yet"), "{text}");
        assert!(text.contains("work begins when one appears"), "{text}");
        assert!(!screen("127.0.0.1:8000", true).text().contains("No backend answers"));
    }

    #[test]
    fn only_coming_and_going_is_told() {
        let state = |state| BackendState {
            id: "gpu".parse().unwrap(),
            state,
            url: "http://x/".to_owned(),
            dialect: "sdnext".to_owned(),
            pools: Vec::new(),
            model: None,
            job_id: None,
            foreign: None,
            message: None,
            poller: "p".to_owned(),
            updated_at: Timestamp::from_millis(0),
        };
        let mut comings = Comings::new(&screen("127.0.0.1:8000", false).backends);
        assert_eq!(comings.note(&state(BackendCondition::Down)), None);
        assert!(comings.note(&state(BackendCondition::Idle)).unwrap().ends_with("is there"));
        assert_eq!(comings.note(&state(BackendCondition::Busy)), None);
        assert!(comings.note(&state(BackendCondition::Down)).unwrap().contains("cannot be reached"));
    }
}
