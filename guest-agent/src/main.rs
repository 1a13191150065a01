//! `/init` of the guest. See the library for what it does.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    bulkhead_agent::roles::dispatch(&std::env::args_os().next().unwrap_or_default());
    if std::process::id() != 1 {
        let words = "bulkhead-agent: runs as PID 1 of a bulkhead machine, and as nothing else";
        let _ = writeln!(std::io::stderr(), "{words}");
        return ExitCode::from(2);
    }
    bulkhead_agent::init::main(bulkhead_agent::server::main)
}
