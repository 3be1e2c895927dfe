//! What crosses, as bytes: subjects, messages and answers, to values and back. No I/O, so that it can be
//! tested alone. What comes in was written by another node, perhaps of another version: it is refused
//! where it is not understood, and nothing in it is trusted to be well formed.

use std::fmt::Write as _;

use async_nats::Subject;
use bytes::{BufMut, Bytes, BytesMut};

use crate::identity::{Blocks, Sender, UserId};
use crate::protocol::Status;

/// The first byte of everything that is sent.
const VERSION: u8 = 1;
/// The last part of a subject that asks who holds a block.
const WHO: &str = "who";
/// The last part of a subject that brings answers.
const ANSWERS: &str = "answers";
/// The last part of a subject that asks the holder of a block for an id of it.
const CLAIM: &str = "claim";
/// The last part of a subject that asks a node for an id that it has.
const GIVE: &str = "give";
/// The last part of a subject that tells a node which ids of its blocks are elsewhere.
const CLAIMS: &str = "claims";
/// The last part of the subject on which nodes say which blocks they hold.
const HOLDERS: &str = "holders";
/// In place of the link's number, where a probe comes back.
const PROBE: &str = "probe";
/// In place of a token, where nobody wants an answer.
const NO_TOKEN: u64 = 0;

/// One process of a cluster, by a number that it has drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node(pub(super) u64);

/// The names that one cluster uses on NATS; all begin with `cluster.name`.
#[derive(Clone, Debug)]
pub(super) struct Subjects {
    name: String,
    node: Node,
    blocks: Blocks,
}

/// What comes on a subject of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForBlock {
    /// A message for this user.
    Message(UserId),
    /// Somebody wants to know who holds the block.
    Who,
    /// Somebody wants an id of it, or wants it no more.
    Claim,
}

/// What comes on a subject of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForNode {
    /// Outcomes of messages that went out from here.
    PendingOutcomes,
    /// The probe of this number has been at the server.
    Probe(u64),
    /// Somebody wants an id that is here.
    Give,
    /// Somebody has ids of blocks of this node.
    Claims,
    /// Somebody holds blocks, from now on or again.
    Holding,
    /// A message, which nobody takes.
    Message(ReplyTo),
}

/// Where the answer to a message is to go, and what it is an answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyTo {
    pub(super) node: Node,
    /// The number of the node's link to NATS that the message went out on.
    pub(super) link: u32,
    /// How much the node has sent to this block by that link.
    pub(super) seen: Seen,
    /// The node's name for the message, where an outcome is wanted.
    pub(super) token: Option<u64>,
}

/// Up to which mark somebody has seen what went to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) block: u64,
    pub(super) mark: u64,
}

impl Subjects {
    pub(super) fn new(name: &str, node: Node, blocks: Blocks) -> Self {
        let name = name.to_owned();
        Self { name, node, blocks }
    }

    /// The stream that leases are published to.
    pub(super) fn stream(&self) -> String {
        format!("{}_blocks", self.name)
    }

    pub(super) fn lease(&self) -> Subject {
        format!("{}.lease", self.name).into()
    }

    /// Where the client library has its answers sent.
    pub(super) fn inbox_prefix(&self) -> String {
        format!("{}.inbox", self.name)
    }

    /// All that is sent to a block's users, or asks for its holder.
    pub(super) fn block(&self, block: u64) -> Subject {
        format!("{}.b.{block}.*", self.name).into()
    }

    pub(super) fn who(&self, block: u64) -> Subject {
        format!("{}.b.{block}.{WHO}", self.name).into()
    }

    pub(super) fn user(&self, user: UserId) -> Subject {
        let block = self.blocks.block_of(user);
        format!("{}.b.{block}.{user}", self.name).into()
    }

    pub(super) fn claim(&self, block: u64) -> Subject {
        format!("{}.b.{block}.{CLAIM}", self.name).into()
    }

    pub(super) fn give(&self, node: Node) -> Subject {
        format!("{}.n.{}.{GIVE}", self.name, node.0).into()
    }

    pub(super) fn claims(&self, node: Node) -> Subject {
        format!("{}.n.{}.{CLAIMS}", self.name, node.0).into()
    }

    /// All nodes listen to it.
    pub(super) fn holders(&self) -> Subject {
        format!("{}.{HOLDERS}", self.name).into()
    }

    /// All that is sent to this node.
    pub(super) fn node(&self) -> Subject {
        format!("{}.n.{}.>", self.name, self.node.0).into()
    }

    /// Nobody listens to it, so whatever is sent to it comes back.
    pub(super) fn nobody(&self) -> Subject {
        format!("{}.nobody", self.name).into()
    }

    pub(super) fn probed(&self, probe: u64) -> Subject {
        format!("{}.n.{}.{PROBE}.{probe}", self.name, self.node.0).into()
    }

    pub(super) fn answers(&self, node: Node) -> Subject {
        format!("{}.n.{}.{ANSWERS}", self.name, node.0).into()
    }

