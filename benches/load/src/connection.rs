//! One connection: its socket, how far it is, and the bytes that wait on either side of it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use switchboard::identity::UserId;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Connecting,
    /// The handshake is sent, or about to be.
    Greeting,
    Open,
    /// Our close frame is sent.
    Leaving,
    Gone,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Sends and receives; the server must not end it.
    Talker,
    /// Will stop reading; the server may end it for that.
    SlowReader,
    /// One of many that only are there.
    IdlePeer,
    /// Comes and goes.
    ShortLived,
}

/// A receive buffer for [`Role::SlowReader`]: with the default one the kernel would take megabytes
/// in its place.
const SLOW_READER_BYTES: usize = 16 * 1024;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) role: Role,
    pub(super) state: State,
    pub(super) id: Option<UserId>,
    /// When it was begun.
    pub(super) born: u64,
    /// Whether it is on the list of those with something to write.
    pub(super) is_queued: bool,
    /// Whether it is not to be read from.
    pub(super) is_held: bool,
    /// The start of a frame whose rest has not arrived.
    pub(super) rest: Vec<u8>,
    /// The frames so far of a message that is not complete.
    pub(super) fragments: Option<Vec<u8>>,
    pub(super) stream: Option<TcpStream>,
    is_writable: bool,
    out: Vec<u8>,
    out_at: usize,
}

impl Connection {
    /// Begins to connect, from the `index`th source address where the target is loopback.
    pub(super) fn begin(
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
            is_held: false,
            rest: Vec::new(),
            fragments: None,
            stream: Some(TcpStream::from_std(socket.into())),
            is_writable: false,
            out: Vec::new(),
            out_at: 0,
        })
    }

    /// Whether it is connected by now; `Err` if it never will be.
    pub(super) fn connected(&mut self) -> io::Result<bool> {
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

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Where frames are appended that are to be sent.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Bytes that wait to be written.
    pub(super) fn backlog(&self) -> usize {
        self.out.len() - self.out_at
    }

    /// The socket takes bytes (again).
    pub(super) fn writable(&mut self) {
        self.is_writable = true;
    }

    /// Writes as much as the socket takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        /// The written part is given up when it is that long.
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

    /// Reads behind what is left from the last time; how much there is then, and whether it may be
    /// that more can be read. `None` when nothing came.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
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

    /// Ends it without a word, and gives back its memory.
    pub(super) fn cut(&mut self) {
        if let Some(stream) = self.stream.take() {
            // Best effort: without it a port stays taken for a minute, no more.
            drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
        }
        self.close();
    }

    /// Closes the socket as it is, and gives back its memory.
    pub(super) fn close(&mut self) {
        self.state = State::Gone;
        self.stream = None;
        self.rest = Vec::new();
        self.fragments = None;
        self.out = Vec::new();
        self.out_at = 0;
    }
}

/// The same on all architectures that have a target.
const EINPROGRESS: i32 = 115;

/// A source address for the `index`th connection. One address has some 28,000 ports for one target,
/// and looks for a free one the longer the fewer there are.
fn source(role: Role, index: usize) -> Ipv4Addr {
    const PER_ADDRESS: usize = 1000;
    const VISITORS: usize = 64;
    let (network, number) = match role {
        // They come one after the other, and a port that was left waits for a minute.
        Role::ShortLived => (200, index % VISITORS),
        _ => (1, index / PER_ADDRESS),
    };
    let offset = u32::try_from(number).expect("a million connections have 1,000 addresses");
    let first = u32::from(Ipv4Addr::new(127, network, 0, 1));
    Ipv4Addr::from(first + offset)
}
