//! The one folder in which everything is kept, held by one process at a time.
//!
//! A file lock rather than a pid file: the kernel lets go of it however its holder ends.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use url::Url;

/// A data directory that this process holds until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    place: Place,
    lock: File,
}

/// A data directory, whoever holds it. Nothing is made there.
#[derive(Clone, Debug)]
pub struct Place {
    path: PathBuf,
}

/// What the holder says of itself, for the next one who asks.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process; 0 while it starts.
    pub pid: u32,
    /// Where it can be reached, once it has started.
    pub url: Option<String>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.pid, &self.url) {
            (0, _) => f.write_str("still starting"),
            (pid, Some(url)) => write!(f, "process {pid}, at {url}"),
            (pid, None) => write!(f, "process {pid}, still starting"),
        }
    }
}

impl Place {
    /// The folder at this path, which need not exist.
    pub fn at(path: &Path) -> anyhow::Result<Self> {
        let path = std::path::absolute(path)
            .with_context(|| format!("the data directory {} cannot be found", path.display()))?;
        let path = fs::canonicalize(&path).unwrap_or(path);
        if path.to_str().is_none() {
            bail!("the data directory {} has a name that is not UTF-8", path.display());
        }
        Ok(Self { path })
    }

    /// Who holds it now. Whoever takes hold of it in the same instant may be refused.
    pub fn holder(&self) -> Option<Holder> {
        let mut lock = File::open(self.lock_file()).ok()?;
        match lock.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Some(read_holder(&mut lock)),
            Ok(()) | Err(TryLockError::Error(_)) => None,
        }
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("stepcast.lock")
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the database is, unless said otherwise.
    pub fn database_url(&self) -> String {
        sqlite_url(&self.path.join("stepcast.db"))
    }

    /// Where the images are, unless said otherwise.
    pub fn images_url(&self) -> anyhow::Result<Url> {
        let folder = self.path.join("images");
        Url::from_directory_path(&folder)
            .map_err(|()| anyhow::anyhow!("{} cannot be written as a URL", folder.display()))
    }
}

impl DataDir {
    /// Makes the folder if it is missing, and takes hold of it. Errors at once if another process holds it.
    pub fn hold(path: &Path) -> anyhow::Result<Self> {
        // For its owner alone: prompts and pictures are nobody else's business.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("the data directory {} cannot be made", path.display()))?;
        let place = Place::at(path)?;
        let file = place.lock_file();
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .with_context(|| format!("{} cannot be opened", file.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("{}", held(place.path(), &read_holder(&mut lock)));
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("{} cannot be locked", file.display()));
            }
        }
        let mut held = Self { place, lock };
        held.announce(None)?;
        Ok(held)
    }

    /// Tells whoever asks next where this process can be reached.
    pub fn announce(&mut self, url: Option<String>) -> anyhow::Result<()> {
        let holder = serde_json::to_vec(&Holder { pid: std::process::id(), url })?;
        let write = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            lock.write_all(&holder)
        };
        write(&mut self.lock).context("the lock file cannot be written")
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// A folder in it, made if it is missing.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.path().join(name);
        fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        Ok(folder)
    }
}

/// What is not written yet is no holder that anybody could name.
fn read_holder(lock: &mut File) -> Holder {
    let mut text = String::new();
    let _ = lock.read_to_string(&mut text);
    serde_json::from_str(&text).unwrap_or_default()
}

/// The folder that is used when none is named.
pub fn default_path(
    xdg_data_home: Option<&Path>,
    home: Option<PathBuf>,
    demo: bool,
) -> anyhow::Result<PathBuf> {
    // The specification of XDG_DATA_HOME says to ignore what is not absolute.
    let base = match xdg_data_home.filter(|path| path.is_absolute()) {
        Some(base) => base.to_owned(),
        None => {
            home.context("there is no home directory; name a folder with --data-dir")?.join(".local/share")
        }
    };
    let path = base.join("stepcast");
    Ok(if demo { path.join("demo") } else { path })
}

/// A path as a URL; a few characters mean something else in it.
fn sqlite_url(path: &Path) -> String {
    let path = path.to_string_lossy().replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    format!("sqlite://{path}")
}

fn held(path: &Path, who: &Holder) -> String {
    format!(
        "another Stepcast ({who}) uses the data directory {}. Stop it first, or choose another with --data-dir",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_once_and_says_by_whom() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = DataDir::hold(&folder.path().join("a/b")).unwrap();
        let starting = DataDir::hold(first.path()).unwrap_err().to_string();
        assert!(starting.contains("still starting"), "{starting}");
        first.announce(Some("http://127.0.0.1:8000/".to_owned())).unwrap();
        let refused = DataDir::hold(first.path()).unwrap_err().to_string();
        assert!(refused.contains("at http://127.0.0.1:8000/"), "{refused}");
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        let path = first.path().to_owned();
        drop(first);
        DataDir::hold(&path).unwrap();
    }

    #[test]
    fn the_default_folder_follows_xdg_then_home() {
        let home = || Some(PathBuf::from("/home/ada"));
        let path = |xdg: Option<&str>, demo| default_path(xdg.map(Path::new), home(), demo).unwrap();
        assert_eq!(path(None, false), Path::new("/home/ada/.local/share/stepcast"));
        assert_eq!(path(Some("/x"), false), Path::new("/x/stepcast"));
        assert_eq!(path(Some("relative"), true), Path::new("/home/ada/.local/share/stepcast/demo"));
        assert!(default_path(None, None, false).is_err());
    }

    #[test]
    fn a_path_becomes_a_url_that_means_the_same_file() {
        assert_eq!(sqlite_url(Path::new("/a b/100%?#.db")), "sqlite:///a b/100%25%3F%23.db");
    }
}
