//! Errors and warnings: to people on stderr, to engines as runc writes them.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;

use runtime::say;
use runtime::time::Timestamp;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{Global, LogFormat};

/// Where the log goes.
pub struct Log {
    format: LogFormat,
    file: Option<File>,
}

impl Log {
    /// Begins to log as the options say.
    pub fn begin(global: &Global) -> Log {
        let open = || {
            let path = global.log.as_ref()?;
            let mut options = File::options();
            match options.append(true).create(true).open(path) {
                Ok(file) => Some(file),
                Err(error) => {
                    say(&format!("cannot open the log {}: {error}", path.display()));
                    None
                }
            }
        };
        let level = if global.debug { Level::DEBUG } else { Level::WARN };
        let lines =
            Lines { log: Mutex::new(Log { format: global.log_format, file: open() }), level };
        // A second one, in a test for instance, changes nothing.
        let _ = tracing_subscriber::registry().with(lines).try_init();
        Log { format: global.log_format, file: open() }
    }

    /// Says why the verb failed.
    pub fn fatal(mut self, error: &anyhow::Error) {
        let text = runtime::sandbox::ended::tame(&runtime::container::chain(error.as_ref()));
        if self.file.is_some() {
            self.write("error", &text);
        }
        say(&format!("bulkhead-runtime: {text}"));
    }

    fn write(&mut self, level: &str, text: &str) {
        let time = Timestamp::now().to_string();
        let line = match self.format {
            LogFormat::Json => json!({ "level": level, "msg": text, "time": time }).to_string(),
            LogFormat::Text => format!("time={time:?} level={level} msg={text:?}"),
        };
        // There is nobody left to tell of a log that cannot be written.
        let _ = match &mut self.file {
            Some(file) => file.write_all(format!("{line}\n").as_bytes()),
            None => writeln!(std::io::stderr(), "{line}"),
        };
    }
}

struct Lines {
    log: Mutex<Log>,
    level: Level,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.level
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            _ => "debug",
        };
        if let Ok(mut log) = self.log.lock() {
            // Part of it may be a guest's words.
            log.write(level, &runtime::sandbox::ended::tame(&message.0));
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}
