//! Who may run beside whom: cases that count what the host holds run alone.

use std::io::Write;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

static TURN: RwLock<()> = RwLock::new(());

/// A case's time on the host. Dropped, it tells how long it was.
pub struct Turn<T> {
    start: Instant,
    _lock: T,
}

impl<T> Drop for Turn<T> {
    fn drop(&mut self) {
        let thread = std::thread::current();
        let seconds = self.start.elapsed().as_secs_f64();
        // Not by eprintln: that is shown for failed cases only.
        let _ = writeln!(std::io::stderr(), "{seconds:6.1} s  {}", thread.name().unwrap_or("?"));
    }
}

/// Beside other cases. A failed case does not stop the others.
pub fn shared() -> Turn<RwLockReadGuard<'static, ()>> {
    let lock = TURN.read().unwrap_or_else(|failed| failed.into_inner());
    Turn { start: Instant::now(), _lock: lock }
}

/// Alone.
pub fn alone() -> Turn<RwLockWriteGuard<'static, ()>> {
    let lock = TURN.write().unwrap_or_else(|failed| failed.into_inner());
    Turn { start: Instant::now(), _lock: lock }
}
