//! What nodes say to each other about one id, as bytes, and the cut between two of them that take its
//! messages one after the other. No I/O, so that it can be tested alone; what comes in is refused where
//! it is not understood.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::envelope::{Node, ReplyTo, push_number, take_number};
use crate::identity::{ResumptionId, UserId};

/// The first byte of everything here: never that of a message.
const ASK: u8 = 2;
/// Ids that one message may name, and nodes that one cut may.
const LISTED_MAX: u64 = 65_536;

/// How far somebody has seen what others sent to a block: for each node its link, and its mark by that.
/// What one node sends comes to everybody in one order, so whatever is behind the cut of whoever had an
/// id before is for whoever has it now, and nothing else is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut(HashMap<Node, (u32, u64)>);

impl Cut {
    /// This message was seen.
    pub(super) fn note(&mut self, message: ReplyTo) {
        self.note_place(message.node, place(message));
    }

    /// All that a node has sent by a link was seen up to this mark.
    pub(super) fn note_place(&mut self, node: Node, place: (u32, u64)) {
        let seen = self.0.entry(node).or_default();
        *seen = (*seen).max(place);
    }

    /// Whether this message was seen.
    pub(super) fn covers(&self, message: ReplyTo) -> bool {
        let seen = self.0.get(&message.node);
        seen.is_some_and(|seen| place(message) <= *seen)
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        let places = self.0.iter();
        places.flat_map(|(node, (link, mark))| [node.0, (*link).into(), *mark])
    }

    fn of_numbers(numbers: &[u64]) -> Option<Self> {
        let seen = |seen: &[u64]| {
            let link = u32::try_from(seen[1]).ok()?;
            Some((Node(seen[0]), (link, seen[2])))
        };
        let places = numbers.chunks_exact(3).map(seen);
        places.collect::<Option<_>>().map(Self)
    }

    /// What either has seen.
    pub(super) fn join(&mut self, other: &Self) {
        for (node, place) in &other.0 {
            self.note_place(*node, *place);
        }
    }
}

fn place(message: ReplyTo) -> (u32, u64) {
    (message.link, message.seen.mark)
}

/// Somebody who wants an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claimant {
    pub(super) node: Node,
    pub(super) id: UserId,
    pub(super) resumption_id: ResumptionId,
    /// Not for a new connection, but for one that was there before the node's link was lost.
    pub(super) again: bool,
}

/// What a node asks of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Let this id be mine.
    Claim(Claimant),
    /// These are mine still.
    Renew(Node, Vec<(UserId, ResumptionId)>),
    /// This one is mine no more, of whose messages I have seen these; it is another's again, or nobody's.
    Release(Node, UserId, Option<Node>, Cut),
    /// Whoever held it says that it is mine.
    Give(UserId, ResumptionId),
    /// I hold these blocks, from now on or again: who has ids of them?
    Holding(Node, Vec<u64>),
}

/// Why an id is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Somebody of another resumption id has it, or a newer connection.
    InUse,
    /// It cannot be found out, or `cluster.claims` is used up.
    Unavailable,
}

/// What the other one says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Granted(Grant),
    Refused(Refusal),
    /// Of those that were to be renewed, these are somebody else's.
    Lost(Vec<UserId>),
}

/// An id changes hands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Grant {
    /// Who holds its block.
    pub(super) holder: Option<Node>,
    /// Who has it, and is to be asked for it; of one that was released, who will ask.
    pub(super) previous: Option<Node>,
    /// What was seen by whoever had it.
    pub(super) cut: Cut,
}

const CLAIM: u8 = 1;
const CLAIM_AGAIN: u8 = 2;
const RENEW: u8 = 3;
const RELEASE: u8 = 4;
const GIVE: u8 = 5;
const HOLDING: u8 = 6;
const GRANTED: u8 = 7;
const REFUSED: u8 = 8;
const LOST: u8 = 9;

const IN_USE: u64 = 1;
const UNAVAILABLE: u64 = 2;

/// Whether these bytes are of here, and no message.
pub(super) fn is_ask(bytes: &[u8]) -> bool {
    bytes.first() == Some(&ASK)
}

