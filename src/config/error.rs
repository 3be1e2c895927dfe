//! What is wrong with a configuration, said so that whoever wrote it finds the place: the file or
//! variable, the key, what was found and what is allowed.

use std::fmt;

/// Everything that was found wrong, in the order of the sources; at least one problem.
#[derive(Debug)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

/// One thing that is wrong. `origin` is a file's name, a variable's, an option's, or
/// `the built-in default`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A file or a variable cannot be read at all.
    #[error("{origin}: cannot be read: {reason}")]
    Unreadable {
        /// Its name.
        origin: String,
        /// What the system says.
        reason: String,
    },
    /// A file is not TOML.
    #[error("{origin}: is not TOML: {reason}")]
    Syntax {
        /// The file's name.
        origin: String,
        /// What the parser says, with the line.
        reason: String,
    },
    /// There is no such key.
    #[error("{origin}: {key}: found an unknown key, allowed: {}{}", known.join(", "), suggestion(key, known))]
    UnknownKey {
        /// Where it is written.
        origin: String,
        /// The key, with its sections.
        key: String,
        /// The keys that could stand there.
        known: Vec<String>,
    },
    /// The value has the wrong type, or cannot be.
    #[error("{origin}: {key}: found {found}, allowed: {allowed}")]
    Value {
        /// Where it is written.
        origin: String,
        /// The key, with its sections.
        key: String,
        /// The value, as written.
        found: String,
        /// The values that could stand there, in words.
        allowed: String,
    },
}

impl ConfigError {
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        Self { problems }
    }

    /// The problems, one by one.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration does not hold")?;
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// The known key that a typo may have meant.
fn suggestion(key: &str, known: &[String]) -> String {
    let (_, name) = key.rsplit_once('.').unwrap_or(("", key));
    // With half of a short name changed, any key is near.
    let distance_max = 3.min(name.chars().count() / 2);
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= distance_max)
        .map(|(_, candidate)| format!(" (did you mean {candidate}?)"))
        .unwrap_or_default()
}
