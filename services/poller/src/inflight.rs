//! Telling a later holder of a backend what is being rendered on it.
//!
//! The note of a render that went well does no harm once it is over: the server's history shows its end. So it stays
//! until the next one replaces it, or the backend has nothing to do.

use async_nats::jetstream::kv::{DeleteErrorKind, Store};
use bytes::Bytes;
use stepcast_shared::ids::BackendId;
use tracing::warn;

use crate::recover::Note;

/// The note of one backend.
#[derive(Debug)]
pub struct InFlight {
    store: Store,
    backend: BackendId,
    written: Written,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Written {
    Nothing,
    /// A note of this revision.
    Revision(u64),
    /// Perhaps one: its acknowledgement did not come.
    Perhaps,
}

impl InFlight {
    /// A backend of which this process has noted nothing yet.
    pub fn new(store: Store, backend: BackendId) -> Self {
        Self { store, backend, written: Written::Nothing }
    }

    /// Notes a render that is about to be posted.
    ///
    /// Best effort: without it a render that outlives its poller counts as somebody else's.
    pub async fn note(&mut self, note: &Note) {
        let note = serde_json::to_vec(note).expect("a note holds only what JSON can say");
        self.written = match self.store.put(self.backend.as_str(), Bytes::from(note)).await {
            Ok(revision) => Written::Revision(revision),
            Err(error) => {
                warn!(error = %error, "render not noted");
                Written::Perhaps
            }
        };
    }

    /// Removes the note, if there is one of ours. If that fails, the next call tries again.
    pub async fn clear(&mut self) {
        let expected = match self.written {
            Written::Nothing => return,
            Written::Revision(revision) => Some(revision),
            Written::Perhaps => None,
        };
        match self.store.delete_expect_revision(self.backend.as_str(), expected).await {
            Ok(()) => self.written = Written::Nothing,
            // Another holder has noted its own.
            Err(error) if error.kind() == DeleteErrorKind::WrongLastRevision => {
                self.written = Written::Nothing;
            }
            Err(error) => warn!(error = %error, "note of a render not cleared"),
        }
    }

    /// Takes in that whatever was noted is another holder's to clear.
    pub fn give_up(&mut self) {
        self.written = Written::Nothing;
    }
}
