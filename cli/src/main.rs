//! The `bulkhead` command. See `commands` for its verbs.

mod args;
mod bandwidth_flags;
mod commands;
mod doctor;
mod errors;
mod image_store;
mod network_flags;
mod output;
mod progress;
mod stdio;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("BULKHEAD_LOG")
                .unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .without_time()
        // It would be told to stderr, which is what could not be written; and panic then.
        .log_internal_errors(false)
        .init();
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return errors::usage(&error),
    };
    match commands::dispatch(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => errors::report(&error),
    }
}
