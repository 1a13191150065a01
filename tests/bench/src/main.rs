//! `bulkhead-bench`: measures where KVM is real, prints JSON; draws pictures of
//! that JSON anywhere. Started by `cargo xtask bench`.
//!
//! Everything is measured in one run, interleaved, and given as all its samples
//! with the median: the test host is emulated, and two runs are not comparable.

// A tool that nobody can hear may as well end.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod bare;
mod memory;
mod network;
mod picture;
mod qemu;
mod start;
mod verbs;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

#[derive(Parser)]
enum Arguments {
    /// Time starts and count memory; JSON to standard output
    Start(start::Options),
    /// Measure what the network of a container carries, beside runc; JSON to standard output
    Network(network::Options),
    /// The other end of `network`, in a container
    #[command(hide = true)]
    Serve,
    /// Boot the kernel of BULKHEAD_KERNEL to the agent's first line; milliseconds
    Boot(bare::Options),
    /// Draw the JSON of `start` as SVG to standard output
    Draw {
        /// The JSON
        json: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse() {
        Arguments::Start(options) => {
            let report = start::run(&options)?;
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        Arguments::Network(options) => {
            let report = network::run(&options)?;
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        Arguments::Serve => network::serve()?,
        Arguments::Boot(options) => {
            println!("{}", bare::boot(&options)?);
        }
        Arguments::Draw { json } => {
            let text = std::fs::read_to_string(&json)
                .with_context(|| format!("cannot read {}", json.display()))?;
            println!("{}", picture::draw(&serde_json::from_str(&text)?));
        }
    }
    Ok(())
}
