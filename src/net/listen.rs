//! Listening sockets. On Linux every accepted socket inherits the options that are set here, so an accept needs no
//! more system calls.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tracing::warn;

use super::stream::PROBE_AFTER_MAX;
use crate::config::{KeepaliveSettings, Settings};

/// Connections that the kernel holds until they are accepted. With tokio's default of 128, many peers that reconnect
/// at once would lose SYN packets, and each lost SYN is sent again only after a second.
const BACKLOG: i32 = 4096;

/// Unsent bytes in the kernel from which a socket is not writable. With the default, a peer that never reads takes
/// 4.27 MB before its mailbox fills, and with this 173 KB (measured).
const NOT_SENT_BYTES: u32 = 16 * 1024;

/// Probes in a row that must be lost before the kernel gives up an idle connection. Thousands of probes at once lose
/// packets: on loopback, the kernel drops what is over 1000 packets (`net.core.netdev_max_backlog`).
const PROBES: u32 = 5;

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
pub(crate) fn bind_server(settings: &Settings) -> Result<Vec<TcpListener>, BindError> {
    let addrs = &settings.server.listen;
    let is_default = *addrs == Settings::default().server.listen;
    let mut listeners = Vec::new();
    for &addr in addrs {
        match bind(addr, settings) {
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

/// Binds `admin.listen`, if it is set. Needs a tokio runtime.
pub(crate) fn bind_admin(settings: &Settings) -> Result<Option<TcpListener>, BindError> {
    let setting = "admin.listen";
    let bound = settings.admin.listen.map(|addr| {
        bind(addr, settings).map_err(|source| BindError::Address {
            addr,
            setting,
            source,
        })
    });
    bound.transpose()
}

/// Whether a listener on `[::]` takes connections by IPv4, too: where no other listener has its port.
fn takes_ipv4(addr: SocketAddr, settings: &Settings) -> bool {
    let all = settings.server.listen.iter().chain(&settings.admin.listen);
    let of_port = all.filter(|other| other.port() == addr.port()).count();
    addr.is_ipv6() && addr.ip().is_unspecified() && (addr.port() == 0 || of_port == 1)
}

fn bind(addr: SocketAddr, settings: &Settings) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        // Lets the process listen on [::] and 0.0.0.0 at the same time.
        socket.set_only_v6(!takes_ipv4(addr, settings))?;
    }
    // The session gathers frames before it writes, so Nagle's algorithm could only delay them.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOT_SENT_BYTES)?;
    set_timers(&socket, &settings.keepalive)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Sets when the kernel gives up a connection by itself. The session does it first, except where pings are rare.
fn set_timers(socket: &Socket, keepalive: &KeepaliveSettings) -> io::Result<()> {
    let interval = keepalive
        .pong_timeout
        .clamp(Duration::from_secs(5), Duration::from_mins(1));
    // Linux compares the silence of an idle connection with the user timeout, and then ignores the number of
    // probes: a timeout below the time of the first probe would need only that one to be lost.
    let user_timeout = (PROBE_AFTER_MAX + PROBES * interval).max(keepalive.write_timeout);
    socket.set_tcp_user_timeout(Some(user_timeout))?;
    let probes = TcpKeepalive::new()
        .with_time(PROBE_AFTER_MAX)
        .with_interval(interval)
        .with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)
}

/// Whether binding failed because the kernel lacks the address family, or no interface has an address of it.
fn lacks_address_family(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ) || error.raw_os_error() == Some(EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::TcpStream;

    use super::*;
    use crate::net::ByteStream;

    /// The idle time before the first probe, the interval of probes, and the user timeout of an accepted connection.
    async fn timers(keepalive: &KeepaliveSettings) -> [Duration; 3] {
        let settings = Settings {
            keepalive: keepalive.clone(),
            ..Settings::default()
        };
        let listener = bind(([127, 0, 0, 1], 0).into(), &settings).unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let stream = ByteStream::Plain(listener.accept().await.unwrap().0);
        stream.spread_probes();
        let ByteStream::Plain(stream) = stream else {
            unreachable!("it is plain");
        };
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        [
            socket.tcp_keepalive_time().unwrap(),
            socket.tcp_keepalive_interval().unwrap(),
            socket.tcp_user_timeout().unwrap().unwrap(),
        ]
    }

    #[tokio::test]
    async fn an_idle_connection_outlives_several_lost_probes() {
        let default = Settings::default().keepalive;
        let seconds = Duration::from_secs;
        for (pong_timeout, write_timeout, expected) in [
            (seconds(10), seconds(10), seconds(10)),
            (Duration::from_millis(200), seconds(10), seconds(5)),
            (seconds(3600), seconds(86400), seconds(60)),
        ] {
            let keepalive = KeepaliveSettings {
                pong_timeout,
                write_timeout,
                ..default.clone()
            };
            let [idle, interval, user_timeout] = timers(&keepalive).await;
            assert_eq!(interval, expected);
            let lost = user_timeout.abs_diff(idle).as_secs() / interval.as_secs();
            assert!(lost >= 4, "closed after {lost} probes");
            assert!(user_timeout >= write_timeout, "{user_timeout:?}");
        }
    }

    #[tokio::test]
    async fn connections_that_came_at_once_are_not_probed_at_once() {
        let keepalive = Settings::default().keepalive;
        let mut idle = Vec::new();
        for _ in 0..50 {
            idle.push(timers(&keepalive).await[0].as_secs());
        }
        idle.sort_unstable();
        assert!(idle[0] >= 60 && idle[49] <= 120, "{idle:?}");
        idle.dedup();
        assert!(idle.len() > 10, "{idle:?}");
    }
}
