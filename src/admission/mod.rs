//! Which connections and handshakes are let in, and how fast: rates, the room for connections that have not
//! completed an upgrade, their share of the worker threads, and what one address may do.

mod accept_rate;
mod network;
mod pending;
mod per_address;
mod throttle;
pub mod token_bucket;

pub use accept_rate::AcceptLimiter;
pub(crate) use pending::{PendingConnections, PendingSlot};
pub use per_address::AddressLimiter;
pub(crate) use per_address::{AddressPermit, TooMany};
pub use throttle::HandshakeThrottle;
