//! The HTTP edge: the accept loop, the routes, and the upgrade that makes a session of a connection.

mod assets;
mod client_address;
mod connection;
mod handshake;
mod negotiation;
mod opening;
mod origins;
mod refusal;
mod response;
mod routes;
mod scrapes;
mod server;
mod state;
mod stream;
mod upgrade;

pub use client_address::TrustedProxies;
#[cfg(test)]
pub(crate) use handshake::welcome; // for the simulator
pub(crate) use origins::Origins;
pub(crate) use scrapes::Scrapes;
pub(crate) use server::serve;
pub(crate) use state::{HttpState, ListenerRole};