impl Ask {
    pub(super) fn encode(&self) -> Bytes {
        match self {
            Self::Claim(claimant) => {
                let Claimant {
                    node,
                    id,
                    resumption_id,
                    again,
                } = claimant;
                let kind = if *again { CLAIM_AGAIN } else { CLAIM };
                written(kind, [node.0, id.get(), resumption_id.get()])
            }
            Self::Renew(node, ids) => {
                let ids = ids
                    .iter()
                    .flat_map(|(id, resumption_id)| [id.get(), resumption_id.get()]);
                written(RENEW, std::iter::once(node.0).chain(ids))
            }
            Self::Release(node, id, to, cut) => {
                let named = [node.0, id.get(), number(*to)];
                written(RELEASE, named.into_iter().chain(cut.numbers()))
            }
            Self::Give(id, resumption_id) => written(GIVE, [id.get(), resumption_id.get()]),
            Self::Holding(node, blocks) => {
                let blocks = blocks.iter().copied();
                written(HOLDING, std::iter::once(node.0).chain(blocks))
            }
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, numbers) = read(bytes)?;
        Some(match (kind, &numbers[..]) {
            (CLAIM | CLAIM_AGAIN, &[node, id, resumption_id]) => Self::Claim(Claimant {
                node: Node(node),
                id: UserId::new(id)?,
                resumption_id: resumption_id.into(),
                again: kind == CLAIM_AGAIN,
            }),
            (RENEW, [node, ids @ ..]) => {
                let pairs = ids.chunks_exact(2);
                let pair = |pair: &[u64]| Some((UserId::new(pair[0])?, pair[1].into()));
                Self::Renew(Node(*node), pairs.map(pair).collect::<Option<_>>()?)
            }
            (RELEASE, [node, id, to, cut @ ..]) => Self::Release(
                Node(*node),
                UserId::new(*id)?,
                named(*to),
                Cut::of_numbers(cut)?,
            ),
            (GIVE, &[id, resumption_id]) => Self::Give(UserId::new(id)?, resumption_id.into()),
            (HOLDING, [node, blocks @ ..]) => Self::Holding(Node(*node), blocks.to_vec()),
            _ => return None,
        })
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Bytes {
        match self {
            Self::Granted(grant) => {
                let nodes = [number(grant.holder), number(grant.previous)];
                written(GRANTED, nodes.into_iter().chain(grant.cut.numbers()))
            }
            Self::Refused(Refusal::InUse) => written(REFUSED, [IN_USE]),
            Self::Refused(Refusal::Unavailable) => written(REFUSED, [UNAVAILABLE]),
            Self::Lost(ids) => written(LOST, ids.iter().map(|id| id.get())),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, numbers) = read(bytes)?;
        Some(match (kind, &numbers[..]) {
            (GRANTED, [holder, previous, cut @ ..]) => Self::Granted(Grant {
                holder: named(*holder),
                previous: named(*previous),
                cut: Cut::of_numbers(cut)?,
            }),
            (REFUSED, [IN_USE]) => Self::Refused(Refusal::InUse),
            (REFUSED, [_]) => Self::Refused(Refusal::Unavailable),
            (LOST, ids) => {
                let ids = ids.iter().map(|id| UserId::new(*id));
                Self::Lost(ids.collect::<Option<_>>()?)
            }
            _ => return None,
        })
    }
}

/// No node is number 0.
fn number(node: Option<Node>) -> u64 {
    node.map_or(0, |node| node.0)
}

fn named(number: u64) -> Option<Node> {
    (number != 0).then_some(Node(number))
}

fn written(kind: u8, numbers: impl IntoIterator<Item = u64>) -> Bytes {
    let mut bytes = BytesMut::with_capacity(64);
    bytes.put_u8(ASK);
    bytes.put_u8(kind);
    for number in numbers {
        push_number(&mut bytes, number);
    }
    bytes.freeze()
}

fn read(bytes: &[u8]) -> Option<(u8, Vec<u64>)> {
    let (&kind, mut rest) = bytes.strip_prefix(&[ASK])?.split_first()?;
    let mut numbers = Vec::new();
    while !rest.is_empty() {
        if numbers.len() as u64 > 3 * LISTED_MAX {
            return None;
        }
        numbers.push(take_number(&mut rest)?);
    }
    Some((kind, numbers))
}

#[cfg(test)]
mod tests {
    use super::super::envelope::Seen;
    use super::*;

    fn user(id: u64) -> UserId {
        UserId::new(id).unwrap()
    }

    fn message(node: u64, link: u32, mark: u64) -> ReplyTo {
        ReplyTo {
            node: Node(node),
            link,
            seen: Seen { block: 1, mark },
            token: None,
        }
    }

    #[test]
    fn a_cut_covers_what_was_seen_of_each_node_and_no_more() {
        let mut cut = Cut::default();
        assert!(!cut.covers(message(1, 1, 1)));
        cut.note(message(1, 2, 100));
        cut.note(message(1, 2, 50));
        assert!(cut.covers(message(1, 2, 100)) && cut.covers(message(1, 1, 900)));
        assert!(!cut.covers(message(1, 2, 101)) && !cut.covers(message(1, 3, 1)));
        assert!(!cut.covers(message(2, 1, 1)));
        let mut other = Cut::default();
        other.note(message(1, 2, 70));
        other.note(message(2, 1, 5));
        cut.join(&other);
        assert!(cut.covers(message(1, 2, 100)) && cut.covers(message(2, 1, 5)));
    }

    #[test]
    fn what_is_asked_and_answered_arrives() {
        let claimant = |again| Claimant {
            node: Node(1 << 47),
            id: user(UserId::MAX),
            resumption_id: ResumptionId::from(u64::MAX),
            again,
        };
        let mut cut = Cut::default();
        cut.note(message(4, 3, 1 << 50));
        cut.note(message(9, 1, 2));
        let ids = vec![
            (user(7), ResumptionId::from(1)),
            (user(8), ResumptionId::from(0)),
        ];
        for ask in [
            Ask::Claim(claimant(false)),
            Ask::Claim(claimant(true)),
            Ask::Renew(Node(5), ids),
            Ask::Renew(Node(5), Vec::new()),
            Ask::Release(Node(5), user(1), None, Cut::default()),
            Ask::Release(Node(5), user(1), Some(Node(6)), cut.clone()),
            Ask::Give(user(3), ResumptionId::from(9)),
            Ask::Holding(Node(5), vec![1, 1 << 40]),
        ] {
            let bytes = ask.encode();
            assert!(is_ask(&bytes));
            assert_eq!(Ask::decode(&bytes), Some(ask));
            for length in 0..bytes.len() {
                // Whatever is cut short is refused or says less, and nothing panics.
                let _shorter = Ask::decode(&bytes[..length]);
                let _shorter = Reply::decode(&bytes[..length]);
            }
        }
        for reply in [
            Reply::Granted(Grant::default()),
            Reply::Granted(Grant {
                holder: Some(Node(3)),
                previous: Some(Node(4)),
                cut,
            }),
            Reply::Refused(Refusal::InUse),
            Reply::Refused(Refusal::Unavailable),
            Reply::Lost(vec![user(1), user(2)]),
        ] {
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
        assert_eq!(Ask::decode(b"\x01\x01"), None);
        assert_eq!(Reply::decode(b"\x02\x08"), None);
    }
}
