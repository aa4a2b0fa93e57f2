//! Latencies, counted in buckets of at most 1.6 % width.
//!
//! Small enough to have here: values are microseconds, and only counts and quantiles are wanted.

/// Values below this have a bucket each; above, each power of two is cut into half as many.
const LINEAR: u64 = 128;
const LINEAR_BITS: u32 = LINEAR.trailing_zeros();
const PER_OCTAVE: u64 = LINEAR / 2;
/// Powers of two above the linear part: up to 2^33 µs, more than two hours.
const OCTAVES: u64 = 26;

/// A distribution of microseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// An empty one.
    pub fn new() -> Self {
        let buckets = usize::try_from(LINEAR + OCTAVES * PER_OCTAVE).expect("a few thousand");
        Self { counts: vec![0; buckets], total: 0 }
    }

    /// Counts a value; what is beyond the last bucket counts there.
    pub fn add(&mut self, micros: u64) {
        let last = self.counts.len() - 1;
        self.counts[bucket(micros).min(last)] += 1;
        self.total += 1;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    /// The smallest value, in microseconds, that at least this share of all values does not exceed, rounded down to
    /// its bucket; `None` if there are none.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let mut left = share * self.total as f64;
        self.counts.iter().enumerate().find_map(|(index, count)| {
            left -= *count as f64;
            (*count > 0 && left <= 0.0).then(|| lowest(index as u64))
        })
    }
}

fn bucket(value: u64) -> usize {
    let index = if value < LINEAR {
        value
    } else {
        let shift = u64::from(value.ilog2() - LINEAR_BITS) + 1;
        // The leading bits of the value: from PER_OCTAVE to below LINEAR.
        LINEAR + (shift - 1) * PER_OCTAVE + ((value >> shift) - PER_OCTAVE)
    };
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn lowest(index: u64) -> u64 {
    if index < LINEAR {
        return index;
    }
    let (octave, place) = ((index - LINEAR) / PER_OCTAVE, (index - LINEAR) % PER_OCTAVE);
    (PER_OCTAVE + place) << (octave + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_of_known_values() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.5), None);
        for value in 1..=100 {
            histogram.add(value);
        }
        assert_eq!(histogram.quantile(0.5), Some(50));
        assert_eq!(histogram.quantile(0.99), Some(99));
        assert_eq!(histogram.quantile(1.0), Some(100));
        histogram.clear();
        assert_eq!(histogram.quantile(0.5), None);
    }

    #[test]
    fn what_is_beyond_the_last_bucket_still_counts() {
        let mut histogram = Histogram::new();
        histogram.add(u64::MAX);
        assert!(histogram.quantile(1.0) > Some(1 << 32));
    }

    proptest! {
        #[test]
        fn a_bucket_is_never_wider_than_a_sixty_fourth(value in 0..1_u64 << 33) {
            let low = lowest(bucket(value) as u64);
            prop_assert!(low <= value && value - low <= value / 64, "{value} is told as {low}");
        }

        #[test]
        fn buckets_are_in_order(a in 0..1_u64 << 33, b in 0..1_u64 << 33) {
            prop_assert_eq!(a <= b && bucket(a) > bucket(b), false);
        }
    }
}
