//! What is costly to take, kept for a moment and shared by all who ask: so that a hundred who look cost as much as one.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// It is kept for so many times the time it took: so it takes a twentieth of one core at most.
const WORTH: u32 = 20;

/// For how long something is kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Even if it was taken in no time.
    pub least: Duration,
    /// However long it took.
    pub most: Duration,
}

/// The last of its kind that was taken.
#[derive(Debug)]
pub struct Kept<T> {
    last: Mutex<Option<Last<T>>>,
    taking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Last<T> {
    value: Arc<T>,
    until: Instant,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { last: Mutex::default(), taking: tokio::sync::Mutex::default() }
    }
}

impl<T> Kept<T> {
    /// The last one while it is to be kept, or else a new one. While somebody takes that, the others have the last.
    ///
    /// Errors are not kept. Cancel-safe: what is being taken is dropped, and the next who asks takes it.
    pub async fn get<E>(&self, keep: Keep, take: impl Future<Output = Result<T, E>>) -> Result<Arc<T>, E> {
        if let Some(fresh) = self.fresh() {
            return Ok(fresh);
        }
        let last = self.lock().as_ref().map(|last| last.value.clone());
        let _taking = match (self.taking.try_lock(), last) {
            (Ok(taking), _) => taking,
            // It is a moment older than it should be.
            (Err(_), Some(last)) => return Ok(last),
            (Err(_), None) => self.taking.lock().await,
        };
        if let Some(fresh) = self.fresh() {
            return Ok(fresh);
        }
        let begun = Instant::now();
        let value = Arc::new(take.await?);
        let until = Instant::now() + (begun.elapsed() * WORTH).clamp(keep.least, keep.most);
        *self.lock() = Some(Last { value: value.clone(), until });
        Ok(value)
    }

    fn fresh(&self) -> Option<Arc<T>> {
        self.lock().as_ref().filter(|last| Instant::now() < last.until).map(|last| last.value.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Last<T>>> {
        self.last.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const SECOND: Keep = Keep { least: Duration::from_secs(1), most: Duration::from_secs(1) };

    #[tokio::test]
    async fn all_who_ask_share_one_and_an_error_is_not_kept() {
        let kept = Kept::default();
        assert_eq!(kept.get(SECOND, async { Err::<u32, _>("away") }).await, Err("away"));
        let slow = async {
            tokio::task::yield_now().await;
            Ok::<_, &str>(1)
        };
        let another = async { Err("somebody takes it already") };
        let (first, second) = tokio::join!(kept.get(SECOND, slow), kept.get(SECOND, another));
        assert_eq!((first.as_deref(), second.as_deref()), (Ok(&1), Ok(&1)));
    }

    #[tokio::test]
    async fn it_is_taken_again_after_its_time_and_meanwhile_the_last_is_had() {
        let now = Keep { least: Duration::ZERO, most: Duration::ZERO };
        let kept = Kept::default();
        let take = |value| async move { Ok::<_, Infallible>(value) };
        assert_eq!(kept.get(now, take(1)).await, Ok(Arc::new(1)));
        let (sender, waits) = tokio::sync::oneshot::channel();
        let next = kept.get(now, async { Ok::<_, Infallible>(waits.await.unwrap()) });
        let meanwhile = async {
            assert_eq!(kept.get(now, take(3)).await, Ok(Arc::new(1)));
            sender.send(2).unwrap();
        };
        assert_eq!(tokio::join!(next, meanwhile).0, Ok(Arc::new(2)));
    }
}
