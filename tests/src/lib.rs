//! What end-to-end cases stand on: programs run with a time limit, counts of
//! what a host holds, images made for them.
//!
//! The cases drive the installed programs as people do. They run as root where
//! KVM is real: directly, or in the throw-away host (`cargo xtask test` decides).

pub mod apparmor;
pub mod background;
pub mod bundle;
pub mod cgroup1;
pub mod children;
pub mod image;
pub mod leaks;
pub mod netns;
pub mod oci;
pub mod outside;
pub mod program;
pub mod rates;
pub mod systemd;
pub mod tarball;
pub mod terminal;
pub mod traffic;
pub mod turn;
pub mod user;
pub mod wire;

pub use background::Background;
pub use image::small;
pub use program::{Finished, bulkhead, guest, run, script};
