//! The rule of `log.filter`. The library takes a word that is no level as a target, and then logs nothing else: a
//! misspelt level would silence the log.

use tracing_subscriber::filter::LevelFilter;

use crate::config::error::nearest;
use crate::config::rule::Rule;
use crate::config::settings::LogSettings;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Names of levels in other programs, and the nearest level here.
const FOREIGN_LEVELS: [(&str, &str); 8] = [
    ("none", "off"),
    ("silent", "off"),
    ("fatal", "error"),
    ("critical", "error"),
    ("notice", "info"),
    ("verbose", "debug"),
    ("fine", "debug"),
    ("all", "trace"),
];

pub(super) fn rule(log: &LogSettings) -> Rule {
    let LogSettings { format: _, filter } = log;
    let is_empty = filter.split(',').all(str::is_empty);
    let mut directives = filter.split(',');
    let wrong = directives.find(|directive| !directive.is_empty() && !has_level(directive));
    let suggestion = wrong
        .and_then(suggestion)
        .map_or_else(String::new, |suggestion| {
            format!(" (did you mean {suggestion:?}?)")
        });
    let allowed = format!(
        "off, error, warn, info, debug, trace, or targets with one of these, such as \
         \"info,switchboard=debug\"{suggestion}"
    );
    Rule::new("log.filter", allowed, !is_empty && wrong.is_none())
}

/// Whether a directive is a level, or a target with one.
fn has_level(directive: &str) -> bool {
    match directive.split_once('=') {
        Some((target, level)) => !target.contains('[') && is_level(level),
        None => is_level(directive),
    }
}

/// Whether the library takes this as a level. Not trimmed, because the library takes ` debug` as a target.
fn is_level(text: &str) -> bool {
    !text.is_empty() && text.parse::<LevelFilter>().is_ok()
}

/// The directive that may be meant by one without a level.
fn suggestion(wrong: &str) -> Option<String> {
    let (target, word) = match wrong.rsplit_once('=') {
        Some((target, level)) => (Some(target.trim()), level.trim()),
        None => (None, wrong.trim()),
    };
    // Spans and their fields cannot be chosen.
    let target = target.map(|target| target.split('[').next().unwrap_or(target));
    let lower = word.to_ascii_lowercase();
    let foreign = FOREIGN_LEVELS.iter().find(|(name, _)| *name == lower);
    let level = LEVELS
        .into_iter()
        .find(|level| *level == lower)
        .or_else(|| foreign.map(|(_, level)| *level))
        .or_else(|| nearest(&lower, &lower, LEVELS.into_iter()));
    match (target, level) {
        (Some(target), Some(level)) => Some(format!("{target}={level}")),
        (Some(target), None) if word.is_empty() => Some(format!("{target}=debug")),
        (Some(_), None) => None,
        (None, Some(level)) => Some(level.to_owned()),
        // It may be a target.
        (None, None) => Some(format!("{word}=debug")),
    }
}
