//! `kill`.

use clap::Args;
use runtime::oci::verbs;
use runtime::signals::SignalNumber;

use crate::args::Global;

/// Options of `kill`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// To all processes of the container
    #[arg(short, long)]
    pub all: bool,
    /// Id of the container
    pub id: String,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

/// Sends the signal.
pub fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<u8> {
    // 0 asks whether it lives, as kill(2) has it.
    let signal = match arguments.signal.as_str() {
        "0" => 0,
        text => text.parse::<SignalNumber>()?.0,
    };
    verbs::kill(&super::find(global, &arguments.id)?, signal, arguments.all)?;
    Ok(0)
}
