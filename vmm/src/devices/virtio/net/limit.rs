//! Token buckets, in nanoseconds of a clock that the caller reads.
//!
//! The size of a frame is known only when it was read, so that a bucket may go into debt by
//! one frame: the next one waits until it is paid.

use std::time::Duration;

use protocol::machine::{Limit, Rate};

const SECOND: u128 = 1_000_000_000;

/// A bucket.
#[derive(Debug, Clone)]
struct Bucket {
    per_second: u64,
    burst: i64,
    level: i64,
    /// Up to when tokens were put in.
    filled: u64,
}

impl Bucket {
    fn new(rate: Rate) -> Bucket {
        // A timer comes a millisecond late, and tokens must not be lost for that.
        let burst = rate.burst.max(rate.per_second / 500).max(1);
        let burst = i64::try_from(burst).unwrap_or(i64::MAX);
        Bucket { per_second: rate.per_second.max(1), burst, level: burst, filled: 0 }
    }

    fn fill(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.filled);
        let gained = u128::from(elapsed) * u128::from(self.per_second) / SECOND;
        let missing = (i128::from(self.burst) - i128::from(self.level)) as u128;
        if gained >= missing {
            self.level = self.burst;
            self.filled = now;
        } else {
            self.level += gained as i64;
            // Not `now`: parts of a token are not lost.
            self.filled += (gained * SECOND).div_ceil(u128::from(self.per_second)) as u64;
        }
    }

    /// Nanoseconds until there is a token.
    fn wait(&mut self, now: u64) -> u64 {
        self.fill(now);
        if self.level > 0 {
            return 0;
        }
        let missing = (1 - i128::from(self.level)) as u128;
        let whole = (missing * SECOND).div_ceil(u128::from(self.per_second));
        u64::try_from(whole).unwrap_or(u64::MAX).saturating_sub(now.saturating_sub(self.filled))
    }
}

/// The buckets of one direction.
#[derive(Debug, Clone)]
pub(super) struct Limiter {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Limiter {
    pub(super) fn new(limit: Limit) -> Limiter {
        Limiter { bytes: limit.bytes.map(Bucket::new), packets: limit.packets.map(Bucket::new) }
    }

    /// Whether there is no limit, and so no need for a clock.
    pub(super) fn is_free(&self) -> bool {
        self.bytes.is_none() && self.packets.is_none()
    }

    /// How long the next frame has to wait; `None`: it has not.
    pub(super) fn wait(&mut self, now: u64) -> Option<Duration> {
        let buckets = [&mut self.bytes, &mut self.packets];
        let longest = buckets.into_iter().flatten().map(|bucket| bucket.wait(now)).max();
        longest.filter(|&wait| wait > 0).map(Duration::from_nanos)
    }

    /// A frame of so many bytes passed.
    pub(super) fn spend(&mut self, bytes: usize) {
        let spend = |bucket: &mut Option<Bucket>, count: usize| {
            if let Some(bucket) = bucket {
                bucket.level = bucket.level.saturating_sub(count as i64);
            }
        };
        spend(&mut self.bytes, bytes);
        spend(&mut self.packets, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of_bytes(per_second: u64, burst: u64) -> Limiter {
        Limiter::new(Limit { bytes: Some(Rate { per_second, burst }), packets: None })
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut limiter = of_bytes(1_000_000, 10_000);
        for _ in 0..10 {
            assert_eq!(limiter.wait(0), None);
            limiter.spend(1000);
        }
        assert_eq!(limiter.wait(0), Some(Duration::from_micros(1)));
        assert_eq!(limiter.wait(999), Some(Duration::from_nanos(1)));
        assert_eq!(limiter.wait(1000), None);
        // Into debt, by one frame.
        limiter.spend(1001);
        assert_eq!(limiter.wait(1000), Some(Duration::from_micros(1001)));
        assert_eq!(limiter.wait(1000 + 1_001_000), None);
        // Idle time is worth a burst, no more.
        assert_eq!(limiter.wait(u64::MAX / 2), None);
        limiter.spend(10_001);
        assert!(limiter.wait(u64::MAX / 2).is_some());
    }

    #[test]
    fn the_stricter_bucket_counts() {
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        let mut limiter =
            Limiter::new(Limit { bytes: rate(1 << 30, 1 << 30), packets: rate(10, 1) });
        assert!(!limiter.is_free() && Limiter::new(Limit::default()).is_free());
        assert_eq!(limiter.wait(0), None);
        limiter.spend(60);
        assert_eq!(limiter.wait(0), Some(Duration::from_millis(100)));
        assert_eq!(Limiter::new(Limit::default()).wait(7), None);
    }

    #[test]
    fn extremes_do_not_overflow() {
        for rate in [0, 1, u64::MAX] {
            let mut limiter = of_bytes(rate, rate);
            for now in [0, 1, u64::MAX, 0] {
                let _ = limiter.wait(now);
                limiter.spend(usize::MAX >> 1);
            }
        }
    }

    proptest! {
        /// Over any time, what passes is the burst, the rate and one frame at most; and
        /// whoever always has a frame gets nearly that.
        #[test]
        fn the_rate_is_kept(
            per_second in 1_000u64..1_000_000_000, burst in 1u64..100_000,
            frames in prop::collection::vec(60usize..65_000, 20..200),
        ) {
            let mut limiter = of_bytes(per_second, burst);
            let burst = burst.max(per_second / 500);
            let (mut now, mut passed, mut last) = (0u64, 0u64, 0);
            for frame in frames {
                while let Some(wait) = limiter.wait(now) {
                    now += wait.as_nanos() as u64;
                }
                let earned = u128::from(now) * u128::from(per_second) / SECOND;
                prop_assert!(u128::from(passed) <= u128::from(burst) + earned);
                limiter.spend(frame);
                passed += frame as u64;
                last = frame as u64;
            }
            let earned = u128::from(now) * u128::from(per_second) / SECOND;
            if now > 0 {
                prop_assert!(u128::from(passed) + 2 >= earned, "{passed} of {earned}, {last}");
            }
        }
    }
}
