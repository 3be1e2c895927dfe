//! Frames that wait, end to end in chunks of one write each. A buffer in one piece is copied whole when
//! it doubles, and mailboxes that fill alike double at the same moment: a hundred mailboxes of a megabyte
//! each delayed other users by up to 14 ms. Must not know what a frame is.

use std::collections::VecDeque;

/// The most bytes of one write. Messages beyond it stay in the mailbox, where they can still make room
/// for newer ones.
pub(super) const WRITE_BYTES: usize = 64 * 1024;

/// Whole frames, none of which is in two chunks. A chunk has at most [`WRITE_BYTES`], or one frame.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The chunk that is taken next. Its frames begin at `start`.
    first: Vec<u8>,
    start: usize,
    /// The chunks behind it, none of them empty; `None` if there are none.
    #[expect(
        clippy::box_collection,
        reason = "saves 24 bytes of every user whose frames fit into one write"
    )]
    more: Option<Box<VecDeque<Vec<u8>>>>,
}

impl Frames {
    /// Takes an empty buffer. There must be none yet.
    pub(super) fn reuse(&mut self, buffer: Vec<u8>) {
        debug_assert!(
            !self.has_buffer() && self.more.is_none(),
            "there is a buffer already"
        );
        self.first = buffer;
    }

    /// Whether there is a buffer at all.
    pub(super) fn has_buffer(&self) -> bool {
        self.first.capacity() > 0
    }

    /// Bytes of all frames.
    pub(super) fn bytes(&self) -> usize {
        let more = self.more.iter().flat_map(|more| more.iter());
        self.first_bytes() + more.map(Vec::len).sum::<usize>()
    }

    /// Bytes of those in the first chunk.
    pub(super) fn first_bytes(&self) -> usize {
        self.first.len() - self.start
    }

    /// The buffer for the next frame. The caller must append exactly `bytes` bytes to it.
    pub(super) fn room_for(&mut self, bytes: usize) -> &mut Vec<u8> {
        let needed = self.first.len() + bytes;
        if self.more.is_none() && needed <= self.first.capacity().min(WRITE_BYTES) {
            return &mut self.first;
        }
        self.grow(bytes)
    }

    fn grow(&mut self, bytes: usize) -> &mut Vec<u8> {
        let last = self.last();
        if !last.is_empty() && last.len() + bytes > WRITE_BYTES {
            // A second chunk may hold only the end of a burst, so it grows as needed. Later ones will
            // be filled, so they get their full size at once.
            let capacity = self.more.as_ref().map_or(0, |_| WRITE_BYTES);
            let more = self.more.get_or_insert_default();
            more.push_back(Vec::with_capacity(capacity));
        }
        let last = self.last();
        let needed = last.len() + bytes;
        if needed > last.capacity() {
            let capacity = needed.max((last.capacity() * 2).min(WRITE_BYTES));
            last.reserve_exact(capacity - last.len());
        }
        last
    }

    /// The chunk of the last frame.
    fn last(&mut self) -> &mut Vec<u8> {
        let more = self.more.as_mut();
        more.and_then(|more| more.back_mut())
            .unwrap_or(&mut self.first)
    }

    /// Makes the next chunk the first one, if there is one.
    fn advance(&mut self) -> bool {
        let Some(more) = &mut self.more else {
            return false;
        };
        if let Some(next) = more.pop_front() {
            self.first = next;
            self.start = 0;
        }
        if more.is_empty() {
            self.more = None;
        }
        true
    }

    /// Drops the last frame, which has so many bytes.
    pub(super) fn drop_last(&mut self, bytes: usize) {
        let last = self.last();
        last.truncate(last.len() - bytes);
        if let Some(more) = &mut self.more {
            more.pop_back_if(|last| last.is_empty());
            if more.is_empty() {
                self.more = None;
            }
        } else if self.first_bytes() == 0 {
            self.first.clear();
            self.start = 0;
        }
    }

    /// Drops so many bytes of whole frames from the front of the first chunk.
    pub(super) fn drop_first(&mut self, bytes: usize) {
        self.start += bytes;
        if self.first_bytes() == 0 && self.advance() {
            return;
        }
        if self.more.is_none() && self.start * 2 > self.first.len() {
            // Only when half is dropped, so that at most one byte moves for each dropped one.
            self.first.drain(..self.start);
            self.start = 0;
        }
    }

    /// Swaps buffers with `out` if that moves all frames: `out` is empty, and they are in one chunk of
    /// at most `bytes_max` bytes. Returns whether it did.
    pub(super) fn swap_all(&mut self, out: &mut Vec<u8>, bytes_max: usize) -> bool {
        let can = out.is_empty() && self.start == 0 && self.more.is_none();
        if can && self.first.len() <= bytes_max {
            std::mem::swap(out, &mut self.first);
            return true;
        }
        false
    }

    /// Moves so many bytes of whole frames from the front of the first chunk to the end of `out`. A
    /// whole chunk moves into an empty buffer without a copy.
    pub(super) fn take(&mut self, bytes: usize, out: &mut Vec<u8>) {
        if out.is_empty() && self.start == 0 && bytes == self.first.len() {
            std::mem::swap(out, &mut self.first);
            self.advance();
        } else {
            out.extend_from_slice(&self.first[self.start..self.start + bytes]);
            self.drop_first(bytes);
        }
    }

