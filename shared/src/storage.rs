//! Where images are kept: a folder or a bucket behind `object_store`.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use tracing::info;
use url::Url;

/// Opens the store at `url`: `file:///FOLDER`, made if it is missing, or `s3://BUCKET/PREFIX` where the feature `s3`
/// was built in.
///
/// Objects in a folder are written under another name, synced and then renamed: what a reader finds is whole. A bucket
/// takes region, credentials and the like from the usual variables (`AWS_REGION`, `AWS_ACCESS_KEY_ID`,
/// `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, ...); it is not looked at before its first use.
pub fn open(url: &Url) -> anyhow::Result<Arc<dyn ObjectStore>> {
    ensure!(
        url.username().is_empty() && url.password().is_none(),
        "the address of the images takes no user and no password; a bucket's are read from AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY"
    );
    match url.scheme() {
        "file" => folder(url),
        "s3" => bucket(url),
        other => bail!("images can be kept under file:// or s3://, not under {other}://"),
    }
}

fn folder(url: &Url) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let Ok(folder) = url.to_file_path() else { bail!("{url} names no folder on this machine") };
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("the image folder {} cannot be made", folder.display()))?;
    let store = LocalFileSystem::new_with_prefix(&folder)
        .with_context(|| format!("the image folder {} cannot be opened", folder.display()))?;
    info!(
        folder = %folder.display(),
        "images are kept in a folder: api and pollers on other hosts must share it as a volume"
    );
    // Folders of jobs that are gone go with their last image.
    Ok(Arc::new(store.with_fsync(true).with_automatic_cleanup(true)))
}

#[cfg(not(feature = "s3"))]
fn bucket(url: &Url) -> anyhow::Result<Arc<dyn ObjectStore>> {
    bail!("{url} needs a Stepcast with S3 in it: build with `--features s3`, or keep images under file://")
}

/// How long a request to a bucket is tried again: whoever asked is told in time, and asks again.
#[cfg(feature = "s3")]
const TRIED_FOR: std::time::Duration = std::time::Duration::from_secs(10);

#[cfg(feature = "s3")]
fn bucket(url: &Url) -> anyhow::Result<Arc<dyn ObjectStore>> {
    use object_store::RetryConfig;
    use object_store::aws::AmazonS3Builder;
    use object_store::prefix::PrefixStore;

    // An error only says that one is installed already; without any, the first TLS client panics.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(name) = url.host_str() else { bail!("{url} names no bucket") };
    let store = AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .with_retry(RetryConfig { retry_timeout: TRIED_FOR, ..RetryConfig::default() })
        .build()
        .with_context(|| format!("the image bucket {name} cannot be used"))?;
    let prefix = url.path().trim_matches('/');
    info!(bucket = name, prefix, "images are kept in a bucket");
    if prefix.is_empty() {
        return Ok(Arc::new(store));
    }
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_another_kind_is_refused_in_a_sentence() {
        let refused = |url: &str| open(&url.parse().unwrap()).unwrap_err().to_string();
        assert!(refused("gs://bucket/images").contains("not under gs://"));
        assert!(refused("file://host/images").contains("names no folder on this machine"));
        let login = refused("s3://key:hunter2@bucket/images");
        assert!(login.contains("AWS_SECRET_ACCESS_KEY") && !login.contains("hunter2"), "{login}");
        #[cfg(not(feature = "s3"))]
        assert!(refused("s3://bucket/images").contains("--features s3"));
    }
}
