//! What nodes send each other, as bytes: subjects, messages, answers and notices, to values and back. No I/O, so
//! that it can be tested alone. What comes in was written by another node, perhaps of another version: it is
//! refused where it is not understood, and nothing in it is trusted to be well formed.

use std::fmt::Write as _;

use async_nats::Subject;
use bytes::{BufMut, Bytes, BytesMut};

use super::nats::Revision;
use crate::identity::{Sender, UserId};
use crate::protocol::Status;

/// The version of the protocol, in the names of all subjects and buckets.
pub(super) const PROTOCOL: u8 = 2;
/// The first byte of every payload.
const VERSION: u8 = 1;
/// In place of a token, where no outcome is wanted.
const NO_TOKEN: u64 = 0;

/// The part of a subject behind the node: what it brings.
const MESSAGE: &str = "m";
const ANSWERS: &str = "a";
const NOTICE: &str = "c";
const RETURN: &str = "r";

/// One process of a cluster, by a number that it has drawn. No node is number 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Node(pub(super) u64);

impl Node {
    pub(super) fn new(number: u64) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }
}

/// The names that one cluster uses on NATS; all begin with `cluster.name`.
#[derive(Clone, Debug)]
pub(super) struct Subjects {
    name: String,
    node: Node,
}

/// What comes on a subject of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A message for a user.
    Message,
    /// Outcomes of messages that went out from here, and how far another node has read.
    Answers,
    /// A [`Notice`].
    Notice,
    /// In place of a message that has no subscriber.
    Return(ReplyTo),
}

/// The reply subject of a message: where its answer goes, and what it is an answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyTo {
    /// The node that has sent the message.
    pub(super) sender: Node,
    /// The link of that node.
    pub(super) link: u64,
    /// The node that the message is for.
    pub(super) recipient: Node,
    /// All bytes that the sender has sent to the recipient by that link, up to the end of this message.
    pub(super) mark: u64,
    /// The sender's name for the message, where an outcome is wanted.
    pub(super) token: Option<u64>,
}

impl Subjects {
    pub(super) fn new(name: &str, node: Node) -> Self {
        let name = name.to_owned();
        Self { name, node }
    }

    /// The name of a bucket.
    pub(super) fn bucket(&self, of: &str) -> String {
        format!("{}_{PROTOCOL}_{of}", self.name)
    }

    /// The stream that gave blocks before there was a table.
    pub(super) fn old_stream(&self) -> String {
        format!("{}_blocks", self.name)
    }

    /// Where the client library has its answers sent.
    pub(super) fn inbox_prefix(&self) -> String {
        format!("{}.{PROTOCOL}.inbox", self.name)
    }

    /// All that is sent to this node.
    pub(super) fn all(&self) -> Subject {
        self.of(self.node, ">")
    }

    pub(super) fn message(&self, to: Node) -> Subject {
        self.of(to, MESSAGE)
    }

    pub(super) fn answers(&self, to: Node) -> Subject {
        self.of(to, ANSWERS)
    }

    pub(super) fn notice(&self, to: Node) -> Subject {
        self.of(to, NOTICE)
    }

    fn of(&self, node: Node, kind: &str) -> Subject {
        format!("{}.{PROTOCOL}.n.{}.{kind}", self.name, node.0).into()
    }

    /// Where a message comes back that nobody takes, and its outcome is to go.
    pub(super) fn reply(&self, link: u64, to: Node, mark: u64, token: Option<u64>) -> Subject {
        let mut subject = String::with_capacity(self.name.len() + 96);
        let (name, node, to) = (&self.name, self.node.0, to.0);
        let token = token.unwrap_or(NO_TOKEN);
        let written = write!(
            subject,
            "{name}.{PROTOCOL}.n.{node}.{RETURN}.{link}.{to}.{mark}.{token}"
        );
        written.expect("a String takes all that is written to it");
        subject.into()
    }
}

/// What a subject of this node brings.
pub(super) fn kind(subject: &str) -> Option<Kind> {
    match subject.rsplit('.').next()? {
        MESSAGE => Some(Kind::Message),
        ANSWERS => Some(Kind::Answers),
        NOTICE => Some(Kind::Notice),
        _number => Some(Kind::Return(reply_to(subject)?)),
    }
}

