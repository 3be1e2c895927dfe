//! Bytes and the kernel: listening sockets, a connection's byte stream, TLS, the PROXY protocol, the HTTP client
//! for requests to other servers, waits between attempts, and threads for work that must not delay users. Must not know of users or
//! messages.

pub(crate) mod background;
pub(crate) mod backoff;
pub(crate) mod ending;
pub mod http_client;
mod listen;
pub mod proxy_protocol;
mod stream;
pub(crate) mod tls;
pub mod trust;

pub use listen::BindError;
pub(crate) use listen::{bind_admin, bind_server};
pub(crate) use stream::ByteStream;
pub use stream::{Directions, Transport};
