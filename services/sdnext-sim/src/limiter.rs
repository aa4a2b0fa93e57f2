//! The request limit of the recorded server: a sliding window estimated from two fixed ones.
//!
//! The estimate is what the previous minute counted, faded by how far this minute has come, plus what this minute
//! counted; refused requests do not count. That explains the recording, where a client that keeps polling ten times a
//! second is let through once in 2.1 s at first and five times a second a minute later.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

const WINDOW: Duration = Duration::from_mins(1);
/// Pairs of address and path remembered; above it those that have been quiet for two windows are dropped.
const PAIRS: usize = 10_000;

#[derive(Debug)]
struct Counts {
    began: Instant,
    previous: f64,
    current: f64,
}

#[derive(Debug, Default)]
pub(crate) struct Limiter {
    pairs: HashMap<(IpAddr, String), Counts>,
}

impl Limiter {
    /// Counts a request of `cost`, unless it would exceed `limit` a minute. A limit of 0 lets everything through.
    pub(crate) fn admit(&mut self, client: IpAddr, path: &str, cost: u32, limit: u32, now: Instant) -> bool {
        if limit == 0 {
            return true;
        }
        if self.pairs.len() >= PAIRS {
            self.pairs.retain(|_, counts| now.duration_since(counts.began) < 2 * WINDOW);
        }
        let counts = self.pairs.entry((client, path.to_owned())).or_insert(Counts {
            began: now,
            previous: 0.0,
            current: 0.0,
        });
        let age = now.duration_since(counts.began);
        if age >= 2 * WINDOW {
            *counts = Counts { began: now, previous: 0.0, current: 0.0 };
        } else if age >= WINDOW {
            *counts = Counts { began: counts.began + WINDOW, previous: counts.current, current: 0.0 };
        }
        let come = now.duration_since(counts.began).as_secs_f64() / WINDOW.as_secs_f64();
        let estimate = counts.previous * (1.0 - come) + counts.current;
        let admitted = estimate + f64::from(cost) <= f64::from(limit);
        if admitted {
            counts.current += f64::from(cost);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Limiter;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn sixty_renders_a_minute_pass() {
        let mut limiter = Limiter::default();
        let now = Instant::now();
        assert_eq!((0..63).filter(|_| limiter.admit(HERE, "/txt2img", 5, 300, now)).count(), 60);
        assert!(limiter.admit(HERE, "/progress", 1, 300, now), "each path has its own count");
        assert!(limiter.admit(HERE, "/txt2img", 5, 0, now), "no limit lets everything through");
    }

    /// The recording: windows had begun 3.5 s before it, the one before them having counted 28 requests.
    #[test]
    fn ten_polls_a_second_are_admitted_as_recorded() {
        let mut limiter = Limiter::default();
        let before = Instant::now();
        for _ in 0..28 {
            assert!(limiter.admit(HERE, "/progress", 1, 300, before));
        }
        let start = before + Duration::from_millis(63_500);
        let admitted: Vec<bool> = (0..947_u32)
            .map(|poll| limiter.admit(HERE, "/progress", 1, 300, start + Duration::from_millis(100) * poll))
            .collect();
        let first_refused = admitted.iter().position(|admitted| !admitted).expect("some are refused");
        assert!((280..=292).contains(&first_refused), "recorded 289, here {first_refused}");
        let by_ten_seconds: Vec<usize> =
            admitted.chunks(100).map(|chunk| chunk.iter().filter(|&&admitted| admitted).count()).collect();
        let recorded = [100, 100, 88, 5, 4, 21, 50, 50, 50, 25];
        for (here, there) in by_ten_seconds.iter().zip(recorded) {
            assert!(here.abs_diff(there) <= 4, "recorded {recorded:?}, here {by_ten_seconds:?}");
        }
    }
}
