//! The faults of a scenario, counted, with a few examples in words. Lost messages are not among them: those
//! are known only at the end.

use serde::Serialize;

/// Examples kept: enough to see a pattern.
const EXAMPLES_MAX: usize = 5;

/// Faults of the server, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Faults {
    /// Messages that arrived a second time.
    pub(crate) duplicated: u64,
    /// Messages that arrived after later ones of the same sender.
    pub(crate) reordered: u64,
    /// Messages whose text or sender is not what was sent, and malformed frames.
    pub(crate) altered: u64,
    /// Messages that arrived at another user.
    pub(crate) misrouted: u64,
    /// Connections that the server ended.
    #[serde(rename = "cut")]
    pub(crate) ended: u64,
    /// Upgrades that failed.
    pub(crate) refused: u64,
    /// The first few faults, in words.
    pub(crate) examples: Vec<String>,
}

impl Faults {
    pub(crate) fn duplicated(&mut self, example: impl FnOnce() -> String) {
        self.duplicated += 1;
        self.note(example);
    }

    pub(crate) fn reordered(&mut self, example: impl FnOnce() -> String) {
        self.reordered += 1;
        self.note(example);
    }

    pub(crate) fn altered(&mut self, example: impl FnOnce() -> String) {
        self.altered += 1;
        self.note(example);
    }

    pub(crate) fn misrouted(&mut self, example: impl FnOnce() -> String) {
        self.misrouted += 1;
        self.note(example);
    }

    pub(crate) fn ended(&mut self, example: impl FnOnce() -> String) {
        self.ended += 1;
        self.note(example);
    }

    pub(crate) fn refused(&mut self, example: impl FnOnce() -> String) {
        self.refused += 1;
        self.note(example);
    }

    pub(crate) fn total(&self) -> u64 {
        let Self {
            duplicated,
            reordered,
            altered,
            misrouted,
            ended,
            refused,
            examples: _,
        } = self;
        duplicated + reordered + altered + misrouted + ended + refused
    }

    fn note(&mut self, example: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(example());
        }
    }
}

/// The beginning of a text that arrived, for an example.
pub(crate) fn quoted(text: &[u8]) -> String {
    const BYTES_MAX: usize = 120;
    let end = text.len().min(BYTES_MAX);
    format!("{:?}", String::from_utf8_lossy(&text[..end]))
}
