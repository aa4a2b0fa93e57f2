//! Where images are kept: a folder or a bucket behind `object_store`.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use url::Url;

/// Opens the store at `url`: `file:///FOLDER`, made if it is missing.
///
/// Objects in a folder are written under another name, synced and then renamed: what a reader finds is whole.
pub fn open(url: &Url) -> anyhow::Result<Arc<dyn ObjectStore>> {
    match url.scheme() {
        "file" => {
            let Ok(folder) = url.to_file_path() else { bail!("{url} names no folder on this machine") };
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("the image folder {} cannot be made", folder.display()))?;
            let store = LocalFileSystem::new_with_prefix(&folder)
                .with_context(|| format!("the image folder {} cannot be opened", folder.display()))?;
            // Folders of jobs that are gone go with their last image.
            Ok(Arc::new(store.with_fsync(true).with_automatic_cleanup(true)))
        }
        other => bail!("images can be kept under file://, not under {other}://"),
    }
}
