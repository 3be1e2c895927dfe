//! What is wrong with a configuration. A text names the place (file or variable, and key), the value found and
//! the values allowed.

use std::fmt;

/// All problems of a configuration, in the order of the sources; at least one.
#[derive(Debug)]
pub struct ConfigError {
    problems: Vec<SettingsProblem>,
}

/// One problem. `origin` is the name of a file, a variable or an option, or `the built-in default`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsProblem {
    /// A file or a variable cannot be read.
    #[error("{origin}: cannot be read: {reason}")]
    Unreadable {
        /// Its name.
        origin: String,
        /// The system's error.
        reason: String,
    },
    /// A file is not TOML.
    #[error("{origin}: invalid TOML: {reason}")]
    Syntax {
        /// The file's name.
        origin: String,
        /// The parser's error, with the line.
        reason: String,
    },
    /// A key that no setting has.
    #[error("{origin}: {key}: unknown key, allowed: {}{}", known.join(", "), suggestion(key, known))]
    UnknownKey {
        /// Where it is written.
        origin: String,
        /// The key, with its sections.
        key: String,
        /// The known keys of the same section.
        known: Vec<String>,
    },
    /// A value of the wrong type, or one that is not allowed.
    #[error("{origin}: {key}: found {found}, allowed: {allowed}")]
    Value {
        /// Where it is written.
        origin: String,
        /// The key, with its sections.
        key: String,
        /// The value, as written.
        found: String,
        /// The allowed values, in words.
        allowed: String,
    },
}

impl ConfigError {
    pub(super) fn new(problems: Vec<SettingsProblem>) -> Self {
        Self { problems }
    }

    /// All problems.
    pub fn problems(&self) -> &[SettingsProblem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid configuration")?;
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// Keys of earlier versions, and the keys that replace them.
const REPLACED: [(&str, &str); 2] = [
    ("cluster.claims", "cluster.routes"),
    ("cluster.claim_timeout", "cluster.node_timeout"),
];

/// The key that replaces a removed one, or the known key nearest to a misspelt one.
fn suggestion(key: &str, known: &[String]) -> String {
    if let Some((_, replacement)) = REPLACED.iter().find(|(removed, _)| *removed == key) {
        return format!(" (removed; {replacement} replaces it)");
    }
    let (_, name) = key.rsplit_once('.').unwrap_or(("", key));
    nearest(key, name, known.iter().map(String::as_str))
        .map(|candidate| format!(" (did you mean {candidate}?)"))
        .unwrap_or_default()
}

/// The candidate nearest to a misspelt text, of which only `name` may be misspelt.
pub(super) fn nearest<'a>(
    text: &str,
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    // If half of a short name may differ, it is near to every candidate.
    let distance_max = 3.min(name.chars().count() / 2);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(text, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= distance_max)
        .map(|(_, candidate)| candidate)
}
