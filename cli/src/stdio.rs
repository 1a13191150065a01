//! This process's own stdio, attached to a container's process.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};

use clap::Args;
use runtime::container::ContainerError;
use runtime::streams::{HostStdio, Input, Output};
use runtime::sys::descriptors::{own_stdio, window_size};

/// `-i` and `-t`.
#[derive(Debug, Clone, Copy, Args)]
pub struct AttachFlags {
    /// Keep stdin open and pass it on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
}

impl AttachFlags {
    /// Refuses `-it` without a terminal before anything is made.
    pub fn check(self) -> anyhow::Result<()> {
        if self.tty && self.interactive && !std::io::stdin().is_terminal() {
            return Err(ContainerError::NotATerminal.into());
        }
        Ok(())
    }

    /// Rows and columns of our terminal, for a process that is to have it.
    pub fn size(self) -> Option<(u16, u16)> {
        let stdin = if self.tty { own_stdio(0).ok()? } else { return None };
        window_size(stdin.as_fd()).ok().filter(|&(rows, columns)| rows > 0 && columns > 0)
    }

    /// Stdio of a process in the foreground, and the terminal to make raw.
    pub fn foreground(self) -> anyhow::Result<(HostStdio, Option<OwnedFd>)> {
        let output = |number| -> std::io::Result<Output> {
            Ok(Output { fd: Some(own_stdio(number)?), log: None })
        };
        let stdio = HostStdio {
            terminal: self.tty,
            stdin: if self.interactive { Input::Fd(own_stdio(0)?) } else { Input::None },
            stdout: output(1)?,
            stderr: if self.tty { Output::default() } else { output(2)? },
            descriptors: Vec::new(),
        };
        let raw = self.tty && self.interactive;
        Ok((stdio, if raw { Some(own_stdio(0)?) } else { None }))
    }

    /// Stdio of a process in the background.
    pub fn background(self) -> HostStdio {
        let stdin = if self.interactive { Input::Idle } else { Input::None };
        HostStdio { terminal: self.tty, stdin, ..HostStdio::default() }
    }
}
