//! What the buckets hold, as bytes: the entry of an id, the key of a node, and the counter of blocks. No I/O. What
//! is read was written by another node, so nothing in it is trusted to be well formed.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::envelope::{Node, push_number, take_number};
use super::nats::Revision;
use crate::identity::ResumptionId;

/// The entry of an id: on which node it is, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) node: Node,
    /// Tells this registration from another one of the same id, and a node's own writes from those of others.
    pub(super) nonce: u32,
    pub(super) resumption_id: ResumptionId,
    /// The revision of the write by which the user came. `None` in that write itself, which cannot know it.
    pub(super) arrival: Option<Revision>,
}

impl Record {
    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(32);
        push_number(&mut bytes, self.node.0);
        bytes.put_u32(self.nonce);
        bytes.put_u64(self.resumption_id.get());
        if let Some(Revision(arrival)) = self.arrival {
            push_number(&mut bytes, arrival);
        }
        bytes.freeze()
    }

    /// Reads an entry. `None` if a node has not written it.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let node = Node::new(take_number(&mut bytes)?)?;
        let nonce = bytes.try_get_u32().ok()?;
        let resumption_id = bytes.try_get_u64().ok()?.into();
        let arrival = match bytes {
            [] => None,
            _ => Some(Revision(take_number(&mut bytes)?)),
        };
        bytes.is_empty().then_some(Self {
            node,
            nonce,
            resumption_id,
            arrival,
        })
    }
}

/// A node's key: the number of its present link.
pub(super) fn encode_link(link: u64) -> Bytes {
    Bytes::copy_from_slice(&link.to_be_bytes())
}

pub(super) fn decode_link(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().map(u64::from_be_bytes).ok()
}

/// The counter of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    /// The next block that no node has.
    pub(super) next: u64,
    pub(super) block_size: u64,
}

impl Counter {
    pub(super) fn encode(self) -> Bytes {
        // As text, because an operator may look at it.
        let Self { next, block_size } = self;
        format!("next={next} block_size={block_size}").into()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (next, block_size) = text.strip_prefix("next=")?.split_once(" block_size=")?;
        Some(Self {
            next: next.parse().ok()?,
            block_size: block_size.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_it_was_written_or_refused() {
        for arrival in [None, Some(Revision(1)), Some(Revision(u64::MAX))] {
            let record = Record {
                node: Node(1 << 47),
                nonce: u32::MAX,
                resumption_id: 7.into(),
                arrival,
            };
            let bytes = record.encode();
            assert_eq!(Record::decode(&bytes), Some(record));
            for length in 0..bytes.len() {
                let shorter = Record::decode(&bytes[..length]);
                assert!(shorter.is_none_or(|shorter| shorter.arrival.is_none()));
            }
            assert_eq!(Record::decode(&[&bytes[..], &[1, 1]].concat()), None);
        }
        assert_eq!(Record::decode(b"who knows"), None);
        assert_eq!(Record::decode(&[0; 13]), None, "no node is number 0");
    }

    /// What is stored outlives the node that has written it. Other bytes need another version of the protocol.
    #[test]
    fn an_earlier_build_has_stored_these_bytes() {
        let mut record = Record {
            node: Node(5),
            nonce: 0x0102_0304,
            resumption_id: 7.into(),
            arrival: None,
        };
        let first = b"\x05\x01\x02\x03\x04\x00\x00\x00\x00\x00\x00\x00\x07";
        assert_eq!(record.encode(), &first[..]);
        assert_eq!(Record::decode(first), Some(record));
        let again = [&first[..], b"\xac\x02"].concat();
        record.arrival = Some(Revision(300));
        assert_eq!(record.encode(), again);
        assert_eq!(Record::decode(&again), Some(record));
        assert_eq!(encode_link(258), &b"\x00\x00\x00\x00\x00\x00\x01\x02"[..]);
        let counter = Counter {
            next: 7,
            block_size: 1024,
        };
        assert_eq!(counter.encode(), "next=7 block_size=1024");
    }

    #[test]
    fn the_counter_and_a_key_are_read_as_they_were_written_or_refused() {
        let counter = Counter {
            next: 7,
            block_size: 1024,
        };
        assert_eq!(Counter::decode(&counter.encode()), Some(counter));
        for odd in [&b""[..], b"next=7", b"next=-1 block_size=1", b"\xff"] {
            assert_eq!(Counter::decode(odd), None);
        }
        assert_eq!(decode_link(&encode_link(u64::MAX)), Some(u64::MAX));
        assert_eq!(decode_link(b"short"), None);
    }
}
