//! What every image store must do, on a folder and, with the feature `s3`, on a server that speaks S3.

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutPayload};
use stepcast_shared::storage;
use url::Url;

#[tokio::test]
async fn a_folder_keeps_what_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let url = Url::from_directory_path(folder.path().join("images")).unwrap();
    keeps_what_it_is_given(&url).await;
    assert_eq!(std::fs::read_dir(folder.path().join("images/job")).map_or(0, Iterator::count), 0);
}

/// `.ci/s3` starts a server and names it in the usual variables.
#[cfg(feature = "s3")]
#[tokio::test]
async fn a_bucket_keeps_what_it_is_given() {
    keeps_what_it_is_given(&"s3://stepcast/some/images".parse().unwrap()).await;
    keeps_what_it_is_given(&"s3://stepcast".parse().unwrap()).await;
}

async fn keeps_what_it_is_given(url: &Url) {
    let store = storage::open(url).unwrap();
    let key = |name: &str| Path::from(format!("job/1-token/{name}"));
    let bytes: Bytes = (0..300_000_u32).map(|n| u8::try_from(n % 251).expect("below 251")).collect();
    for name in ["0.png", "1.png"] {
        store.put(&key(name), PutPayload::from_bytes(bytes.clone())).await.unwrap();
    }
    store.put(&key("0.png"), PutPayload::from_bytes(bytes.clone())).await.expect("once more changes nothing");
    assert_eq!(store.get(&key("0.png")).await.unwrap().bytes().await.unwrap(), bytes);

    let options = GetOptions { range: Some(GetRange::Bounded(1000..1500)), ..GetOptions::default() };
    let part = store.get_opts(&key("1.png"), options).await.unwrap();
    assert_eq!(part.bytes().await.unwrap(), bytes[1000..1500], "a part of an image");
    let age = chrono::Utc::now() - store.head(&key("1.png")).await.unwrap().last_modified;
    assert!(age.num_minutes().abs() < 5, "the sweep goes by the time of the last change: {age}");

    let mut names: Vec<String> = listed(&*store, "job").await;
    names.sort();
    assert_eq!(names, ["job/1-token/0.png", "job/1-token/1.png"], "keys are the same under every prefix");
    for name in ["0.png", "1.png"] {
        store.delete(&key(name)).await.unwrap();
    }
    assert!(matches!(store.get(&key("0.png")).await, Err(Error::NotFound { .. })));
    assert_eq!(listed(&*store, "job").await, [""; 0]);
}

async fn listed(store: &dyn ObjectStore, prefix: &str) -> Vec<String> {
    let objects = store.list(Some(&Path::from(prefix)));
    objects.map_ok(|object| object.location.to_string()).try_collect().await.unwrap()
}
