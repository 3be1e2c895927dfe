//! The labels of families: closed sets, so that a peer cannot create series.

/// Why a message was dropped: the `reason` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// No client with that id was connected.
    Offline,
    /// The mailbox was full, or all mailboxes together were.
    QueueFull,
    /// It waited in a mailbox for longer than `mailbox.max_age`.
    Expired,
    /// The recipient's connection ended before the message was flushed.
    Disconnected,
    /// Above `limits.message_bytes`.
    TooLarge,
    /// Above the sender's rate.
    RateLimited,
    /// Still queued at `drain.timeout`.
    Draining,
    /// The message was for another node, which could not be reached.
    Unavailable,
    /// An internal error of the relay lost the message.
    Internal,
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 9] = [
        Self::Offline,
        Self::QueueFull,
        Self::Expired,
        Self::Disconnected,
        Self::TooLarge,
        Self::RateLimited,
        Self::Draining,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::QueueFull => "queue_full",
            Self::Expired => "expired",
            Self::Disconnected => "disconnected",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// The side that ended a connection: the `initiator` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// The peer.
    Client,
    /// The relay.
    Server,
}

impl Initiator {
    pub(super) const ALL: [Self; 2] = [Self::Client, Self::Server];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// How a connection ended: the `code` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// A WebSocket close code.
    Code(u16),
    /// The connection was reset.
    Reset,
    /// A ping, and then no sign of life for `keepalive.pong_timeout`.
    PongTimeout,
    /// A write made no progress for `keepalive.write_timeout`.
    WriteTimeout,
}

/// The codes with a label of their own: those registered by RFC 6455 and those of the relay. Any other
/// code counts as `other`.
const CODES: [u16; 15] = [
    1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 4401, 4409, 4410,
];
const OTHER: usize = CODES.len();
/// The number of values of the `code` label.
pub(super) const CODE_LABELS: usize = OTHER + 4;

impl CloseCode {
    /// The index of its label.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Code(code) => CODES
                .iter()
                .position(|known| *known == code)
                .unwrap_or(OTHER),
            Self::Reset => OTHER + 1,
            Self::PongTimeout => OTHER + 2,
            Self::WriteTimeout => OTHER + 3,
        }
    }
}

/// The value of the label at an index of [`CloseCode::index`].
pub(super) fn code_label(index: usize) -> String {
    match CODES.get(index) {
        Some(code) => code.to_string(),
        None => ["other", "reset", "pong_timeout", "write_timeout"][index - OTHER].to_owned(),
    }
}

/// Why a TLS handshake or an upgrade was refused: the `reason` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Not a WebSocket handshake as RFC 6455 section 4.2.1 defines it.
    Malformed,
    /// A request head above `limits.header_bytes`.
    HeadTooLarge,
    /// A handshake without `Upgrade`, which a proxy has removed.
    NoUpgrade,
    /// A WebSocket version other than 13.
    Version,
    /// A web page of an origin that may not connect.
    Origin,
    /// No valid token.
    Unauthorized,
    /// Above `limits.handshake_rate`.
    Rate,
    /// Above `limits.address_handshake_rate`.
    AddressRate,
    /// Above `limits.tls_handshake_rate`.
    TlsRate,
    /// Above `limits.address_tls_handshake_rate`.
    AddressTlsRate,
    /// Above `limits.address_connections`.
    AddressConnections,
    /// Above `limits.address_auth_failures`.
    AddressFailures,
    /// `limits.connections` is reached.
    Full,
    /// No id is left.
    NoId,
    /// The id cannot be registered with the other nodes.
    Cluster,
    /// The relay drains.
    Draining,
}

impl Rejection {
    pub(super) const ALL: [Self; 16] = [
        Self::Malformed,
        Self::HeadTooLarge,
        Self::NoUpgrade,
        Self::Version,
        Self::Origin,
        Self::Unauthorized,
        Self::Rate,
        Self::AddressRate,
        Self::TlsRate,
        Self::AddressTlsRate,
        Self::AddressConnections,
        Self::AddressFailures,
        Self::Full,
        Self::NoId,
        Self::Cluster,
        Self::Draining,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::HeadTooLarge => "head_too_large",
            Self::NoUpgrade => "no_upgrade",
            Self::Version => "version",
            Self::Origin => "origin",
            Self::Unauthorized => "unauthorized",
            Self::Rate => "rate",
            Self::AddressRate => "address_rate",
            Self::TlsRate => "tls_rate",
            Self::AddressTlsRate => "address_tls_rate",
            Self::AddressConnections => "address_connections",
            Self::AddressFailures => "address_failures",
            Self::Full => "full",
            Self::NoId => "no_id",
            Self::Cluster => "cluster",
            Self::Draining => "draining",
        }
    }
}
