//! Where `log` records go: the systemd journal when stderr is connected to it, else stderr
//! itself, one line each.
//!
//! The key-values of a record become journal fields: `peer` is `PEERIX_PEER`, so that
//! `journalctl PEERIX_PEER=192.168.1.5` finds it. The names in use: `hash`, `store_path`,
//! `peer`, `bytes`, `duration_us`, `reason`. What comes from the network may be logged as it is:
//! messages and values are made [`single_line`] here.

mod line;

use std::{
    fmt::Display,
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use log::{
    Level, LevelFilter, Log, Metadata, Record, SetLoggerError,
    kv::{self, Key, Value, VisitSource},
};
use systemd_journal_logger::{JournalLog, connected_to_journal};

pub use line::{chain, single_line};

const IDENTIFIER: &str = "peerix";
const OWN_TARGET: &str = "peerix";

/// Where the records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The systemd journal, with fields.
    Journal,
    /// stderr.
    Stderr,
}

/// Sets up logging for the whole process, once. `log::set_max_level` changes the level later.
pub fn init(level: LevelFilter) -> Result<Destination, SetLoggerError> {
    let journal = if connected_to_journal() {
        JournalLog::empty().ok()
    } else {
        None
    };
    let destination = match journal {
        Some(journal) => {
            log::set_boxed_logger(Box::new(ToJournal(
                journal.with_syslog_identifier(IDENTIFIER.into()),
            )))?;
            Destination::Journal
        }
        None => {
            log::set_boxed_logger(Box::new(ToStderr))?;
            Destination::Stderr
        }
    };
    log::set_max_level(level);
    Ok(destination)
}

/// Libraries are heard from when something is wrong; their talk would drown ours.
fn is_wanted(metadata: &Metadata<'_>) -> bool {
    let limit = if is_own(metadata.target()) {
        LevelFilter::Trace
    } else {
        LevelFilter::Warn
    };
    metadata.level() <= limit && metadata.level() <= log::max_level()
}

fn is_own(target: &str) -> bool {
    target
        .strip_prefix(OWN_TARGET)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

struct ToJournal(JournalLog);

impl Log for ToJournal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_wanted(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !is_wanted(record.metadata()) {
            return;
        }
        let fields = fields(record, journal_field);
        let sent = self.0.journal_send(
            &Record::builder()
                .metadata(record.metadata().clone())
                .args(format_args!("{}", single_line(record.args())))
                .module_path(record.module_path())
                .file(record.file())
                .line(record.line())
                .key_values(&fields)
                .build(),
        );
        if sent.is_err() {
            // journald is away; what systemd reads from our stderr is kept until it is back.
            ToStderr.log(record);
        }
    }

    fn flush(&self) {}
}

struct ToStderr;

impl Log for ToStderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_wanted(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if is_wanted(record.metadata()) {
            let since_epoch = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            // A closed stderr is no reason to stop.
            io::stderr()
                .write_all(stderr_line(since_epoch.as_secs(), record).as_bytes())
                .unwrap_or_default();
        }
    }

    fn flush(&self) {}
}

/// `14:03:59Z info  served ... peer=192.168.1.5 bytes=1024`, the time in UTC.
fn stderr_line(unix_seconds: u64, record: &Record<'_>) -> String {
    let (hours, minutes, seconds) = (
        unix_seconds / 3600 % 24,
        unix_seconds / 60 % 60,
        unix_seconds % 60,
    );
    let level = match record.level() {
        Level::Error => "error",
        Level::Warn => "warn ",
        Level::Info => "info ",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let mut line = format!(
        "{hours:02}:{minutes:02}:{seconds:02}Z {level} {}",
        single_line(record.args())
    );
    for (name, value) in fields(record, str::to_owned) {
        line.push(' ');
        line.push_str(&name);
        line.push('=');
        if value.is_empty() || value.contains([' ', '"']) {
            line.push_str(&format!("\"{}\"", value.replace('"', "\\\"")));
        } else {
            line.push_str(&value);
        }
    }
    line.push('\n');
    line
}

fn journal_field(key: &str) -> String {
    format!("PEERIX_{}", key.to_ascii_uppercase())
}

/// The record's key-values, in order, each value on one line.
fn fields(record: &Record<'_>, name: fn(&str) -> String) -> Vec<(String, String)> {
    struct Collect(Vec<(String, String)>, fn(&str) -> String);
    impl<'kvs> VisitSource<'kvs> for Collect {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            self.0.push((self.1(key.as_str()), text(&value)));
            Ok(())
        }
    }
    let mut collected = Collect(Vec::new(), name);
    // Collect never fails, and what a source could not give is left out.
    record
        .key_values()
        .visit(&mut collected)
        .unwrap_or_default();
    collected.0
}

fn text(value: &dyn Display) -> String {
    single_line(value).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_line(level: Level, message: &str, fields: &[(&str, &str)]) -> String {
        let seconds = 86_400 * 19_000 + 3_600 * 14 + 60 * 3 + 59;
        stderr_line(
            seconds,
            &Record::builder()
                .level(level)
                .args(format_args!("{message}"))
                .key_values(&fields)
                .build(),
        )
    }

    #[test]
    fn one_record_is_one_line() {
        assert_eq!(
            record_line(
                Level::Info,
                "served hello-2.12",
                &[("peer", "192.168.1.5"), ("bytes", "1024")]
            ),
            "14:03:59Z info  served hello-2.12 peer=192.168.1.5 bytes=1024\n"
        );
        assert_eq!(
            record_line(
                Level::Warn,
                "bad\npeer\u{1b}[2J",
                &[("reason", "said \"no\"\r\nfake line"), ("hash", "")]
            ),
            "14:03:59Z warn  bad\\npeer\\u{1b}[2J reason=\"said \\\"no\\\"\\r\\nfake line\" hash=\"\"\n"
        );
    }

    #[test]
    fn keys_become_journal_fields_of_ours() {
        for (key, field) in [
            ("hash", "PEERIX_HASH"),
            ("store_path", "PEERIX_STORE_PATH"),
            ("duration_us", "PEERIX_DURATION_US"),
        ] {
            assert_eq!(journal_field(key), field);
        }
    }

    #[test]
    fn libraries_are_heard_only_when_something_is_wrong() {
        log::set_max_level(LevelFilter::Debug);
        let wanted =
            |target, level| is_wanted(&Metadata::builder().target(target).level(level).build());
        assert!(wanted("peerix", Level::Debug) && wanted("peerix::lan", Level::Debug));
        assert!(!wanted("peerix", Level::Trace));
        assert!(wanted("hyper", Level::Warn));
        assert!(!wanted("hyper", Level::Info) && !wanted("peerixes", Level::Info));
    }
}
