//! Who may run beside whom: cases that count what the host holds run alone.

use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

static TURN: RwLock<()> = RwLock::new(());

/// Beside other cases. A failed case does not stop the others.
pub fn shared() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(|failed| failed.into_inner())
}

/// Alone.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(|failed| failed.into_inner())
}
