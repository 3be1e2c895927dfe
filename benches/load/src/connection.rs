//! One connection: its socket, its state, and the bytes that wait in either direction.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use switchboard::identity::UserId;

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Connecting,
    /// The upgrade request is sent or queued; the response is not complete.
    Upgrading,
    Open,
    /// This side has sent its close frame.
    Leaving,
    Gone,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sends and receives. The server must not end it.
    Talker,
    /// Stops reading for a while. The server may end it for that.
    SlowReader,
    /// Stays connected and sends nothing.
    IdlePeer,
    /// Connects, and leaves after a moment.
    ShortLived,
}

/// The receive buffer of a [`Role::SlowReader`]. With the default size the kernel would take megabytes that
/// the connection does not read.
const SLOW_READER_BYTES: usize = 16 * 1024;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) role: Role,
    pub(crate) state: State,
    pub(crate) id: Option<UserId>,
    /// When the connection was begun, nanoseconds of the engine's clock.
    pub(crate) born: u64,
    /// Whether the engine's list of connections with bytes to write has it.
    pub(crate) is_queued: bool,
    /// Whether the engine does not read from it.
    pub(crate) is_paused: bool,
    /// The start of a frame whose rest has not arrived.
    pub(crate) rest: Vec<u8>,
    /// The payloads so far of a message whose last frame has not arrived.
    pub(crate) fragments: Option<Vec<u8>>,
    pub(crate) stream: Option<TcpStream>,
    is_writable: bool,
    out: Vec<u8>,
    out_at: usize,
}

impl Connection {
    /// Begins to connect. Where the target is loopback, `index` chooses the source address.
    pub(crate) fn begin(
        target: SocketAddr,
        role: Role,
        index: usize,
        born: u64,
    ) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(target),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if role == Role::SlowReader {
            socket.set_recv_buffer_size(SLOW_READER_BYTES)?;
        }
        if target.is_ipv4() && target.ip().is_loopback() {
            socket.bind(&SocketAddr::from((source(role, index), 0)).into())?;
        }
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error),
            _ => {}
        }
        Ok(Self {
            role,
            state: State::Connecting,
            id: None,
            born,
            is_queued: false,
            is_paused: false,
            rest: Vec::new(),
            fragments: None,
            stream: Some(TcpStream::from_std(socket.into())),
            is_writable: false,
            out: Vec::new(),
            out_at: 0,
        })
    }

    /// Returns whether the socket is connected by now, or the error for which it cannot connect.
    pub(crate) fn connected(&mut self) -> io::Result<bool> {
        let Some(stream) = &self.stream else {
            return Ok(false);
        };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
            Ok(_) => Ok(true),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// The buffer to which frames are appended that are to be sent.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Bytes that wait to be written.
    pub(crate) fn backlog(&self) -> usize {
        self.out.len() - self.out_at
    }

    /// Notes that the socket takes bytes again.
    pub(crate) fn writable(&mut self) {
        self.is_writable = true;
    }

    /// Writes as much as the socket takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        /// The buffer drops its written part when that is longer.
        const WRITTEN_BYTES_MAX: usize = 1024 * 1024;
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        while self.is_writable && self.out_at < self.out.len() {
            match stream.write(&self.out[self.out_at..]) {
                Ok(written) => self.out_at += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.out_at == self.out.len() {
            self.out.clear();
            self.out_at = 0;
        } else if self.out_at > WRITTEN_BYTES_MAX {
            self.out.drain(..self.out_at);
            self.out_at = 0;
        }
        Ok(())
    }

    /// Reads behind the rest that is left from the last time. Returns how many bytes the buffer holds, and
    /// whether the socket may have more. `None` where nothing has arrived.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
        let Some(stream) = &mut self.stream else {
            return Ok(None);
        };
        let kept = self.rest.len();
        buffer[..kept].copy_from_slice(&self.rest);
        loop {
            return match stream.read(&mut buffer[kept..]) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => Ok(Some((kept + read, kept + read == buffer.len()))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
        }
    }

    /// Ends the connection with a reset, and frees its memory.
    pub(crate) fn abort(&mut self) {
        if let Some(stream) = self.stream.take() {
            // Without the reset the port is in TIME_WAIT for a minute, which is no failure.
            drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
        }
        self.close();
    }

    /// Closes the socket, and frees the memory of the connection.
    pub(crate) fn close(&mut self) {
        self.state = State::Gone;
        self.stream = None;
        self.rest = Vec::new();
        self.fragments = None;
        self.out = Vec::new();
        self.out_at = 0;
    }
}

/// The number is the same on all architectures that this program is built for.
const EINPROGRESS: i32 = 115;

/// A source address for the connection of this index. One address has some 28,000 ports for one target, and
/// the kernel's search for a free port takes longer the fewer are left.
fn source(role: Role, index: usize) -> Ipv4Addr {
    const PER_ADDRESS: usize = 1000;
    const SHORT_LIVED: usize = 64;
    let (network, number) = match role {
        // The port of a closed connection is in TIME_WAIT for a minute, so the addresses take turns.
        Role::ShortLived => (200, index % SHORT_LIVED),
        _ => (1, index / PER_ADDRESS),
    };
    let offset = u32::try_from(number).expect("a million connections have 1,000 addresses");
    let first = u32::from(Ipv4Addr::new(127, network, 0, 1));
    Ipv4Addr::from(first + offset)
}
