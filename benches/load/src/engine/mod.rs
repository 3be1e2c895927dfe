//! The clients of a run: one thread, one epoll set, non-blocking sockets. A turn sends the messages that are
//! due, waits for sockets, reads what came, and writes the answers in one call for each connection.
//!
//! `state` holds the state; `turn` is the loop. `connect` opens and ends connections, `receive` reads frames
//! and judges messages, `send` paces and sends them, `ids` learns the ids of connections, `peers` connects
//! idle and short-lived peers. The other files are the data that they work on.

mod batch;
mod churn;
mod connect;

mod group;
mod ids;
mod pacer;
mod peers;
mod probes;
mod receive;
mod send;
mod state;
mod turn;

pub(crate) use batch::{BatchPace, PeerBatch};
pub(crate) use churn::Churn;
pub(crate) use group::{Group, TICK};
pub(crate) use state::{Engine, PollMode};
