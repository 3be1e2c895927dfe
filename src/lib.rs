//! Switchboard: a WebSocket relay between two people that says what became of every message.
//!
//! # The path of a message
//!
//! ```text
//! accept → handshake → session/read → protocol/decode → relay → directory → mailbox → session/write → socket
//!                                                         ├→ relay/router ───┤
//!                                                         └→ cluster ══ NATS ╧═ cluster of another node
//! ```
//!
//! [`admission`] decides which connections are let in, and [`net`] gives their bytes. [`http`] answers requests and
//! upgrades `/`: the user joins the [`directory`] before the 101 is written, so that no message is lost in between.
//! From then on one task, the [`session`], drives the socket. A turn of the session reads a chunk, decodes the
//! messages in it by [`protocol`], and gives each to the [`relay`]. The relay finds the recipient, by itself or
//! through the task of the router strategy, and the recipient's mailbox queues a ready-made frame. The recipient's
//! session is woken when the sender's turn ends, writes all queued frames at once, and settles each message with the
//! [`ledger`] after the flush. An outcome goes the other way, into the sender's own replies, so that each socket has
//! one writer.
//!
//! Where the recipient is not on this node, the message goes through the [`cluster`] to the node that has it. That
//! node queues or drops the message, and answers where the sender asked.
//!
//! # What to find where
//!
//! | module | task |
//! | - | - |
//! | [`app`] | builds and runs the parts |
//! | [`lifecycle`], `drain`, `notices` | stages, the task tracker and signals; the drain; what the log says of a whole node |
//! | [`config`] | the settings: layers, rules, warnings |
//! | [`net`] | listening sockets, byte streams, TLS, the PROXY protocol, background threads |
//! | [`admission`] | which connections and handshakes are let in, and how fast |
//! | [`auth`] | from a token to an identity |
//! | [`http`] | connections, routes, the upgrade |
//! | [`protocol`] | the wire: from bytes to values and back |
//! | [`session`] | one upgraded connection |
//! | [`relay`] | join a user, send a message; by the directory or by the router |
//! | [`directory`] | the connected users of this node and their mailboxes |
//! | [`identity`], [`ticket`], [`id_file`] | user ids; what lets a user come back with its id; what keeps the id for it across a restart |
//! | [`ledger`] | each message is received once and settled once, by type |
//! | [`cluster`] | other nodes, through NATS |
//! | [`api`] | requests of operators |
//! | [`telemetry`] | logs, metrics, traces |
//! | [`cli`] | the command line |
//!
//! # Glossary
//!
//! | word | meaning |
//! | - | - |
//! | peer | the other end of a connection, whatever it is |
//! | client | a connected user as the directory has it: mailbox, replies, command |
//! | operator | a person or program with the token of the admin listener |
//! | node | one process of Switchboard; several make a cluster |
//! | session | the task of one upgraded connection |
//! | dialect | bare (the essay's contract) or `switchboard.v1` |
//! | message | a text from a sender to a recipient; its *body* is a JSON string literal |
//! | mailbox | the bounded queue of frames that wait for one client's socket |
//! | receipt | the duty to report the outcome of one message |
//! | outcome | what became of a message, as its sender learns it |
//! | reply | a frame of the server for the sender: an outcome, an error or a notice |
//! | ledger | the counters that account for every message |
//! | command | a request to a session to end: restart, close, remove or abort |
//! | drain | the end of a node: users are sent away, then the process ends |
//! | ticket | a signed text with which a user comes back with its id |
//! | resumption id | a random number in the ticket, which tells apart two owners of one user id |
//! | throttle | makes handshakes wait while they have used up their share of the worker threads |
//! | lease | a block of user ids that a node may give to newcomers |
//! | link | a node's connection to NATS |
//!
//! # Invariants
//!
//! - `protocol` does no I/O. Only `session` touches the socket of a user.
//! - Every queue has a capacity that a setting names. No sender waits for a recipient: a full mailbox is an answer.
//! - A message is owned by one [`ledger::InHand`] or by one mailbox's [`ledger::Held`]. Both settle on Drop, so that
//!   no message is lost unaccounted.
//! - A message from the cluster is delivered on this node or dropped, and never forwarded.
//! - No lock is held across an `.await`, or while another client is locked.
//! - Every task is on the tracker of [`lifecycle`], and the drain waits for it. A panic ends one connection.
//! - Nothing global changes except buffers that belong to a thread: two apps run in one process.
//! - Only `main` exits, only `app` wires, only `config` reads the environment.

pub mod admission;
pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod directory;
mod drain;
pub mod http;
pub mod id_file;
pub mod identity;
pub mod ledger;
pub mod lifecycle;
pub mod net;
mod notices;
pub mod protocol;
pub mod relay;
pub mod session;
pub mod telemetry;
pub mod ticket;

#[cfg(test)]
#[path = "../tests/simulate/mod.rs"]
mod simulate;
