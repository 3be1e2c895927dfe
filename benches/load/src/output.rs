//! Writes a result: to the caller's stream as a table or as JSON, and to files.

use std::io::{self, Write};
use std::path::Path;
use std::{fmt, fs};

use serde::Serialize;

use crate::error::BenchError;
use crate::options::BenchOptions;

/// Writes the result to `out`, and its page to the file of `--report`.
pub(crate) fn publish<T: Serialize + fmt::Display>(
    options: &BenchOptions,
    out: &mut dyn Write,
    result: &T,
    html: impl Fn() -> String,
) -> Result<(), BenchError> {
    if let Some(path) = &options.report {
        write_file(path, &html())?;
    }
    let written = if options.json {
        serde_json::to_writer_pretty(&mut *out, result)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        write!(out, "{result}")
    };
    written.map_err(|source| BenchError::Write {
        what: "the result".to_owned(),
        source,
    })
}

pub(crate) fn write_file(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text).map_err(|source| BenchError::Write {
        what: path.display().to_string(),
        source,
    })
}