    /// Puts frames in front of all others. There must be at least one.
    pub(super) fn put_back(&mut self, frames: &[u8]) {
        debug_assert!(
            !frames.is_empty(),
            "an empty first chunk must have none behind it"
        );
        let mut next = std::mem::replace(&mut self.first, frames.to_vec());
        let start = std::mem::take(&mut self.start);
        if start < next.len() {
            next.drain(..start);
            self.more.get_or_insert_default().push_front(next);
        }
    }

    /// Returns the buffer. All frames must be gone.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        debug_assert!(self.more.is_none(), "frames are left");
        self.first
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(usize),
        DropLast,
        DropFirst,
        /// At most so many frames, into a buffer that already has content or not.
        Take(usize, bool),
        /// Takes at most so many frames and puts them back.
        Return(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = prop_oneof![
            1..100_usize,
            Just(1000),
            Just(20_000),
            Just(40_000),
            Just(70_000)
        ];
        prop_oneof![
            6 => bytes.prop_map(Step::Push),
            1 => Just(Step::DropLast),
            1 => Just(Step::DropFirst),
            2 => (1..100_usize, any::<bool>()).prop_map(|(count, behind)| Step::Take(count, behind)),
            1 => (1..100_usize).prop_map(Step::Return),
        ]
    }

    /// Frames, and the same frames in the simplest form.
    #[derive(Default)]
    struct Both {
        frames: Frames,
        plain: VecDeque<Vec<u8>>,
        pushed: u8,
    }

    impl Both {
        fn push(&mut self, bytes: usize) {
            self.pushed = self.pushed.wrapping_add(1);
            let frame = vec![self.pushed; bytes];
            let room = self.frames.room_for(bytes);
            let capacity = room.capacity();
            room.extend(&frame);
            assert_eq!(room.capacity(), capacity, "there is room");
            assert!(room.len() == bytes || room.len() <= WRITE_BYTES);
            self.plain.push_back(frame);
        }

        /// What is taken is as it was pushed, and in the first chunk.
        fn take(&mut self, count: usize, mut out: Vec<u8>) -> Vec<u8> {
            let before = out.len();
            let mut expected = Vec::new();
            for _ in 0..count {
                let is_next =
                    |next: &mut Vec<u8>| expected.len() + next.len() <= self.frames.first_bytes();
                let Some(next) = self.plain.pop_front_if(is_next) else {
                    break;
                };
                expected.extend(next);
            }
            assert!(!expected.is_empty() || self.plain.is_empty());
            self.frames.take(expected.len(), &mut out);
            assert!(out[before..] == expected);
            expected
        }

        fn go(&mut self, step: Step) {
            match step {
                Step::Push(bytes) => self.push(bytes),
                Step::DropLast => {
                    if let Some(last) = self.plain.pop_back() {
                        self.frames.drop_last(last.len());
                    }
                }
                Step::DropFirst => {
                    if let Some(first) = self.plain.pop_front() {
                        self.frames.drop_first(first.len());
                    }
                }
                Step::Take(count, is_behind) => {
                    self.take(count, vec![0; usize::from(is_behind)]);
                }
                Step::Return(count) => {
                    let taken = self.take(count, Vec::new());
                    if !taken.is_empty() {
                        self.frames.put_back(&taken);
                        self.plain.push_front(taken);
                    }
                }
            }
            let bytes: usize = self.plain.iter().map(Vec::len).sum();
            assert_eq!(self.frames.bytes(), bytes);
            if let Some(more) = &self.frames.more {
                assert!(!more.is_empty() && more.iter().all(|chunk| !chunk.is_empty()));
            }
        }
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(steps in proptest::collection::vec(step(), 0..100)) {
            let mut both = Both::default();
            for step in steps {
                both.go(step);
            }
            while !both.plain.is_empty() {
                both.take(usize::MAX, Vec::new());
            }
            prop_assert!(both.frames.more.is_none());
        }
    }

    #[test]
    fn dropping_from_both_ends_leaves_nothing_behind() {
        let mut both = Both::default();
        let push = |_| Step::Push(20_000);
        let drop = [Step::DropFirst, Step::DropLast, Step::DropLast];
        for step in (0..3).map(push).chain(drop) {
            both.go(step);
        }
        both.push(60_000);
        both.take(1, Vec::new());
        assert_eq!(both.plain.len(), 0);
    }

    #[test]
    fn no_chunk_grows_beyond_a_write() {
        let mut both = Both::default();
        for _ in 0..100 {
            both.push(10_000);
        }
        let more = both.frames.more.as_ref().unwrap();
        assert_eq!(more.len(), 16, "of six frames each");
        let chunks = more.iter().chain([&both.frames.first]);
        assert!(chunks.map(Vec::capacity).all(|bytes| bytes <= WRITE_BYTES));
        let chunk = both.frames.first.as_ptr();
        let mut out = Vec::new();
        both.frames.take(60_000, &mut out);
        assert_eq!(out.as_ptr(), chunk, "a whole one is not copied");
    }
}
