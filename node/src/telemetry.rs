//! What the process says about itself, on stderr.
//!
//! Owns: the log's format and level, and the last words of a panic. It must not know what is logged; that nothing of a
//! patient is in a log line is the duty of whoever writes the line. The one thing kept out here is the payload of a
//! panic: nobody can promise what is in it.
//!
//! Traces go another way: [`otlp`], for the requests that [`sampling`] chooses.
//!
//! The level is a filter in `CHARTHOLD_LOG`, else in `RUST_LOG`, else `info`: for example `info,charthold=debug`.

pub mod otlp;
pub mod sampling;

use std::io::Write as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::LogFormat;

/// Openraft tells every step of an election, and of a stop; what an operator can act on, our own lines say.
const OPENRAFT_QUIET: &str = "openraft=off";
const FILTER_VARIABLES: [&str; 2] = ["CHARTHOLD_LOG", "RUST_LOG"];

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("{variable} is no log filter: {reason}")]
    BadFilter { variable: &'static str, reason: String },
    #[error("the log was set up before")]
    AlreadySet,
}

/// Sends log lines to stderr and makes a panic end the process. Once, before any other thread runs.
pub fn init(format: LogFormat) -> Result<(), TelemetryError> {
    abort_on_panic();
    init_log(format, LevelFilter::INFO)
}

/// The same for a command that talks to a person: it says nothing below a warning unless a filter asks for it.
pub fn init_command() -> Result<(), TelemetryError> {
    abort_on_panic();
    init_log(LogFormat::Text, LevelFilter::WARN)
}

fn init_log(format: LogFormat, default: LevelFilter) -> Result<(), TelemetryError> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(default)?).with_writer(std::io::stderr);
    let done = match format {
        LogFormat::Text => builder.with_ansi(crate::cli::output::stderr_in_colour()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    done.map_err(|_| TelemetryError::AlreadySet)
}

fn filter(default: LevelFilter) -> Result<EnvFilter, TelemetryError> {
    let set = |variable: &'static str| {
        std::env::var(variable).ok().filter(|value| !value.is_empty()).map(|value| (variable, value))
    };
    let Some((variable, value)) = FILTER_VARIABLES.into_iter().find_map(set) else {
        let filter = EnvFilter::default().add_directive(default.into());
        return Ok(filter.add_directive(OPENRAFT_QUIET.parse().expect("invariant: the directive is well formed")));
    };
    let builder = EnvFilter::builder().with_default_directive(default.into());
    builder.parse(value).map_err(|error| TelemetryError::BadFilter { variable, reason: error.to_string() })
}

/// A panic may have left a lock poisoned or an entry half applied: no thread may go on. The payload is not printed, it
/// might hold what a patient's record says.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let line = last_words(&place, thread.name().unwrap_or("unnamed"));
        // Not through the log: what panicked may be the log.
        let _ = std::io::stderr().write_all(line.as_bytes());
        std::process::abort();
    }));
}

fn last_words(place: &str, thread: &str) -> String {
    format!("charthold: panicked at {place} in thread {thread}; ends here, so that nothing goes on half done\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    /// Runs this test program again, for one test that aborts it.
    fn rerun(test: &str) -> std::process::Output {
        let program = std::env::current_exe().unwrap();
        let mut command = std::process::Command::new(program);
        command.args(["--exact", test, "--nocapture", "--include-ignored"]).env("CHARTHOLD_TEST_PANIC", "1");
        command.output().unwrap()
    }

    #[test]
    fn a_panic_ends_the_process_without_its_payload() {
        if std::env::var_os("CHARTHOLD_TEST_PANIC").is_some() {
            super::abort_on_panic();
            let _ = std::thread::spawn(|| panic!("{} {}", "canary", "payload")).join();
            return;
        }
        let name = concat!(module_path!(), "::a_panic_ends_the_process_without_its_payload");
        let output = rerun(name.split_once("::").unwrap().1);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(text.contains("panicked at") && text.contains("telemetry.rs"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
}
