//! Bars on stderr, one per layer; nothing where stderr is no terminal.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use images::{Event, Phase, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

const TEMPLATE: &str =
    "{prefix}: {msg:<11} [{bar:30}] {bytes:>10}/{total_bytes:<10} {bytes_per_sec}";

/// A bar per blob.
pub struct Bars {
    all: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    /// Draws on stderr.
    pub fn new() -> Bars {
        // indicatif draws nothing where stderr is no terminal.
        Bars { all: MultiProgress::new(), bars: Mutex::default() }
    }

    fn with(&self, item: &str, change: impl FnOnce(&ProgressBar)) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(item.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template(TEMPLATE)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            let hex = item.split_once(':').map_or(item, |(_, hex)| hex);
            let bar = self.all.add(ProgressBar::new(0).with_style(style));
            bar.set_prefix(runtime::id::short(hex).to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        change(bar);
    }
}

fn verb(phase: Phase) -> &'static str {
    match phase {
        Phase::Download => "Downloading",
        Phase::Copy => "Copying",
        Phase::Unpack => "Unpacking",
    }
}

impl Progress for Bars {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Note(text) => {
                let text = crate::output::printable(text);
                if self.all.println(&text).is_err() || self.all.is_hidden() {
                    runtime::say(&text);
                }
            }
            Event::Begin { item, phase, total } => self.with(item, |bar| {
                bar.set_length(total);
                bar.set_position(0);
                bar.set_message(verb(phase));
            }),
            Event::Advance { item, done, .. } => self.with(item, |bar| bar.set_position(done)),
            Event::End { item, phase, cached } => self.with(item, |bar| {
                bar.set_position(bar.length().unwrap_or(0));
                match (phase, cached) {
                    (_, true) => bar.abandon_with_message("Exists"),
                    (Phase::Unpack, false) => bar.abandon_with_message("Complete"),
                    (_, false) => bar.set_message("Fetched"),
                }
            }),
        }
    }
}
