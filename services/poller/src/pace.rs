//! Staying under SD.Next's limiter, which drops the 61st render in a minute after rendering it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_mins(1);

/// Counts the renders of the last minute.
#[derive(Debug)]
pub struct Pace {
    per_minute: usize,
    posts: VecDeque<Instant>,
}

impl Pace {
    /// A pace of so many renders a minute; 0 for any number.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute: per_minute as usize, posts: VecDeque::new() }
    }

    /// How long the next render must wait.
    pub fn wait(&mut self, now: Instant) -> Duration {
        while self.posts.front().is_some_and(|post| now.duration_since(*post) >= MINUTE) {
            self.posts.pop_front();
        }
        match self.posts.front() {
            Some(first) if self.per_minute > 0 && self.posts.len() >= self.per_minute => {
                MINUTE.saturating_sub(now.duration_since(*first))
            }
            _ => Duration::ZERO,
        }
    }

    /// Counts a render.
    pub fn note(&mut self, now: Instant) {
        if self.per_minute > 0 {
            self.posts.push_back(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_window_of_a_minute_holds_more_than_the_limit() {
        let start = Instant::now();
        let mut pace = Pace::new(3);
        let mut now = start;
        let mut posts = Vec::new();
        for _ in 0..20 {
            now += pace.wait(now);
            pace.note(now);
            posts.push(now);
            now += Duration::from_secs(1);
        }
        for window in posts.windows(4) {
            assert!(window[3].duration_since(window[0]) >= MINUTE);
        }
        assert!(posts[19].duration_since(start) < Duration::from_mins(7), "and it does not wait for nothing");
    }

    #[test]
    fn zero_is_no_limit() {
        let mut pace = Pace::new(0);
        for _ in 0..1000 {
            pace.note(Instant::now());
        }
        assert_eq!(pace.wait(Instant::now()), Duration::ZERO);
    }
}
