//! The outcomes that this node waits for: a bounded table from tokens to receipts. A token is a place in
//! it and a count of its uses, so that an answer that comes late finds nothing. No token is 0.

use crate::directory::Receipt;

/// Receipts of messages that went to other nodes.
#[derive(Debug)]
pub(super) struct Waiting {
    places: Vec<Place>,
    free: Vec<u32>,
    max: usize,
}

#[derive(Debug)]
struct Place {
    uses: u32,
    waits: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    receipt: Box<Receipt>,
    /// Microseconds of the app's clock.
    until: u64,
}

impl Waiting {
    /// Room for `max` receipts.
    pub(super) fn new(max: u32) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            max: max as usize,
        }
    }

    /// Receipts that wait.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Lets a receipt wait `until` then, for an answer to the token; gives it back where all places
    /// are taken.
    pub(super) fn insert(
        &mut self,
        receipt: Box<Receipt>,
        until: u64,
    ) -> Result<u64, Box<Receipt>> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.places.len() < self.max => {
                self.places.push(Place {
                    // Random, so that another node's token cannot be guessed.
                    uses: fastrand::u32(..),
                    waits: None,
                });
                u32::try_from(self.places.len() - 1).expect("cluster.outcomes_pending is a u32")
            }
            None => return Err(receipt),
        };
        let place = &mut self.places[index as usize];
        // Never 0, so that no token is.
        place.uses = place.uses.wrapping_add(1).max(1);
        place.waits = Some(Wait { receipt, until });
        Ok(u64::from(place.uses) << 32 | u64::from(index))
    }

    /// Takes out the receipt of a token, where it still waits.
    pub(super) fn take(&mut self, token: u64) -> Option<Box<Receipt>> {
        let index = index(token);
        let wait = self.place(token)?.waits.take()?;
        self.free.push(index);
        Some(wait.receipt)
    }

    /// Lets the receipt of a token wait until then.
    pub(super) fn extend(&mut self, token: u64, until: u64) {
        if let Some(wait) = self.place(token).and_then(|place| place.waits.as_mut()) {
            wait.until = until;
        }
    }

    /// Takes out what has waited until before `now`.
    pub(super) fn expire(&mut self, now: u64) -> Vec<Receipt> {
        let mut expired = Vec::new();
        for (index, place) in (0..).zip(&mut self.places) {
            if let Some(wait) = place.waits.take_if(|wait| wait.until <= now) {
                expired.push(*wait.receipt);
                self.free.push(index);
            }
        }
        expired
    }

    fn place(&mut self, token: u64) -> Option<&mut Place> {
        let place = self.places.get_mut(index(token) as usize)?;
        (u64::from(place.uses) == token >> 32).then_some(place)
    }
}

fn index(token: u64) -> u32 {
    u32::try_from(token & 0xFFFF_FFFF).expect("32 bits")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::directory::{Notifier, PendingOutcomes, Wakes};
    use crate::protocol::Status;

    /// A receipt that is known by a number.
    fn receipt(answers: &Arc<PendingOutcomes>, number: u64) -> Receipt {
        *Receipt::to_node(Some((answers.clone(), number)), None, 0).unwrap()
    }

    fn insert(waiting: &mut Waiting, receipt: Receipt, until: u64) -> Result<u64, Box<Receipt>> {
        waiting.insert(Box::new(receipt), until)
    }

    fn settle(receipt: Receipt) {
        receipt.settle(Status::Delivered, &mut Wakes::default());
    }

    #[test]
    fn an_answer_finds_its_receipt_once() {
        let answers = Arc::new(PendingOutcomes::new(Arc::new(Notifier::default())));
        let mut waiting = Waiting::new(2);
        let first = insert(&mut waiting, receipt(&answers, 1), 10).unwrap();
        let second = insert(&mut waiting, receipt(&answers, 2), 20).unwrap();
        settle(*insert(&mut waiting, receipt(&answers, 3), 20).unwrap_err());
        settle(*waiting.take(second).unwrap());
        assert!(waiting.take(second).is_none());
        assert_eq!(waiting.len(), 1);
        let third = insert(&mut waiting, receipt(&answers, 4), 30).unwrap();
        assert!(waiting.take(second).is_none(), "its place has another use");
        settle(*waiting.take(third).unwrap());
        settle(*waiting.take(first).unwrap());
        assert!(waiting.take(u64::MAX).is_none());
        assert_eq!(waiting.len(), 0);
        let settled: Vec<_> = answers.take().into_iter().map(|(token, _)| token).collect();
        assert_eq!(settled, [3, 2, 4, 1]);
    }

    #[test]
    fn what_waits_for_too_long_expires_unless_it_is_still_held() {
        let answers = Arc::new(PendingOutcomes::new(Arc::new(Notifier::default())));
        let mut waiting = Waiting::new(8);
        let tokens = [1, 2, 3]
            .map(|number| insert(&mut waiting, receipt(&answers, number), number * 10).unwrap());
        waiting.extend(tokens[0], 25);
        assert_eq!(waiting.expire(19).len(), 0);
        for expired in waiting.expire(20) {
            settle(expired);
        }
        assert_eq!(answers.take(), [(2, Status::Delivered)]);
        assert!(waiting.take(tokens[1]).is_none());
        waiting.extend(tokens[1], 100);
        for expired in waiting.expire(30) {
            settle(expired);
        }
        assert_eq!(answers.take().len(), 2);
        assert_eq!(waiting.len(), 0);
    }
}