    /// Where a message comes back that nobody takes, and its outcome is to go.
    pub(super) fn reply(&self, link: u32, seen: Seen, token: Option<u64>) -> Subject {
        let mut subject = String::with_capacity(self.name.len() + 80);
        let (name, node) = (&self.name, self.node.0);
        let Seen { block, mark } = seen;
        let token = token.unwrap_or(NO_TOKEN);
        let written = write!(subject, "{name}.n.{node}.{link}.{block}.{mark}.{token}");
        written.expect("a String takes all that is written to it");
        subject.into()
    }
}

/// What a message on a block's subject is.
pub(super) fn for_block(subject: &str) -> Option<ForBlock> {
    match subject.rsplit('.').next()? {
        WHO => Some(ForBlock::Who),
        CLAIM => Some(ForBlock::Claim),
        id => Some(ForBlock::Message(UserId::new(id.parse().ok()?)?)),
    }
}

/// What a message on this node's subject is.
pub(super) fn for_node(subject: &str) -> Option<ForNode> {
    let mut parts = subject.rsplit('.');
    let last = parts.next()?;
    match last {
        ANSWERS => return Some(ForNode::PendingOutcomes),
        GIVE => return Some(ForNode::Give),
        CLAIMS => return Some(ForNode::Claims),
        HOLDERS => return Some(ForNode::Holding),
        _number => {}
    }
    match parts.next()? {
        PROBE => Some(ForNode::Probe(last.parse().ok()?)),
        _mark => Some(ForNode::Message(reply_to(subject)?)),
    }
}

/// Where the answer to a message goes, by its reply subject.
pub(super) fn reply_to(subject: &str) -> Option<ReplyTo> {
    let mut parts = subject.rsplit('.');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let token = number()?;
    let mark = number()?;
    let block = number()?;
    let link = u32::try_from(number()?).ok()?;
    Some(ReplyTo {
        node: Node(number()?),
        link,
        seen: Seen { block, mark },
        token: (token != NO_TOKEN).then_some(token),
    })
}

/// A message as it crosses: who wrote it, and the JSON string literal.
pub(super) fn encode_message(sender: Sender, message: &str) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + 8 + message.len());
    bytes.put_u8(VERSION);
    push_number(&mut bytes, sender.get());
    bytes.put_slice(message.as_bytes());
    bytes.freeze()
}

/// Reads what [`encode_message`] wrote.
pub(super) fn decode_message(mut bytes: &[u8]) -> Option<(Sender, &str)> {
    bytes = bytes.strip_prefix(&[VERSION])?;
    let sender = Sender::new(take_number(&mut bytes)?)?;
    let message = std::str::from_utf8(bytes).ok()?;
    // Enough that a message of ours is told from noise; a whole look at it would cost as much as the
    // one that the sender's node has taken.
    let is_literal = message.len() >= 2 && message.starts_with('"') && message.ends_with('"');
    is_literal.then_some((sender, message))
}

/// What a node says of what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The message of this token is here, and not settled.
    Held(u64),
    /// This became of the message of this token.
    Settled(u64, Status),
    /// All was seen that went by the link of this number to this block.
    Seen(u32, Seen),
}

/// Answers as they cross.
pub(super) fn encode_answers(answers: &[Answer]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + 8 * answers.len());
    bytes.put_u8(VERSION);
    for answer in answers {
        match *answer {
            Answer::Held(token) => {
                bytes.put_u8(HELD);
                push_number(&mut bytes, token);
            }
            Answer::Settled(token, status) => {
                bytes.put_u8(code(status));
                push_number(&mut bytes, token);
            }
            Answer::Seen(link, Seen { block, mark }) => {
                bytes.put_u8(SEEN);
                for number in [link.into(), block, mark] {
                    push_number(&mut bytes, number);
                }
            }
        }
    }
    bytes.freeze()
}

/// Reads what [`encode_answers`] wrote; what does not belong there ends it.
pub(super) fn decode_answers(bytes: &[u8]) -> impl Iterator<Item = Answer> {
    let mut rest = bytes.strip_prefix(&[VERSION]).unwrap_or_default();
    std::iter::from_fn(move || {
        let (&code, behind) = rest.split_first()?;
        rest = behind;
        let mut number = || take_number(&mut rest);
        Some(match code {
            HELD => Answer::Held(number()?),
            SEEN => {
                let link = u32::try_from(number()?).ok()?;
                let (block, mark) = (number()?, number()?);
                Answer::Seen(link, Seen { block, mark })
            }
            code => Answer::Settled(number()?, status(code)),
        })
    })
}

const HELD: u8 = 0;
const SEEN: u8 = 255;

/// Answers that go into one message.
pub(super) const ANSWERS_MAX: usize = 1024;

fn code(status: Status) -> u8 {
    match status {
        Status::Delivered => 1,
        Status::Offline => 2,
        Status::QueueFull => 3,
        Status::Disconnected => 4,
        Status::TooLarge => 5,
        Status::RateLimited => 6,
        Status::Draining => 7,
        Status::Unavailable => 8,
        Status::Unknown => 9,
        // Never sent: the sender's own node refuses such a message.
        Status::Invalid => 10,
        Status::Expired => 11,
    }
}

