//! systemd as the manager of cgroups: a container's processes on the host live in a
//! transient scope that it is asked for, see org.freedesktop.systemd1(5) and systemd's
//! "Control Group APIs and Delegation".
//!
//! ```text
//! unit.rs        slice:prefix:name  -> name of the scope, its slice, its directory
//! value.rs       text of an annotation -> a typed value
//! properties.rs  limits, annotations -> properties of the scope
//! bus.rs         the calls
//! ```

mod bus;
mod properties;
#[cfg(test)]
mod tests;
mod unit;
mod value;

use std::time::Duration;

pub use bus::Bus;
pub use properties::{Property, of_annotations, of_limits};
pub use unit::Unit;
pub use value::Value;

/// Why systemd does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// It is not there.
    #[error(
        "systemd does not manage this host ({} is missing): have the engine use cgroupfs \
         as its cgroup manager, or leave --systemd-cgroup out",
        bus::BOOTED
    )]
    Absent,
    /// The way to it does not work.
    #[error(
        "cannot reach systemd by the system bus (/run/dbus/system_bus_socket, unless \
         DBUS_SYSTEM_BUS_ADDRESS says otherwise): dbus-daemon or dbus-broker must run"
    )]
    Unreachable(#[source] zbus::Error),
    /// It refuses.
    #[error("systemd does not {what} the unit {unit}")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// The unit.
        unit: String,
        /// Its words.
        source: zbus::Error,
    },
    /// It tried.
    #[error(
        "systemd could not {what} the unit {unit}: its job ended as {result:?}; \
         see `systemctl status {unit}` and its journal"
    )]
    Failed {
        /// What it was asked for.
        what: &'static str,
        /// The unit.
        unit: String,
        /// `result` of the signal JobRemoved.
        result: String,
    },
    /// It takes too long.
    #[error("systemd did not {what} the unit {unit} within {} s", limit.as_secs())]
    Late {
        /// What it was asked for.
        what: &'static str,
        /// The unit.
        unit: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A limit that its property cannot have.
    #[error("the limit {file} cannot be {value:?}: {reason}")]
    Limit {
        /// File of the cgroup.
        file: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}
