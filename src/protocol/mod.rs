//! The wire contract: the messages that a client may send, the frames that the server sends, and their codes.
//! Turns bytes into values and values into bytes. Has no I/O, no settings and no clock, so that a fuzzer can run it
//! alone.

mod decode;
mod encode;

pub use decode::{BadInput, Field, Inbound, decode, inbound_trace, is_ping, readable_id};
pub(crate) use decode::{JsonString, is_sound_string};
pub use encode::{
    FRAME_HEADER_BYTES_MAX, Outbound, message_frame_bytes, push_close, push_data, push_frame,
    push_ping, trace_members,
};

/// The WebSocket subprotocol that adds outcomes and notices to the bare contract.
pub const SUBPROTOCOL: &str = "switchboard.v1";

/// The largest reason of a close frame, bytes: 125 less the two of the code (RFC 6455 section 5.5).
pub const CLOSE_REASON_BYTES_MAX: usize = 123;

/// The largest message `id` that is a string, bytes after decoding.
pub const CLIENT_ID_BYTES_MAX: usize = 64;

/// The contract that a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The essay's contract: messages only, in both directions.
    Bare,
    /// [`SUBPROTOCOL`]: every server frame has a `type`, and an `id` asks for an outcome.
    V1,
}

/// The outcome of a message, as the sender learns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The message was written and flushed to the recipient's socket. The kernels of both ends may hold about 173 KB of
    /// such messages that the recipient never reads.
    Delivered,
    /// No user with that id is connected.
    Offline,
    /// The recipient's mailbox is full, or all mailboxes together are.
    QueueFull,
    /// The message waited in the recipient's mailbox for longer than `mailbox.max_age`.
    Expired,
    /// The recipient left before the message was flushed. It may have arrived.
    Disconnected,
    /// The message is larger than `limits.message_bytes`.
    TooLarge,
    /// The sender is over `limits.message_rate` or `limits.byte_rate`.
    RateLimited,
    /// The message was still queued when the drain timed out.
    Draining,
    /// The recipient is not on this node, and the other nodes cannot be reached.
    Unavailable,
    /// The message went to another node, whose answer did not come in time. It may have arrived.
    Unknown,
    /// The message does not follow the contract. An error frame with the same id says why. The ledger does not count
    /// it.
    Invalid,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 11] = [
        Self::Delivered,
        Self::Offline,
        Self::QueueFull,
        Self::Expired,
        Self::Disconnected,
        Self::TooLarge,
        Self::RateLimited,
        Self::Draining,
        Self::Unavailable,
        Self::Unknown,
        Self::Invalid,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Offline => "offline",
            Self::QueueFull => "queue_full",
            Self::Expired => "expired",
            Self::Disconnected => "disconnected",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
            Self::Invalid => "invalid",
        }
    }
}

/// Close codes that Switchboard sends: RFC 6455 section 7.4.1, the IANA registry, and private codes from 4000 to
/// 4999.
pub mod close_code {
    /// The connection has served its purpose.
    pub const NORMAL: u16 = 1000;
    /// A frame violates RFC 6455.
    pub const PROTOCOL: u16 = 1002;
    /// A text is not UTF-8, or a message does not follow the contract.
    pub const INVALID: u16 = 1007;
    /// The peer sent too many bad messages, or did not answer a ping.
    pub const POLICY: u16 = 1008;
    /// A message is over a size limit.
    pub const SIZE: u16 = 1009;
    /// The server has a fault.
    pub const INTERNAL: u16 = 1011;
    /// The server restarts. The client may come back.
    pub const RESTART: u16 = 1012;
    /// The client reads too slowly for `mailbox.overflow = "disconnect"`, or its id belongs to another user now. The
    /// client may come back.
    pub const TRY_AGAIN: u16 = 1013;
    /// The token has expired.
    pub const EXPIRED: u16 = 4401;
    /// The same user has come back over another connection.
    pub const TAKEN_OVER: u16 = 4409;
    /// An operator has removed the user.
    pub const REMOVED: u16 = 4410;

    /// Whether a peer may send this code in a close frame: those that RFC 6455 section 7.4.1 and the IANA registry
    /// define, without 1004 to 1006 and 1015, which no close frame may carry, and those from 3000 to 4999, which are
    /// for libraries and applications (section 7.4.2).
    pub fn may_be_received(code: u16) -> bool {
        matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}
