//! Where images are kept: whether they can be written, read and removed there, and how much room is left.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use object_store::ObjectStoreExt as _;
use object_store::path::Path as ObjectPath;
use rustix::fs::statvfs;
use stepcast_shared::storage;
use tokio::time::timeout;
use url::Url;
use uuid::Uuid;

use super::report::Report;

const PART: &str = "storage";
/// What is written to see whether there is room for something: about a picture.
const PROBE: usize = 1024 * 1024;
/// Below so much room it is worth a word.
const LITTLE: u64 = 1024 * 1024 * 1024;
/// Longest wait for a bucket.
const PATIENCE: Duration = Duration::from_secs(15);

/// Looks at the store behind an address.
pub async fn look(url: Option<&Url>, report: &mut Report) {
    let Some(url) = url else {
        return report.skip(PART, "no address is set (--images-url)");
    };
    if url.scheme() != "file" {
        return look_at_bucket(url, report).await;
    }
    let Ok(folder) = url.to_file_path() else {
        let advice = "write it as file:///FOLDER, with three slashes";
        return report.wrong(PART, format!("{url} names no folder on this machine"), advice);
    };
    if folder.is_dir() {
        look_at_folder(PART, &folder, report);
    } else if folder.exists() {
        let advice = "name a folder with --images-url";
        report.wrong(PART, format!("{} is no folder", folder.display()), advice);
    } else {
        report.ok(PART, format!("{} does not exist yet: the first start makes it", folder.display()));
        look_at_ancestor(PART, &folder, report);
    }
}

/// Looks at a folder in which something is to be kept.
pub fn look_at_folder(part: &'static str, folder: &Path, report: &mut Report) {
    match try_folder(folder) {
        Ok(()) => report.ok(part, format!("{} can be written and read", folder.display())),
        Err(error) => {
            let advice = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    "make room there, or have old jobs removed sooner (--retain)"
                }
                io::ErrorKind::PermissionDenied => "give the user of this process the right to write there",
                _ => "see that it is mounted and may be written to, or name another place",
            };
            report.wrong(part, format!("nothing can be written to {}: {error}", folder.display()), advice);
        }
    }
    look_at_room(part, folder, report);
}

/// Looks at the folder in which one that does not exist would be made.
pub fn look_at_ancestor(part: &'static str, missing: &Path, report: &mut Report) {
    if let Some(folder) = missing.ancestors().skip(1).find(|folder| folder.is_dir()) {
        look_at_folder(part, folder, report);
    }
}

/// Warns of little room.
pub fn look_at_room(part: &'static str, folder: &Path, report: &mut Report) {
    let Ok(found) = statvfs(folder) else { return };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let shown = format!("{:.1} GiB are free at {}", free as f64 / LITTLE as f64, folder.display());
    if free < LITTLE {
        report.warn(part, shown, "make room there, or have old jobs removed sooner (--retain)");
    } else {
        report.ok(part, shown);
    }
}

/// Writes a file, reads it back, and removes it whatever comes of it.
fn try_folder(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".stepcast-doctor-{}", Uuid::now_v7()));
    let content = vec![b'x'; PROBE];
    let tried = fs::File::create_new(&path)
        .and_then(|mut file| file.write_all(&content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::read(&path))
        .and_then(|read| if read == content { Ok(()) } else { Err(io::Error::other("it reads otherwise")) });
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => tried.and(Err(error)),
        _ => tried,
    }
}

async fn look_at_bucket(url: &Url, report: &mut Report) {
    let tried = timeout(PATIENCE, try_bucket(url)).await.context("it does not answer within 15 s");
    match tried.and_then(|tried| tried) {
        Ok(()) => report.ok(PART, format!("{url} can be written, read and emptied")),
        Err(error) => {
            let advice = if cfg!(feature = "s3") {
                "compare AWS_REGION, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY with the bucket's, \
                 and permit get, put, list and delete"
            } else {
                "use the image, which has S3 built in, or build with --features stepcast/s3; or name a folder"
            };
            let shown = stepcast_shared::address::without_credentials(url.as_str());
            report.wrong(PART, format!("{shown}: {error:#}"), advice);
        }
    }
}

async fn try_bucket(url: &Url) -> anyhow::Result<()> {
    let store = storage::open(url)?;
    let path = ObjectPath::from(format!("stepcast-doctor/{}", Uuid::now_v7()));
    let content = bytes::Bytes::from_static(b"stepcast doctor");
    store.put(&path, content.clone().into()).await.context("nothing can be written")?;
    let read = async { store.get(&path).await?.bytes().await };
    let read = read.await.context("what was written cannot be read");
    store.delete(&path).await.context("what was written cannot be removed")?;
    ensure!(read? == content, "what was written reads otherwise");
    Ok(())
}
