//! Listening sockets. On Linux every accepted socket inherits the options that are set here, so an accept needs no
//! more system calls.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tracing::warn;

use crate::config::Settings;

/// Connections that the kernel holds until they are accepted. With tokio's default of 128, many peers that reconnect
/// at once would lose SYN packets, and each lost SYN is sent again only after a second.
const BACKLOG: i32 = 4096;

/// Unsent bytes in the kernel from which a socket is not writable. With the default, a peer that never reads takes
/// 4.27 MB before its mailbox fills, and with this 173 KB (measured).
const NOT_SENT_BYTES: u32 = 16 * 1024;

/// How long the kernel waits until a peer acknowledges sent bytes.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Linux's number on all architectures that have a target.
const EAFNOSUPPORT: i32 = 97;

/// Why a listener cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The kernel refuses an address.
    #[error("cannot listen on {addr} ({setting})")]
    Address {
        /// The address.
        addr: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The machine lacks the families of all default addresses.
    #[error("cannot listen on any address of server.listen")]
    NoAddress,
}

/// Binds `server.listen`. If it has its default value, addresses whose family the machine lacks are skipped.
/// Needs a tokio runtime.
pub(crate) fn bind_server(addrs: &[SocketAddr]) -> Result<Vec<TcpListener>, BindError> {
    let is_default = addrs == Settings::default().server.listen;
    let mut listeners = Vec::new();
    for &addr in addrs {
        match bind(addr) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_default && lacks_address_family(&error) => {
                warn!(%addr, %error, "default address skipped: the machine lacks its family");
            }
            Err(source) => {
                let setting = "server.listen";
                return Err(BindError::Address {
                    addr,
                    setting,
                    source,
                });
            }
        }
    }
    if listeners.is_empty() {
        return Err(BindError::NoAddress);
    }
    Ok(listeners)
}

/// Binds `admin.listen`. Needs a tokio runtime.
pub(crate) fn bind_admin(addr: SocketAddr) -> Result<TcpListener, BindError> {
    let setting = "admin.listen";
    bind(addr).map_err(|source| BindError::Address {
        addr,
        setting,
        source,
    })
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        // Lets the process listen on [::] and 0.0.0.0 at the same time.
        socket.set_only_v6(true)?;
    }
    // The session gathers frames before it writes, so Nagle's algorithm could only delay them.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOT_SENT_BYTES)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_mins(1))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether binding failed because the kernel lacks the address family, or no interface has an address of it.
fn lacks_address_family(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ) || error.raw_os_error() == Some(EAFNOSUPPORT)
}