/// Reads what [`Subjects::reply`] wrote.
pub(super) fn reply_to(subject: &str) -> Option<ReplyTo> {
    let mut parts = subject.rsplit('.');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let token = number()?;
    let mark = number()?;
    let recipient = Node::new(number()?)?;
    let link = number()?;
    let is_return = parts.next()? == RETURN;
    let sender = Node::new(parts.next()?.parse().ok()?)?;
    is_return.then_some(ReplyTo {
        sender,
        link,
        recipient,
        mark,
        token: (token != NO_TOKEN).then_some(token),
    })
}

/// A message as it crosses: for whom, who wrote it, and the JSON string literal.
pub(super) fn encode_message(recipient: UserId, sender: Sender, body: &str) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + 8 + 8 + body.len());
    bytes.put_u8(VERSION);
    push_number(&mut bytes, recipient.get());
    push_number(&mut bytes, sender.get());
    bytes.put_slice(body.as_bytes());
    bytes.freeze()
}

/// Reads what [`encode_message`] wrote.
pub(super) fn decode_message(mut bytes: &[u8]) -> Option<(UserId, Sender, &str)> {
    bytes = bytes.strip_prefix(&[VERSION])?;
    let recipient = UserId::new(take_number(&mut bytes)?)?;
    let sender = Sender::new(take_number(&mut bytes)?)?;
    let body = std::str::from_utf8(bytes).ok()?;
    // Enough that a message of a node is told from noise; a whole look at it would cost as much as the one that
    // the sender's node has taken.
    let is_literal = body.len() >= 2 && body.starts_with('"') && body.ends_with('"');
    is_literal.then_some((recipient, sender, body))
}

/// What a node says of the messages that it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The message of this token is here, and not settled.
    Held(u64),
    /// This became of the message of this token.
    Settled(u64, Status),
    /// All was read that came by this link up to this mark.
    Seen {
        /// The link of the node that is told.
        link: u64,
        /// See [`ReplyTo::mark`].
        mark: u64,
    },
    /// This id is not on this node.
    Gone(UserId),
}

/// Answers as they cross, from this node.
pub(super) fn encode_answers(from: Node, answers: &[Answer]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + 8 + 8 * answers.len());
    bytes.put_u8(VERSION);
    push_number(&mut bytes, from.0);
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
            Answer::Seen { link, mark } => {
                bytes.put_u8(SEEN);
                push_number(&mut bytes, link);
                push_number(&mut bytes, mark);
            }
            Answer::Gone(id) => {
                bytes.put_u8(GONE);
                push_number(&mut bytes, id.get());
            }
        }
    }
    bytes.freeze()
}

/// Reads what [`encode_answers`] wrote: who answers, and the answers. What does not belong there ends them.
pub(super) fn decode_answers(bytes: &[u8]) -> Option<(Node, impl Iterator<Item = Answer>)> {
    let mut rest = bytes.strip_prefix(&[VERSION])?;
    let from = Node::new(take_number(&mut rest)?)?;
    let answers = std::iter::from_fn(move || {
        let (&code, behind) = rest.split_first()?;
        rest = behind;
        let mut number = || take_number(&mut rest);
        Some(match code {
            HELD => Answer::Held(number()?),
            SEEN => Answer::Seen {
                link: number()?,
                mark: number()?,
            },
            GONE => Answer::Gone(UserId::new(number()?)?),
            code => Answer::Settled(number()?, status(code)),
        })
    });
    Some((from, answers))
}

const HELD: u8 = 0;
const GONE: u8 = 254;
const SEEN: u8 = 255;

/// Answers that go into one message.
pub(super) const ANSWERS_MAX: usize = 1024;

/// What one node tells another beside messages and answers. None of it decides anything by itself: it makes the
/// other node read a bucket, or is taken only if it has a number that only that node was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// The sender has this link from now on, as its key says.
    Hello { link: u64 },
    /// Messages of this link are taken.
    Ready { link: u64 },
    /// The sender has written over the entry that this node had at the revision `over`. `nonce` comes back in the
    /// answer.
    Check {
        id: UserId,
        nonce: u32,
        over: Revision,
    },
    /// The entry was compared, and an earlier connection takes no more messages.
    Checked { id: UserId, nonce: u32 },
}

