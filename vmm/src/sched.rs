//! How the host schedules a thread.

#![allow(unsafe_code)] // Two system calls, with numbers and a structure of one number.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Wake-ups between two looks at what they took, and those of a trial after a pause.
const LOOK: u32 = 16;
const TRIAL: u32 = 2;
/// How many times as long as it works a polite thread may wait. Beside its own machine and those
/// that it talks with, it is a few times; beside a program that computes, a hundred where there
/// is a frame at a time. (What it waits where its cgroup's time is used up counts too.)
const MOST: u32 = 16;
/// How long politeness is given up for at least: the first time in a row, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(64);

/// A thread that interrupts no other of the usual policies when it is woken: it runs when a CPU is
/// free, or when its turn comes (SCHED_BATCH in sched(7)). For one that finds more to do the later it comes, and whose
/// wakers go to sleep soon. Where they do not, since they compute and no CPU is free, it would
/// wait for the rest of a time slice each time: then it is as others for a while.
pub struct Manners {
    /// Of this thread (Documentation/scheduler/sched-stats.rst).
    statistics: File,
    /// Wake-ups until the next look.
    left: u32,
    /// At the last look.
    spent: Spent,
    patience: Patience,
}

impl Manners {
    /// Makes the calling thread a polite one. None under another policy than the usual one, which
    /// somebody chose for all of this process.
    ///
    /// # Errors
    /// As sched_setscheduler(2), and when /proc does not tell of the thread.
    pub fn new() -> io::Result<Option<Manners>> {
        // SAFETY: it takes and gives a number.
        if unsafe { libc::sched_getscheduler(0) } != libc::SCHED_OTHER {
            return Ok(None);
        }
        let statistics = File::open("/proc/thread-self/schedstat")?;
        let spent = Spent::read(&statistics)?;
        set(0, libc::SCHED_BATCH)?;
        Ok(Some(Manners { statistics, left: LOOK, spent, patience: Patience::default() }))
    }

    /// Call it when the thread was woken.
    pub fn woken(&mut self) {
        self.left -= 1;
        if self.left == 0 {
            self.left = LOOK;
            // What worked once works again; else it stays as it is.
            let _ = self.look();
        }
    }

    /// Chooses, by what the kernel tells of the time since the last look.
    ///
    /// # Errors
    /// As read(2) and sched_setscheduler(2).
    pub(crate) fn look(&mut self) -> io::Result<()> {
        let before = std::mem::replace(&mut self.spent, Spent::read(&self.statistics)?);
        match self.patience.next(self.spent.since(&before), Instant::now()) {
            Some(true) => {
                self.left = TRIAL;
                set(0, libc::SCHED_BATCH)
            }
            Some(false) => set(0, libc::SCHED_OTHER),
            None => Ok(()),
        }
    }
}

/// When to be polite.
struct Patience {
    /// When it may be again; none when it is.
    until: Option<Instant>,
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { until: None, pause: FIRST_PAUSE }
    }
}

impl Patience {
    /// Whether to be polite from now on, where that changes; `spent` since the last look.
    fn next(&mut self, spent: Spent, now: Instant) -> Option<bool> {
        match self.until {
            None if spent.waiting > spent.working.saturating_mul(MOST) => {
                self.until = Some(now + self.pause);
                self.pause = LAST_PAUSE.min(2 * self.pause);
                Some(false)
            }
            None => {
                self.pause = FIRST_PAUSE;
                None
            }
            Some(until) if now >= until => {
                self.until = None;
                Some(true)
            }
            Some(_) => None,
        }
    }
}

/// Time of a thread.
#[derive(Clone, Copy, Default)]
struct Spent {
    /// On a CPU.
    working: Duration,
    /// Ready to be.
    waiting: Duration,
}

impl Spent {
    fn read(statistics: &File) -> io::Result<Spent> {
        let mut text = [0; 64];
        let len = statistics.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..len]);
        let mut fields = text.split(' ').map(|field| field.parse().map(Duration::from_nanos));
        match (fields.next(), fields.next()) {
            (Some(Ok(working)), Some(Ok(waiting))) => Ok(Spent { working, waiting }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn since(&self, before: &Spent) -> Spent {
        Spent {
            working: self.working.saturating_sub(before.working),
            waiting: self.waiting.saturating_sub(before.waiting),
        }
    }
}

/// Gives `thread`, or this one when it is 0, a policy without a priority.
///
/// # Errors
/// As sched_setscheduler(2).
pub(crate) fn set(thread: libc::pid_t, policy: libc::c_int) -> io::Result<()> {
    // SAFETY: zeros are what these policies want; the kernel reads them during the call.
    let result = unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(thread, policy, &parameters)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: it takes and gives a number.
        unsafe { libc::sched_getscheduler(0) }
    }

    fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().unwrap()
    }

    #[test]
    fn nobody_elses_choice_is_overruled() {
        let after = [libc::SCHED_OTHER, libc::SCHED_IDLE].map(|first| {
            in_thread(move || {
                set(0, first).unwrap();
                (Manners::new().unwrap().is_some(), policy())
            })
        });
        assert_eq!(after, [(true, libc::SCHED_BATCH), (false, libc::SCHED_IDLE)]);
        assert_eq!(policy(), libc::SCHED_OTHER, "of that thread alone");
    }

    #[test]
    fn who_waits_too_long_is_polite_no_more_for_a_while() {
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        let (working, short) = (Duration::from_micros(50), Duration::from_nanos(1));
        let usual = Spent { working, waiting: MOST * working };
        let late = Spent { working, waiting: MOST * working + short };
        assert_eq!(patience.next(usual, now), None);
        for seconds in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert_eq!(patience.next(late, now), Some(false));
            now += Duration::from_secs(seconds) - short;
            assert_eq!(patience.next(late, now), None, "{seconds} s are not over");
            now += short;
            assert_eq!(patience.next(late, now), Some(true));
        }
        assert_eq!(patience.next(usual, now), None);
        assert_eq!(patience.next(late, now), Some(false));
        assert_eq!(patience.next(late, now + FIRST_PAUSE), Some(true), "the first one again");
    }

    /// Of this thread, from its birth on. To ask for it brings what the kernel tells up to date.
    fn worked() -> Duration {
        let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
        nix::time::clock_gettime(clock).unwrap().into()
    }

    #[test]
    fn it_looks_at_what_the_kernel_tells() {
        in_thread(|| {
            let mut manners = Manners::new().unwrap().unwrap();
            while worked() < Duration::from_millis(5) {}
            let before = worked();
            (0..LOOK).for_each(|_| manners.woken());
            assert!((before..=worked()).contains(&manners.spent.working));
            manners.patience.until = Some(Instant::now());
            set(0, libc::SCHED_OTHER).unwrap();
            (1..LOOK).for_each(|_| manners.woken());
            assert_eq!(policy(), libc::SCHED_OTHER, "it does not look each time");
            manners.woken();
            assert_eq!((policy(), manners.left), (libc::SCHED_BATCH, TRIAL));
        });
    }
}
