//! The configuration of our NATS server, and the files around it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

/// Where the server's files are.
#[derive(Clone, Debug)]
pub struct Files {
    /// Its configuration; also what a leftover server is known by.
    pub config: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its process id.
    pub pid: PathBuf,
    /// Where it tells its ports.
    pub ports: PathBuf,
    /// Streams and buckets.
    pub store: PathBuf,
}

/// Where a server can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For clients.
    pub nats: String,
    /// Where it says over HTTP how it is.
    pub monitoring: String,
}

impl Files {
    /// The files within `folder`.
    pub fn within(folder: &Path) -> Self {
        Self {
            config: folder.join("nats-server.conf"),
            log: folder.join("nats-server.log"),
            pid: folder.join("nats-server.pid"),
            ports: folder.join("ports"),
            store: folder.join("jetstream"),
        }
    }

    /// Writes the configuration of a server on this port, 0 for a free one, and forgets the ports of earlier servers.
    pub fn write(&self, port: u16) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.ports) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{} cannot be emptied", self.ports.display()));
            }
            _ => {}
        }
        fs::create_dir_all(&self.ports)
            .with_context(|| format!("{} cannot be made", self.ports.display()))?;
        fs::write(&self.config, self.text(port))
            .with_context(|| format!("{} cannot be written", self.config.display()))
    }

    fn text(&self, port: u16) -> String {
        let Self { log, pid, ports, store, .. } = self;
        let port = if port == 0 { "-1".to_owned() } else { port.to_string() };
        // An acknowledged event must outlive a power cut, and there is no second server that has it too.
        format!(
            r#"# Written by Stepcast at each start: changes do not last.
server_name: stepcast
host: "127.0.0.1"
port: {port}
http: "127.0.0.1:-1"
ports_file_dir: {ports}
pid_file: {pid}
log_file: {log}
logfile_size_limit: 10485760
logfile_max_num: 3
jetstream {{
  store_dir: {store}
  sync_interval: always
}}
"#,
            ports = quoted(ports),
            pid = quoted(pid),
            log = quoted(log),
            store = quoted(store),
        )
    }

    /// Where the server of process `pid` can be reached; `None` until it has told.
    pub fn addresses(&self, pid: u32) -> Option<Addresses> {
        #[derive(Deserialize)]
        struct Ports {
            nats: Vec<String>,
            monitoring: Vec<String>,
        }
        let text = fs::read(self.ports.join(format!("nats-server_{pid}.ports"))).ok()?;
        // Half a file does not parse, and is read again.
        let ports = serde_json::from_slice::<Ports>(&text).ok()?;
        Some(Addresses {
            nats: ports.nats.into_iter().next()?,
            monitoring: ports.monitoring.into_iter().next()?,
        })
    }

    /// The end of the log, for an error message.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

/// A path as a string of the configuration's own syntax.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_listens_here_alone_and_syncs_always() {
        let text = Files::within(Path::new("/data/nats")).text(0);
        for line in [
            "host: \"127.0.0.1\"",
            "port: -1",
            "http: \"127.0.0.1:-1\"",
            "ports_file_dir: \"/data/nats/ports\"",
            "  store_dir: \"/data/nats/jetstream\"",
            "  sync_interval: always",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        let again = Files::within(Path::new("/data/nats")).text(4222);
        assert!(again.lines().any(|line| line == "port: 4222"), "{again}");
    }

    #[test]
    fn a_path_cannot_end_its_own_string() {
        assert_eq!(quoted(Path::new(r#"/a "b"\c"#)), r#""/a \"b\"\\c""#);
    }

    #[test]
    fn the_address_is_read_once_it_is_whole_and_of_this_process() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::within(folder.path());
        fs::create_dir_all(folder.path()).unwrap();
        files.write(0).unwrap();
        let file = files.ports.join("nats-server_7.ports");
        assert_eq!(files.addresses(7), None);
        fs::write(&file, r#"{"nats":["nats://127"#).unwrap();
        assert_eq!(files.addresses(7), None);
        fs::write(&file, r#"{"nats":["nats://127.0.0.1:41"],"monitoring":["http://127.0.0.1:42"]}"#).unwrap();
        let (nats, monitoring) = ("nats://127.0.0.1:41".to_owned(), "http://127.0.0.1:42".to_owned());
        assert_eq!(files.addresses(7), Some(Addresses { nats, monitoring }));
        assert_eq!(files.addresses(8), None);
        files.write(0).unwrap();
        assert_eq!(files.addresses(7), None, "a new start forgets old ports");
    }
}
