//! Switchboard: a WebSocket relay between two people that says what became of every message.
//!
//! # The way of a message
//!
//! ```text
//! accept → upgrade → session/read → protocol/decode → relay → directory → mailbox → session/write → socket
//!                                                       ├→ router ───────────┤
//!                                                       └→ cluster ══ NATS ══╛ of another node
//! ```
//!
//! A connection is accepted by [`http`], answered by its routes, and upgraded: its user joins
//! in the [`directory`] before the 101 is written, and a [`session`] drives the socket from then on,
//! one task for each. A turn of it reads a gulp, decodes the messages in it by [`protocol`], and hands
//! each to the [`relay`], which finds the recipient's client (by itself, or through the task of the
//! router strategy) and pushes a ready-made frame into its mailbox. The recipient's session is woken
//! when the sender's turn ends, writes all that has come in one go, and settles each message with the
//! [`ledger`] once its frame was flushed. Where the sender asked, the outcome goes the other way:
//! into the sender's own client, and out by its own session, so that every socket has one writer.
//!
//! Where the recipient is not here and there are other nodes, the message goes to the [`cluster`], which
//! publishes it to the block of ids that the recipient's is in. The node that holds the block puts it
//! into a mailbox or drops it, and answers where the sender asked.
//!
//! # What to find where
//!
//! | module | in one sentence |
//! | - | - |
//! | [`app`] | builds and runs the whole, and drains it |
//! | [`config`] | the settings, in layers, checked |
//! | [`http`] | listeners, routes, the upgrade |
//! | [`auth`] | who may come in |
//! | [`api`] | what operators ask and command |
//! | [`net`] | listening sockets, a connection's bytes, TLS, the PROXY protocol, background threads |
//! | [`admission`] | which connections and handshakes are let in, and how fast |
//! | [`session`] | the life of one connection |
//! | [`protocol`] | the wire: bytes to values and back |
//! | [`relay`] | join a user, send a message |
//! | [`directory`] | who is here: clients and their mailboxes |
//! | [`cluster`] | other nodes, through NATS |
//! | [`ledger`] | each message received once and settled once, by type |
//! | [`lifecycle`] | from ready to gone |
//! | [`telemetry`] | logs, metrics and traces |
//! | [`identity`] | user ids and where they come from |
//! | [`ticket`] | what lets a user come back with its id |
//! | [`cli`] | the command line |
//!
//! # What holds everywhere
//!
//! - `protocol` does no I/O, and only `session` touches the socket of a user.
//! - Every queue has a capacity that a setting names. Nobody waits for a recipient: what does not fit
//!   is an answer.
//! - A message is in exactly one hand: an [`ledger::InHand`] or one mailbox's [`ledger::Held`]. Both
//!   settle on Drop, so there is no way to lose one unaccounted.
//! - A message from the cluster is delivered here or dropped, never forwarded.
//! - No lock is held across an `.await`, or while another client is locked.
//! - Every task is on the tracker of [`lifecycle`], and the drain waits for it. A panic ends one
//!   connection.
//! - Nothing global changes but buffers that belong to a thread: two apps run in one process.
//! - Only `main` exits, only `app` wires, only `config` reads the environment.

pub mod admission;
pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod directory;
pub mod http;
pub mod identity;
pub mod ledger;
pub mod lifecycle;
pub mod net;
pub mod protocol;
pub mod relay;
pub mod session;
pub mod telemetry;
pub mod ticket;
