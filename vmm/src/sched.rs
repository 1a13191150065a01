//! How the host schedules a thread.

#![allow(unsafe_code)] // Two system calls with nothing but numbers.

/// Has the calling thread interrupt nobody when it is woken: it runs when a CPU is free, or when
/// its turn comes (SCHED_BATCH in sched(7)). For a thread that finds more to do the later it
/// comes, and whose wakers go to sleep soon. Under another policy than the usual one, which
/// somebody chose for all of this process, it stays as it is.
///
/// # Errors
/// As sched_setscheduler(2).
pub fn wake_politely() -> nix::Result<()> {
    // SAFETY: it takes and gives a number.
    if unsafe { libc::sched_getscheduler(0) } != libc::SCHED_OTHER {
        return Ok(());
    }
    // SAFETY: zeros are what this policy wants; the kernel reads them during the call.
    let result = unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters)
    };
    nix::Error::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_elses_choice_is_overruled() {
        let policy = || {
            // SAFETY: it takes and gives a number.
            unsafe { libc::sched_getscheduler(0) }
        };
        let threads = [libc::SCHED_OTHER, libc::SCHED_IDLE].map(|first| {
            std::thread::spawn(move || {
                // SAFETY: as above; both policies want zeros.
                unsafe {
                    let parameters: libc::sched_param = std::mem::zeroed();
                    assert_eq!(libc::sched_setscheduler(0, first, &parameters), 0);
                }
                wake_politely().unwrap();
                policy()
            })
        });
        let after = threads.map(|thread| thread.join().unwrap());
        assert_eq!(after, [libc::SCHED_BATCH, libc::SCHED_IDLE]);
        assert_eq!(policy(), libc::SCHED_OTHER, "of that thread alone");
    }
}
