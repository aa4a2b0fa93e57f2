//! A real PostgreSQL, one throw-away cluster per test.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use crate::authority::Authority;
use crate::process::Process;

/// How often a port may turn out to be taken between its choice and its use.
const TRIES: u32 = 5;
/// Of the one user. A cluster without TLS does not ask for it.
const PASSWORD: &str = "stepcast";
/// How long a cluster may take to let go of its shared memory.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A cluster on a free loopback port, with one empty database.
pub struct Postgres {
    process: Process,
    port: u16,
    programs: PathBuf,
    /// Who runs it, if that is not us.
    user: Option<(u32, u32)>,
    settings: Vec<String>,
    // Dropped after the process.
    folder: TempDir,
}

impl Postgres {
    /// Starts one, and waits until it takes connections.
    ///
    /// `None`, with a word about it, where PostgreSQL is not installed; in CI that is a failure. `.ci/install
    /// postgres` says it where it is seen, as the output of a test that passes is not.
    pub async fn start() -> anyhow::Result<Option<Self>> {
        // What is tested is what a statement does; a cluster that nobody keeps need not survive a power cut.
        Self::start_with(&["fsync=off"], None).await
    }

    /// As [`Postgres::start`], and what it has committed survives a power cut: for measurements.
    pub async fn start_durable() -> anyhow::Result<Option<Self>> {
        Self::start_with(&["fsync=on"], None).await
    }

    /// As [`Postgres::start`], and it lets in whom `deploy/pg_hba.conf` lets in, so nobody without TLS. Its certificate
    /// is for `localhost`.
    pub async fn start_with_tls(authority: &Authority) -> anyhow::Result<Option<Self>> {
        Self::start_with(
            &["fsync=off", "ssl=on", "ssl_cert_file=server.pem", "ssl_key_file=server.key"],
            Some(authority),
        )
        .await
    }

    async fn start_with(settings: &[&str], authority: Option<&Authority>) -> anyhow::Result<Option<Self>> {
        let Some(programs) = programs() else {
            if in_ci() {
                bail!("PostgreSQL is not installed; `.ci/install postgres` does it");
            }
            eprintln!("SKIPPED: PostgreSQL is not installed, so nothing was tested on it");
            return Ok(None);
        };
        let folder = tempfile::tempdir()?;
        let user = unprivileged_user().await?;
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid))?;
        }
        let data = folder.path().join("data");
        let password = folder.path().join("password");
        std::fs::write(&password, PASSWORD)?;
        let mut initdb = command(&programs.join("initdb"), &folder, user);
        initdb.args([
            "--username=stepcast",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "-D",
        ]);
        initdb.arg(&data).arg("--pwfile").arg(&password);
        let made = initdb.output().await?;
        if !made.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        if let Some(authority) = authority {
            secure(&data, authority, user)?;
        }
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut tries = 1;
        loop {
            let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            match launch(&programs, &folder, user, port, &settings).await {
                Ok(process) => return Ok(Some(Self { process, port, programs, user, settings, folder })),
                Err(_) if tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends it at once, and every connection with it, as a crash would.
    pub async fn stop(&mut self) {
        self.process.signal(Signal::QUIT);
        self.process.end().await;
    }

    /// Starts it again where it was, and waits until it takes connections.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.process = launch(&self.programs, &self.folder, self.user, self.port, &self.settings).await?;
        Ok(())
    }

    /// Its empty database.
    pub fn url(&self) -> String {
        url_behind(&self.address())
    }

    /// Where it listens, `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Postgres {
    /// Asked to end at once it removes its shared memory, which it would leave behind if it were killed.
    fn drop(&mut self) {
        if !self.process.is_running() {
            return;
        }
        self.process.signal(Signal::QUIT);
        let begun = Instant::now();
        while self.process.is_running() && begun.elapsed() < LAST_WORDS {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The empty database of a cluster behind a link at `host:port`.
pub fn url_behind(link: &str) -> String {
    format!("postgres://stepcast:{PASSWORD}@{link}/postgres")
}

async fn launch(
    programs: &Path,
    folder: &TempDir,
    user: Option<(u32, u32)>,
    port: u16,
    settings: &[String],
) -> anyhow::Result<Process> {
    let mut postgres = command(&programs.join("postgres"), folder, user);
    postgres.arg("-D").arg(folder.path().join("data")).args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    let own = ["unix_socket_directories=", "dynamic_shared_memory_type=mmap"];
    for setting in settings.iter().map(String::as_str).chain(own) {
        postgres.args(["-c", setting]);
    }
    let mut process = Process::start("postgres", &mut postgres)?;
    process.line(|line| line.contains("ready to accept connections").then_some(())).await?;
    Ok(process)
}

/// Gives a cluster a certificate for `localhost`, and has it let in whom the deployment lets in.
fn secure(data: &Path, authority: &Authority, user: Option<(u32, u32)>) -> anyhow::Result<()> {
    let (cert, key) = authority.issue("postgres", &["localhost"])?;
    for (from, name) in [(cert, "server.pem"), (key, "server.key")] {
        let to = data.join(name);
        std::fs::copy(from, &to)?;
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600))?;
        if let Some((uid, gid)) = user {
            chown(&to, Some(uid), Some(gid))?;
        }
    }
    let allowed = include_str!("../../deploy/pg_hba.conf");
    std::fs::write(data.join("pg_hba.conf"), allowed)?;
    Ok(())
}

/// A program of PostgreSQL, which refuses to run as root.
fn command(program: &Path, folder: &TempDir, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder.path()).env("LC_ALL", "C");
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// Where `initdb` and `postgres` are: on the path, or where Debian puts them, the newest first.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<PathBuf> =
            versions.flatten().map(|version| version.path().join("bin")).collect();
        versions.sort();
        folders.extend(versions.into_iter().rev());
    }
    folders.into_iter().find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
}

fn in_ci() -> bool {
    std::env::var_os("CI").is_some()
}

/// The user and group `postgres` if this is root, which may not run a cluster itself.
async fn unprivileged_user() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let ask = async |flag: &str| {
        let answer = Command::new("id").args([flag, "postgres"]).output().await?;
        let id = String::from_utf8(answer.stdout)?;
        id.trim().parse::<u32>().context("there is no user `postgres` to run a cluster as")
    };
    Ok(Some((ask("-u").await?, ask("-g").await?)))
}