impl Notice {
    pub(super) fn encode(self, from: Node) -> Bytes {
        let (kind, numbers) = match self {
            Self::Hello { link } => (1, [link, 0, 0]),
            Self::Ready { link } => (2, [link, 0, 0]),
            Self::Check { id, nonce, over } => (3, [id.get(), nonce.into(), over.0]),
            Self::Checked { id, nonce } => (4, [id.get(), nonce.into(), 0]),
        };
        let mut bytes = BytesMut::with_capacity(32);
        bytes.put_u8(VERSION);
        push_number(&mut bytes, from.0);
        bytes.put_u8(kind);
        for number in numbers {
            push_number(&mut bytes, number);
        }
        bytes.freeze()
    }

    /// Reads what [`Notice::encode`] wrote: who tells, and what.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Node, Self)> {
        let mut rest = bytes.strip_prefix(&[VERSION])?;
        let from = Node::new(take_number(&mut rest)?)?;
        let (&kind, behind) = rest.split_first()?;
        rest = behind;
        let first = take_number(&mut rest)?;
        let second = take_number(&mut rest)?;
        let over = Revision(take_number(&mut rest)?);
        let of_id = || Some((UserId::new(first)?, u32::try_from(second).ok()?));
        let notice = match kind {
            1 => Self::Hello { link: first },
            2 => Self::Ready { link: first },
            3 => of_id().map(|(id, nonce)| Self::Check { id, nonce, over })?,
            4 => of_id().map(|(id, nonce)| Self::Checked { id, nonce })?,
            _ => return None,
        };
        rest.is_empty().then_some((from, notice))
    }
}

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
    use proptest::prelude::*;

    use super::*;

    const OTHER: Node = Node(1 << 47);

    fn subjects() -> Subjects {
        Subjects::new("chat", Node(77))
    }

    fn user(id: u64) -> UserId {
        UserId::new(id).unwrap()
    }

    fn sender(number: u64) -> Sender {
        Sender::new(number).unwrap()
    }

    #[test]
    fn a_subject_says_what_it_brings() {
        let subjects = subjects();
        let message = subjects.message(OTHER);
        assert_eq!(message.as_str(), "chat.2.n.140737488355328.m");
        assert_eq!(kind(&message), Some(Kind::Message));
        assert_eq!(kind(&subjects.answers(OTHER)), Some(Kind::Answers));
        assert_eq!(kind(&subjects.notice(OTHER)), Some(Kind::Notice));
        for token in [None, Some(9)] {
            let reply = subjects.reply(u64::MAX, OTHER, 70_000, token);
            let expected = ReplyTo {
                sender: Node(77),
                link: u64::MAX,
                recipient: OTHER,
                mark: 70_000,
                token,
            };
            assert_eq!(kind(&reply), Some(Kind::Return(expected)));
            assert_eq!(reply_to(&reply), Some(expected));
        }
        for odd in [
            "",
            "elsewhere",
            "chat.2.n.77.x",
            "chat.2.n.77.r.1.2.3.x",
            "chat.2.n.77.r.1.0.3.4",
            "chat.2.n.0.r.1.2.3.4",
            "chat.2.n.77.1.2.3.4",
            "chat.2.n.77.r.1.2.3.99999999999999999999999",
        ] {
            assert_eq!(kind(odd), None, "{odd}");
            assert_eq!(reply_to(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_name_is_within_its_clusters_name() {
        let subjects = subjects();
        for subject in [
            subjects.all(),
            subjects.message(OTHER),
            subjects.answers(OTHER),
            subjects.notice(OTHER),
            subjects.reply(1, OTHER, 2, None),
            subjects.inbox_prefix().into(),
        ] {
            assert!(subject.starts_with("chat.2."), "{subject}");
        }
        assert_eq!(subjects.bucket("ids"), "chat_2_ids");
    }

    #[test]
    fn a_message_that_is_not_one_is_refused() {
        let good = encode_message(user(9), sender(7), r#""hi""#);
        assert_eq!(decode_message(&good), Some((user(9), sender(7), r#""hi""#)));
        for bytes in [
            &b""[..],
            b"\x01",
            b"\x02\x09\x07\"hi\"",
            b"\x01\x00\x07\"hi\"",
            b"\x01\x09\x07",
            b"\x01\x09\x07\"",
            b"\x01\x09\x07hi",
            b"\x01\x09\x07\"\xff\"",
            b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\"hi\"",
        ] {
            assert_eq!(decode_message(bytes), None, "{bytes:?}");
        }
    }

    /// Nodes of two builds run beside each other during a rolling update. Other bytes need another [`PROTOCOL`].
    #[test]
    fn a_node_of_an_earlier_build_has_sent_these_bytes() {
        let message = b"\x01\xac\x02\x07\"hi\"";
        let hi = (user(300), sender(7), r#""hi""#);
        assert_eq!(encode_message(hi.0, hi.1, hi.2), &message[..]);
        assert_eq!(decode_message(message), Some(hi));

        let answers = b"\x01\x05\x00\xac\x02\x01\x01\x0b\x02\xff\x09\xac\x02\xfe\x08";
        let meant = vec![
            Answer::Held(300),
            Answer::Settled(1, Status::Delivered),
            Answer::Settled(2, Status::Expired),
            Answer::Seen { link: 9, mark: 300 },
            Answer::Gone(user(8)),
        ];
        assert_eq!(encode_answers(Node(5), &meant), &answers[..]);
        assert_eq!(answers_of(answers), Some((Node(5), meant)));

        let (id, over) = (user(5), Revision(7));
        for (bytes, notice) in [
            (b"\x01\x05\x01\xac\x02\x00\x00", Notice::Hello { link: 300 }),
            (b"\x01\x05\x02\xac\x02\x00\x00", Notice::Ready { link: 300 }),
            (
                b"\x01\x05\x03\x05\xac\x02\x07",
                Notice::Check {
                    id,
                    nonce: 300,
                    over,
                },
            ),
            (
                b"\x01\x05\x04\x05\xac\x02\x00",
                Notice::Checked { id, nonce: 300 },
            ),
        ] {
            assert_eq!(notice.encode(Node(5)), &bytes[..]);
            assert_eq!(Notice::decode(bytes), Some((Node(5), notice)));
        }
        let reply = subjects().reply(1, Node(5), 300, Some(9));
        assert_eq!(reply.as_str(), "chat.2.n.77.r.1.5.300.9");
    }

    fn answers_of(bytes: &[u8]) -> Option<(Node, Vec<Answer>)> {
        decode_answers(bytes).map(|(from, answers)| (from, answers.collect()))
    }

    #[test]
    fn every_answer_has_a_code_of_its_own() {
        let settled = Status::ALL.map(|status| Answer::Settled(100, status));
        let others = [
            Answer::Held(7),
            Answer::Seen {
                link: u64::MAX,
                mark: 3,
            },
            Answer::Gone(user(UserId::MAX)),
        ];
        let sent = [&settled[..], &others].concat();
        let bytes = encode_answers(OTHER, &sent);
        assert_eq!(answers_of(&bytes), Some((OTHER, sent)));
        assert_eq!(status(200), Status::Unknown);
        assert_eq!(answers_of(b"\x02\x01\x01"), None);
        assert_eq!(answers_of(b"\x01\x00\x01\x01"), None);
        assert_eq!(answers_of(b"\x01\x05\x01\x80"), Some((Node(5), Vec::new())));
        assert_eq!(answers_of(b"\x01\x05\xfe\x00"), Some((Node(5), Vec::new())));
    }

    #[test]
    fn a_notice_is_read_as_it_was_written_or_refused() {
        for notice in [
            Notice::Hello { link: u64::MAX },
            Notice::Ready { link: 1 },
            Notice::Check {
                id: user(5),
                nonce: u32::MAX,
                over: Revision(7),
            },
            Notice::Checked {
                id: user(UserId::MAX),
                nonce: 0,
            },
        ] {
            let bytes = notice.encode(OTHER);
            assert_eq!(Notice::decode(&bytes), Some((OTHER, notice)));
            for length in 0..bytes.len() {
                assert_eq!(Notice::decode(&bytes[..length]), None);
            }
            assert_eq!(Notice::decode(&[&bytes[..], &[0]].concat()), None);
        }
        assert_eq!(Notice::decode(b"\x01\x05\x09\x01\x01\x00"), None);
    }

    proptest! {
        #[test]
        fn numbers_come_back(number: u64, behind: Vec<u8>) {
            let mut bytes = BytesMut::new();
            push_number(&mut bytes, number);
            bytes.put_slice(&behind);
            let mut rest = &bytes[..];
            prop_assert_eq!(take_number(&mut rest), Some(number));
            prop_assert_eq!(rest, &behind[..]);
        }

        #[test]
        fn noise_does_no_harm(noise: Vec<u8>, subject in "[a-z0-9.]{0,60}") {
            let _refused = decode_message(&noise);
            let _refused = answers_of(&noise);
            let _refused = Notice::decode(&noise);
            let _refused = kind(&subject);
        }
    }
}
