//! The background process of a container: its supervisor, its log's writer.

use clap::Args;
use runtime::container::handover::Reporter;
use runtime::container::supervise::{self, Attachment};
use runtime::container::{Container, ContainerError};
use runtime::streams::forward::Caught;

use crate::errors;
use crate::stdio::AttachFlags;

/// Options of `monitor`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Id of a container that was created
    id: String,
}

/// Runs the container to its end and tells the caller whether it started.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let reporter = Reporter::detach();
    let mut waiting = Some(reporter);
    let result = super::block_on(async {
        let container = super::containers().find(&arguments.id)?;
        let attachment = attachment(&container)?;
        let started = || {
            if let Some(reporter) = waiting.take() {
                reporter.started();
            }
        };
        Ok(supervise::run(&container, attachment, started).await?)
    });
    match result {
        Ok(outcome) => {
            if let Some(note) = outcome.cut_note() {
                runtime::say(&note);
            }
            if let Some(error) = outcome.error {
                errors::say(&error);
            }
            Ok(0)
        }
        Err(error) => {
            let code = error.downcast_ref().map_or(errors::OWN, ContainerError::exit_code);
            match waiting {
                Some(reporter) => reporter.failed(errors::chain(&error), code),
                None => errors::say(&errors::chain(&error)),
            }
            Ok(1)
        }
    }
}

fn attachment(container: &Container) -> anyhow::Result<Attachment> {
    let flags = AttachFlags { interactive: container.config.stdin, tty: container.config.tty };
    let mut stdio = flags.background();
    stdio.stdout.log = Some(container.open_log("stdout")?);
    if !flags.tty {
        stdio.stderr.log = Some(container.open_log("stderr")?);
    }
    Ok(Attachment { stdio, terminal: None, signals: Some(Caught::begin()?) })
}
