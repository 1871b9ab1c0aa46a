//! What commands print: data to stdout, all else to stderr. The only place that may print.
//!
//! Owns: the two forms of an answer (a table for people, JSON for programs), colours (`NO_COLOR` turns them off, and
//! so does a pipe), progress bars (on a terminal only). It must not know what is printed.

use std::io::{IsTerminal as _, Write as _};
use std::time::SystemTime;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

use super::exit::{CliError, one_line};

/// A table for people, JSON for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
}

/// Data: one answer, as the form that was asked for.
pub(crate) fn show(
    output: Output,
    json: impl FnOnce() -> Value,
    table: impl FnOnce() -> String,
) -> Result<(), CliError> {
    let mut text = match output {
        Output::Table => table(),
        Output::Json => {
            serde_json::to_string_pretty(&json()).map_err(|error| CliError::Failed(format!("json: {error}")))?
        }
    };
    text.push('\n');
    write(text.as_bytes())
}

/// Data, byte for byte.
pub(crate) fn write(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    let done = stdout.write_all(bytes).and_then(|()| stdout.flush());
    done.map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => CliError::OutputClosed,
        _ => CliError::Failed(format!("writing the output: {error}")),
    })
}

/// A line for the person who waits; not data.
pub(crate) fn note(text: &str) {
    // When stderr is gone, there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The last line of a command that did not do what it was asked.
pub(crate) fn error(text: &str) {
    let label = if stderr_in_colour() { "\x1b[1;31merror\x1b[0m" } else { "error" };
    note(&format!("{label}: {text}"));
}

pub(crate) fn stderr_in_colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Progress bars go to stderr, and only when somebody watches.
pub(crate) fn progress_wanted() -> bool {
    std::io::stderr().is_terminal()
}

/// A point in time, as RFC 3339 in UTC.
pub(crate) fn time(time: Option<SystemTime>) -> Option<String> {
    let time = jiff::Timestamp::try_from(time?).ok()?;
    Some(time.to_string())
}

/// A table without lines: columns that `awk` and the eye both find. `right` are the columns of numbers.
pub(crate) fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.to_vec());
    table.add_rows(rows.into_iter().map(|row| row.iter().map(|cell| one_line(cell)).collect::<Vec<String>>()));
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_columns() {
        let rows = [vec!["a1".to_owned(), "7".to_owned()], vec!["longer".to_owned(), "1234".to_owned()]];
        let text = table(&["NODE", "SEQ"], &[1], rows);
        assert_eq!(text, "NODE     SEQ\na1         7\nlonger  1234");
    }

    #[test]
    fn an_empty_table_keeps_its_header() {
        assert_eq!(table(&["NODE", "SEQ"], &[], []), "NODE  SEQ");
    }
}
