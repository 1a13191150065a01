//! End-to-end cases, one module per feature. Both sides of a case, what is run
//! and what is expected, stand together.

// A tool that nobody can hear may as well end.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod bridge;
mod endings;
mod engines;
mod failures;
mod hostile;
mod images;
mod jail;
mod layers;
mod leaks;
mod lifecycle;
mod network;
mod oci;
mod passt;
mod registry;
mod rootless;
mod run;
mod servers;
mod stdio;
mod terminal;
mod volumes;
