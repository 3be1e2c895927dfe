//! The input and output of `connect` in a pipe: a frame of `switchboard.v1` in each line.

use std::io::{self, BufRead, Read, Write};
use std::thread;

use serde_json::Value;

use super::conversation::{InputError, InputSender, Interface};

/// The longest line: no relay takes a larger frame (`limits.frame_bytes`).
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// JSON lines on stdin and stdout.
#[derive(Debug)]
pub(super) struct FrameLines;

impl FrameLines {
    /// Begins to read. A thread of its own does, because a read of stdin cannot be cancelled.
    pub(super) fn start(typed: InputSender) -> Box<dyn Interface> {
        thread::spawn(move || {
            let mut input = io::stdin().lock();
            for number in 1.. {
                let Some(line) = next_line(&mut input, number).transpose() else {
                    return;
                };
                let is_last = line.is_err();
                let is_empty = line.as_ref().is_ok_and(|line| line.trim_ascii().is_empty());
                if !is_empty && !typed.put(line) || is_last {
                    return;
                }
            }
        });
        Box::new(Self)
    }
}

fn next_line(input: &mut impl BufRead, number: u64) -> Result<Option<String>, InputError> {
    let mut line = Vec::new();
    let read = input
        .take(LINE_BYTES_MAX + 1)
        .read_until(b'\n', &mut line)?;
    if read as u64 > LINE_BYTES_MAX {
        let (line, limit) = (number, LINE_BYTES_MAX);
        return Err(InputError::TooLong { line, limit });
    }
    line.truncate(line.strip_suffix(b"\n").unwrap_or(&line).len());
    let line = String::from_utf8(line).map_err(|_| InputError::NotUtf8 { line: number })?;
    Ok((read > 0).then_some(line))
}

impl Interface for FrameLines {
    fn show(&mut self, text: &str, _frame: &Value) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.write_all(b"\n")?;
        out.flush()
    }

    fn tell(&mut self, notice: &str) {
        drop(writeln!(io::stderr(), "switchboard: {notice}"));
    }
}
