//! What went wrong in a run, counted, with a few examples in words. What is lost is not here: that is
//! known when all is over.

use serde::Serialize;

/// Examples kept: enough to see a pattern.
const EXAMPLES_MAX: usize = 5;

/// Faults of the server, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Faults {
    /// Messages that arrived a second time.
    pub(super) duplicated: u64,
    /// That arrived after later ones of the same sender.
    pub(super) reordered: u64,
    /// Whose text or sender is not what was sent, frames that are none included.
    pub(super) altered: u64,
    /// That arrived at somebody else.
    pub(super) misrouted: u64,
    /// Connections that the server ended.
    pub(super) cut: u64,
    /// Upgrades that failed.
    pub(super) refused: u64,
    /// The first few, in words.
    pub(super) examples: Vec<String>,
}

impl Faults {
    pub(super) fn duplicated(&mut self, example: impl FnOnce() -> String) {
        self.duplicated += 1;
        self.note(example);
    }

    pub(super) fn reordered(&mut self, example: impl FnOnce() -> String) {
        self.reordered += 1;
        self.note(example);
    }

    pub(super) fn altered(&mut self, example: impl FnOnce() -> String) {
        self.altered += 1;
        self.note(example);
    }

    pub(super) fn misrouted(&mut self, example: impl FnOnce() -> String) {
        self.misrouted += 1;
        self.note(example);
    }

    pub(super) fn cut(&mut self, example: impl FnOnce() -> String) {
        self.cut += 1;
        self.note(example);
    }

    pub(super) fn refused(&mut self, example: impl FnOnce() -> String) {
        self.refused += 1;
        self.note(example);
    }

    pub(super) fn in_all(&self) -> u64 {
        let Self {
            duplicated,
            reordered,
            altered,
            misrouted,
            cut,
            refused,
            examples: _,
        } = self;
        duplicated + reordered + altered + misrouted + cut + refused
    }

    fn note(&mut self, example: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(example());
        }
    }
}

/// The start of a text that came, for an example.
pub(super) fn quoted(text: &[u8]) -> String {
    const BYTES_MAX: usize = 120;
    let end = text.len().min(BYTES_MAX);
    format!("{:?}", String::from_utf8_lossy(&text[..end]))
}
