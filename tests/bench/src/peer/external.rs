//! Servers that others wrote, with the settings that suit them. Their sources and configurations are in
//! `tests/bench/peers`, what they need is installed by `.ci/install bench`.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::{Setup, Started, ready};
use crate::backdrop::ports;
use crate::publisher::Feed;
use crate::scenario::Watch;
use crate::server::Server;

const SOURCES: &str = "tests/bench/peers";
const INSTALLED: &str = ".venv/bench";
/// Longest wait for a server that does not say when it listens.
const STARTING: Duration = Duration::from_secs(20);

pub(super) fn nats(setup: &Setup) -> anyhow::Result<Started> {
    let folder = tempfile::tempdir()?;
    let told = folder.path().join("ports");
    fs::create_dir(&told)?;
    let config = configured("nats/nats.conf", &[("FOLDER", &told.to_string_lossy())], folder.path())?;
    let mut command = Command::new(&setup.nats_server);
    command.arg("-c").arg(config);
    let server = Server::start("nats-server with WebSocket", &mut command, setup.verbose)?;
    let ports = ports(&told)?;
    let address = ([127, 0, 0, 1], ports.websocket.context("nats-server tells no port for WebSockets")?);
    Ok(Started { server, address: address.into(), feed: Feed::BareNats(ports.nats), _folder: Some(folder) })
}

pub(super) fn nchan(setup: &Setup, watch: Watch) -> anyhow::Result<Started> {
    let nginx = installed("nginx/usr/sbin/nginx")?;
    let module = installed("nginx/usr/lib/nginx/modules/ngx_nchan_module.so")?.canonicalize()?;
    let folder = tempfile::tempdir()?;
    // nginx does not take a port that the system chooses.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let words = [
        ("FOLDER", &*folder.path().to_string_lossy()),
        ("MODULE", &*module.to_string_lossy()),
        ("PORT", &*port.to_string()),
    ];
    let config = configured("nchan/nginx.conf", &words, folder.path())?;
    let mut command = Command::new(nginx);
    command.arg("-e").arg("stderr").arg("-p").arg(folder.path()).arg("-c").arg(config);
    let mut server = Server::start("nginx", &mut command, setup.verbose)?;
    let deadline = Instant::now() + STARTING;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(server.is_running(), "nginx ended; --verbose shows what it said");
        ensure!(Instant::now() < deadline, "nginx does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let feed = Feed::Post { port, to_all: watch == Watch::All };
    Ok(Started { server, address: ([127, 0, 0, 1], port).into(), feed, _folder: Some(folder) })
}

pub(super) fn node(setup: &Setup, name: &str) -> anyhow::Result<Started> {
    let modules = installed("node/node_modules")?;
    let mut command = Command::new("node");
    command.env("NODE_PATH", modules).arg(format!("{SOURCES}/node/{name}.js"));
    ready(Server::start(name, &mut command, setup.verbose)?, setup)
}

pub(super) fn fastapi(setup: &Setup) -> anyhow::Result<Started> {
    let python = installed("fastapi/bin/python")?;
    let mut command = Command::new(python);
    command.arg(format!("{SOURCES}/fastapi/server.py"));
    ready(Server::start("FastAPI", &mut command, setup.verbose)?, setup)
}

/// What is installed, as far as it is.
pub fn versions() -> String {
    let ask = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        // nginx tells its version on standard error.
        let said = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&said).trim().to_owned()).filter(|_| output.status.success())
    };
    let package = |name: &str| {
        let text = fs::read(format!("{INSTALLED}/node/node_modules/{name}/package.json")).ok()?;
        let package: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(format!("{name} {}", package["version"].as_str()?))
    };
    let python = "import importlib.metadata as m, platform; print('Python ' + platform.python_version(), *(f', {n} \
                  {m.version(n)}' for n in ('fastapi', 'uvicorn', 'uvloop', 'websockets')), sep='')";
    let found = [
        ask(Path::new("node"), &["--version"]).map(|version| format!("Node {version}")),
        package("ws"),
        package("@trufflesuite/uws-js-unofficial"),
        ask(Path::new(&format!("{INSTALLED}/fastapi/bin/python")), &["-c", python]),
        ask(Path::new(&format!("{INSTALLED}/nginx/usr/sbin/nginx")), &["-e", "stderr", "-v"]),
        nchan_version(),
    ];
    found.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// As the name of Debian's package says it.
fn nchan_version() -> Option<String> {
    let files = fs::read_dir(format!("{INSTALLED}/debs")).ok()?.flatten();
    let mut names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let name = names.find(|name| name.starts_with("libnginx-mod-nchan"))?;
    Some(format!("nchan {}", name.split('_').nth(1)?.rsplit("%3a").next()?))
}

fn installed(path: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(INSTALLED).join(path);
    if !path.exists() {
        bail!("not installed; `.ci/install bench` installs it where it can");
    }
    Ok(path)
}

/// A configuration in which some words are replaced; returns where it is.
fn configured(source: &str, words: &[(&str, &str)], folder: &Path) -> anyhow::Result<PathBuf> {
    let source = Path::new(SOURCES).join(source);
    let text = fs::read_to_string(&source)
        .with_context(|| format!("cannot read {}; run this in the project's folder", source.display()))?;
    // The comments name the words too.
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let text =
        words.iter().fold(lines.collect::<Vec<_>>().join("\n"), |text, (word, by)| text.replace(word, by));
    let path = folder.join("server.conf");
    fs::write(&path, text + "\n")?;
    Ok(path)
}
