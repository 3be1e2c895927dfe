//! The wire contract in one place: what a client may say, what it is told, and the codes for both.
//! Bytes in, values out and back; no I/O, no settings, no clock, so that it can be fuzzed alone.

mod decode;
mod encode;

pub use decode::{BadInput, Field, Inbound, decode};
pub(crate) use decode::{Text, is_sound_string};
pub use encode::{
    FRAME_HEADER_BYTES_MAX, Outbound, message_frame_bytes, push_close, push_data, push_frame,
    push_ping,
};

/// The WebSocket subprotocol that adds outcomes and notices to the bare contract.
pub const SUBPROTOCOL: &str = "switchboard.v1";

/// The most bytes that a close frame's reason may have: 125 less the code (RFC 6455 section 5.5).
pub const CLOSE_REASON_BYTES_MAX: usize = 123;

/// The most bytes, decoded, of a client's `id` that is a string.
pub const CLIENT_ID_BYTES_MAX: usize = 64;

/// Which of the two contracts a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The essay's contract: messages in, messages out, nothing else.
    Bare,
    /// [`SUBPROTOCOL`]: every server frame has a `type`, and an `id` asks for an outcome.
    V1,
}

/// What became of a message, as its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Written and flushed to the recipient's socket.
    Delivered,
    /// Nobody with that id is here.
    Offline,
    /// The recipient's mailbox, or the room for all mailboxes, is used up.
    QueueFull,
    /// The recipient left before it was flushed; it may have arrived.
    Disconnected,
    /// More than `limits.message_bytes`.
    TooLarge,
    /// Over the sender's rate.
    RateLimited,
    /// Still queued when the drain timed out.
    Draining,
    /// The recipient is not here, and the other nodes cannot be reached.
    Unavailable,
    /// It went to another node, which did not say in time what became of it: it may have arrived.
    Unknown,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 9] = [
        Self::Delivered,
        Self::Offline,
        Self::QueueFull,
        Self::Disconnected,
        Self::TooLarge,
        Self::RateLimited,
        Self::Draining,
        Self::Unavailable,
        Self::Unknown,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Offline => "offline",
            Self::QueueFull => "queue_full",
            Self::Disconnected => "disconnected",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
        }
    }
}

/// Close codes that Switchboard sends (RFC 6455 section 7.4.1, the IANA registry, and 4000 to 4999
/// of our own).
pub mod close_code {
    /// The purpose is fulfilled.
    pub const NORMAL: u16 = 1000;
    /// A frame that RFC 6455 rules out.
    pub const PROTOCOL: u16 = 1002;
    /// Not UTF-8, or not what the contract asks for.
    pub const INVALID: u16 = 1007;
    /// Too many bad messages, or no answer to a ping.
    pub const POLICY: u16 = 1008;
    /// Over a size limit.
    pub const SIZE: u16 = 1009;
    /// A fault of ours.
    pub const INTERNAL: u16 = 1011;
    /// The service restarts; come back.
    pub const RESTART: u16 = 1012;
    /// Read too slowly for `mailbox.overflow = "disconnect"`, or an id that cannot be had any more; come
    /// back.
    pub const TRY_AGAIN: u16 = 1013;
    /// The token has expired.
    pub const EXPIRED: u16 = 4401;
    /// The same user came back over another connection.
    pub const TAKEN_OVER: u16 = 4409;
    /// An operator has removed the user.
    pub const REMOVED: u16 = 4410;
}
