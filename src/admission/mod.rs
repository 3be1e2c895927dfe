//! Decides which connections and handshakes are admitted, and how fast: the accept rate, the slots for
//! connections that have not completed an upgrade, their share of the worker threads, and the limits of one
//! address. Must not do I/O.

mod accept_rate;
mod network;
mod pending;
mod per_address;
mod throttle;
pub mod token_bucket;

pub(crate) use accept_rate::AcceptLimiter;
pub(crate) use pending::{PendingConnections, PendingSlot};
pub(crate) use per_address::{AddressLimiter, AddressPermit, LimitExceeded};
pub(crate) use throttle::HandshakeThrottle;
