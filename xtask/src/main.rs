//! Developer tasks: `cargo xtask TASK`. One file or folder per task.

// A tool that nobody can hear may as well end.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod agent;
mod apt;
mod bench;
mod boot_chart;
mod boundaries;
mod cpio;
mod demo;
mod dist;
mod host;
mod image;
mod in_guest;
mod kernel;
mod kvm;
mod paths;
mod record;
mod setup;
mod sh;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use paths::Tree;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks of bulkhead")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing from Debian's packages (says what and why first)
    Setup(setup::Options),
    /// Build the guest kernel: build/kernel/vmlinux
    Kernel(kernel::Options),
    /// Build the guest agent as a static program
    Agent,
    /// Build the guest's initial file system: build/initramfs.cpio
    Initramfs,
    /// Build everything and collect it in build/root/
    Dist(dist::Options),
    /// Build a real Debian image of three layers: build/images/debian-oci
    Image(image::Options),
    /// Run a command in a throw-away host with a genuine KVM
    Host(host::Options),
    /// Say whether /dev/kvm is the hardware's
    Kvm,
    /// Build everything and run a real image
    Demo,
    /// Run all checks and the end-to-end suite
    Test(test::Options),
    /// Run the agent's own suite as PID 1 of the guest kernel, in plain QEMU
    InGuest(in_guest::Options),
    /// Measure starts, memory and networks beside runc, crun and qemu
    Bench(bench::Options),
    /// Say where a guest kernel's boot time went (log on standard input)
    BootChart(boot_chart::Options),
    /// Draw a terminal's output (standard input) as SVG
    Record,
    /// Check who imports whom, and the paths in ARCHITECTURE.md
    Boundaries,
    /// The guest loop behind `kvm`, in a process of its own
    #[command(hide = true)]
    KvmLoop,
}

fn main() -> ExitCode {
    run(Arguments::parse().task).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(task: Task) -> Result<ExitCode> {
    let tree = Tree::find()?;
    match task {
        Task::Setup(options) => setup::run(&options)?,
        Task::Kernel(options) => kernel::run(&tree, &options)?,
        Task::Agent => println!("{}", agent::build(&tree)?.display()),
        Task::Initramfs => println!("{}", agent::initramfs(&tree)?.display()),
        Task::Dist(options) => dist::run(&tree, &options)?,
        Task::Image(options) => println!("{}", image::run(&tree, &options)?.display()),
        Task::Host(options) => return Ok(host::run(&tree, &options)),
        Task::Kvm => {
            let verdict = kvm::verdict();
            println!("{verdict}");
            return Ok(if verdict.usable() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Demo => return demo::run(&tree),
        Task::Test(options) => return test::run(&tree, &options),
        Task::InGuest(options) => in_guest::run(&tree, &options)?,
        Task::Bench(options) => return bench::run(&tree, &options),
        Task::BootChart(options) => boot_chart::run(&tree, &options)?,
        Task::Record => record::run()?,
        Task::Boundaries => boundaries::run(&tree)?,
        Task::KvmLoop => kvm::guest_loop()?,
    }
    Ok(ExitCode::SUCCESS)
}
