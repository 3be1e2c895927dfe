//! The HTTP edge: listeners, routes, and the upgrade that makes a session of a connection.

mod assets;
mod client_address;
mod handshake;
mod refusal;
mod routes;
mod server;
mod state;

pub use client_address::Proxies;
pub(crate) use server::serve;
pub(crate) use state::{HttpState, ListenerRole};