fn status(code: u8) -> Status {
    let known = Status::ALL.into_iter();
    let mut of_code = known.filter(|status| self::code(*status) == code);
    // A later version may know more.
    of_code.next().unwrap_or(Status::Unknown)
}

/// Seven bits a byte, the lowest first, the top bit where more follow.
pub(super) fn push_number(bytes: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        bytes.put_u8(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.put_u8(number.to_le_bytes()[0]);
}

pub(super) fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7F);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use proptest::prelude::*;

    use super::*;

    fn subjects() -> Subjects {
        let blocks = Blocks::of_size(NonZeroU64::new(1024).unwrap());
        Subjects::new("chat", Node(77), blocks)
    }

    const SEEN_SOME: Seen = Seen {
        block: 3,
        mark: 70_000,
    };

    fn user(id: u64) -> UserId {
        UserId::new(id).unwrap()
    }

    fn sender(number: u64) -> Sender {
        Sender::new(number).unwrap()
    }

    #[test]
    fn a_subject_says_what_it_brings() {
        let subjects = subjects();
        let message = subjects.user(user(2049));
        assert_eq!(message.as_str(), "chat.b.3.2049");
        assert_eq!(for_block(&message), Some(ForBlock::Message(user(2049))));
        assert_eq!(for_block(&subjects.who(3)), Some(ForBlock::Who));
        assert_eq!(for_block("chat.b.3.0"), None);
        assert_eq!(for_block("chat.b.3.x"), None);

        let answers = subjects.answers(Node(77));
        assert_eq!(for_node(&answers), Some(ForNode::PendingOutcomes));
        let probed = subjects.probed(5);
        assert_eq!(for_node(&probed), Some(ForNode::Probe(5)));
        for token in [None, Some(9)] {
            let reply = subjects.reply(4, SEEN_SOME, token);
            let expected = ReplyTo {
                node: Node(77),
                link: 4,
                seen: SEEN_SOME,
                token,
            };
            assert_eq!(for_node(&reply), Some(ForNode::Message(expected)));
            assert_eq!(reply_to(&reply), Some(expected));
        }
        assert_eq!(reply_to("chat.n.77.probe.5"), None);
        assert_eq!(reply_to("chat.n.77.1.2.3.x"), None);
        assert_eq!(reply_to("elsewhere"), None);
        assert_eq!(for_node("elsewhere"), None);
    }

    #[test]
    fn a_subject_is_within_its_clusters_name() {
        let subjects = subjects();
        for subject in [
            subjects.lease(),
            subjects.block(1),
            subjects.who(1),
            subjects.user(user(1)),
            subjects.node(),
            subjects.nobody(),
            subjects.probed(1),
            subjects.answers(Node(1)),
            subjects.reply(1, SEEN_SOME, None),
            subjects.inbox_prefix().into(),
        ] {
            assert!(subject.starts_with("chat."), "{subject}");
        }
    }

    #[test]
    fn a_message_that_is_not_one_is_refused() {
        let good = encode_message(sender(7), r#""hi""#);
        assert_eq!(decode_message(&good), Some((sender(7), r#""hi""#)));
        for bytes in [
            &b""[..],
            b"\x01",
            b"\x02\x07\"hi\"",
            b"\x01\x07",
            b"\x01\x07\"",
            b"\x01\x07hi",
            b"\x01\x07\"hi",
            b"\x01\x07\"\xff\"",
            b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\"hi\"",
        ] {
            assert_eq!(decode_message(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn every_answer_has_a_code_of_its_own() {
        let settled = Status::ALL.map(|status| Answer::Settled(100, status));
        let others = [Answer::Held(7), Answer::Seen(3, SEEN_SOME)];
        let sent = [&settled[..], &others].concat();
        let bytes = encode_answers(&sent);
        assert_eq!(decode_answers(&bytes).collect::<Vec<_>>(), sent);
        assert_eq!(status(200), Status::Unknown);
        assert_eq!(decode_answers(b"\x02\x01\x01").count(), 0);
        assert_eq!(decode_answers(b"\x01\x01\x80").count(), 0);
        assert_eq!(decode_answers(b"\x01\xff\x01\x01").count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(
            sender in 0..=UserId::MAX,
            text in "\\PC*",
            tokens in proptest::collection::vec(any::<u64>(), 0..20),
        ) {
            let literal = format!("\"{text}\"");
            let sender = self::sender(sender);
            let bytes = encode_message(sender, &literal);
            prop_assert_eq!(decode_message(&bytes), Some((sender, literal.as_str())));

            let held: Vec<_> = tokens.into_iter().map(Answer::Held).collect();
            let bytes = encode_answers(&held);
            prop_assert!(decode_answers(&bytes).eq(held));
        }

        #[test]
        fn noise_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in "\\PC{0,40}") {
            let _message = decode_message(&bytes);
            let _answers = decode_answers(&bytes).count();
            let _parts = (for_block(&text), for_node(&text), reply_to(&text));
        }
    }
}
