//! Waiting for conditions: with a deadline, and a sentence for when it passes.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Ten times and more what anything here takes on a slow machine.
pub const DEADLINE: Duration = Duration::from_mins(1);
/// How often a condition is looked at that nobody announces.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits for a future. Panics with `what` after [`DEADLINE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// Looks until there is something. Panics with `what` after [`DEADLINE`].
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    until_after(DEADLINE, what, look).await
}

/// Looks until there is something. Panics with `what` after `patience`.
pub async fn until_after<T>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        sleep(LOOK_EVERY).await;
    }
}

/// Looks until nothing is left. Panics with `what` and the rest after `patience`.
pub async fn until_none<T: std::fmt::Debug>(
    patience: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Vec<T>,
) {
    let deadline = Instant::now() + patience;
    loop {
        let rest = look().await;
        if rest.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}: {rest:#?}");
        sleep(LOOK_EVERY).await;
    }
}
