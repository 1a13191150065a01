//! `bulkhead-runtime`: the verbs of the OCI runtime specification with the command
//! line of runc, so that engines take the one for the other.

mod args;
mod commands;
mod log;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    let given = commands::Given::take(&arguments.command);
    let log = log::Log::begin(&arguments.global);
    match commands::dispatch(&arguments, given) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.fatal(&error);
            ExitCode::from(commands::code_of(&error))
        }
    }
}
