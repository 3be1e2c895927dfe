//! Bytes and the kernel: listening sockets, a connection's stream, TLS, the PROXY protocol, and threads for
//! work that must not delay users. Must not know of HTTP, users or messages.

pub mod background;
mod listen;
pub mod proxy_protocol;
mod stream;
pub mod tls;

pub use listen::bind;
pub(crate) use stream::Io;
