//! A peer that can send any bytes: over TCP, with frames and handshakes built by hand. It answers no ping, masks
//! frames as the test says, and may end its connection in any way.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::{Dialect, within};

pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

/// A connection.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    /// The id of the user, once it has joined.
    pub(crate) id: u64,
    input: BytesMut,
    narrow: bool,
}

/// A frame that the relay sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

/// What comes from the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Frame(Frame),
    /// The relay has closed its half.
    End,
    /// The relay has reset the connection.
    Reset,
}

/// The response to an HTTP request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// The only value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(has, _)| has == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert_eq!(values.next(), None, "{name} comes twice");
        value
    }
}

impl Raw {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(addr)).await;
        Self::over(stream.unwrap())
    }

    /// A connection with small buffers.
    pub(crate) async fn connect_narrow(addr: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.set_send_buffer_size(32 * 1024).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = TcpSocket::from_std_stream(socket.into());
        let stream = within("a connection", socket.connect(addr)).await;
        Self::over(stream.unwrap())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            id: 0,
            input: BytesMut::new(),
            narrow: false,
        }
    }

    /// Joins, and reads the welcome if the dialect has one.
    pub(crate) async fn joined(mut self, dialect: Dialect) -> Self {
        self.upgrade(&Handshake::new().dialect(dialect)).await;
        if dialect == Dialect::V1 {
            let welcome = self.json().await;
            assert_eq!(welcome["type"], "welcome", "{welcome}");
        }
        self
    }

    /// Sends a handshake, which must be accepted.
    pub(crate) async fn upgrade(&mut self, handshake: &Handshake) -> Answer {
        let answer = self.ask(handshake).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        let id = answer.header("x-user-id").expect("the 101 carries the id");
        self.id = id.parse().unwrap();
        answer
    }

    /// Sends a request, and reads the response.
    pub(crate) async fn ask(&mut self, handshake: &Handshake) -> Answer {
        self.write(&handshake.bytes()).await;
        let body = handshake.method != "HEAD";
        self.answer(body).await.expect("an answer")
    }

    /// Sends a request without a body, and reads the response.
    pub(crate) async fn http(&mut self, method: &str, target: &str) -> Answer {
        self.ask(&Handshake::request(method, target)).await
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        within("a write", self.stream.write_all(bytes))
            .await
            .unwrap();
    }

    /// Writes to a peer that may have closed the connection already.
    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        within("a write", self.stream.write_all(bytes)).await
    }

    /// Writes one byte at a time, so that most are TCP segments of their own.
    pub(crate) async fn trickle(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes {
            self.try_write(std::slice::from_ref(byte)).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Sends a message as one text frame.
    pub(crate) async fn say(&mut self, to: u64, text: &str) {
        self.write(&message(to, text).bytes()).await;
    }

    /// Continues with bytes that were read from the stream before.
    pub(crate) fn after(mut self, taken: &[u8]) -> Self {
        self.input = taken.into();
        self
    }

    /// Reads at most so many bytes, and lets the receive buffer stay small.
    pub(crate) async fn read_a_little(&mut self, bytes: usize) {
        let mut read = vec![0; bytes];
        let count = within("bytes from the relay", self.stream.read(&mut read)).await;
        self.input.extend_from_slice(&read[..count.unwrap()]);
    }

    /// Closes the peer's half of the connection.
    pub(crate) async fn half_close(&mut self) {
        // An error means that the relay was faster.
        drop(self.stream.shutdown().await);
    }

    /// Resets the connection.
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }

    /// Grows the small receive buffer at the next read.
    pub(crate) fn narrowed(mut self) -> Self {
        self.narrow = true;
        self
    }

    async fn fill(&mut self) -> io::Result<usize> {
        if std::mem::take(&mut self.narrow) {
            let socket = SockRef::from(&self.stream);
            socket.set_recv_buffer_size(1 << 20).unwrap();
        }
        self.input.reserve(64 * 1024);
        within(
            "bytes from the relay",
            self.stream.read_buf(&mut self.input),
        )
        .await
    }

    /// Reads the response to an HTTP request; none if the relay ends the connection instead.
    pub(crate) async fn answer(&mut self, with_body: bool) -> Option<Answer> {
        let end = loop {
            let end = self.input.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                break end;
            }
            match self.fill().await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        };
        let head = self.input.split_to(end + 4);
        let head = String::from_utf8(head.to_vec()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let status = status.expect("a status line").parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header line");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let mut answer = Answer {
            status,
            headers: lines.map(header).collect(),
            body: String::new(),
        };
        let length = answer
            .header("content-length")
            .map(|length| length.parse().unwrap());
        if with_body && ![101, 204].contains(&status) {
            answer.body = self.body(length.expect("the length of the body")).await;
        }
        Some(answer)
    }

    async fn body(&mut self, length: usize) -> String {
        while self.input.len() < length {
            assert_ne!(self.fill().await.unwrap(), 0, "the body ends early");
        }
        String::from_utf8(self.input.split_to(length).to_vec()).unwrap()
    }

    /// Takes a frame from the input, if it is whole.
    fn parse(&mut self) -> Option<Frame> {
        let [first, second, ..] = *self.input else {
            return None;
        };
        assert_eq!(
            first & 0x70,
            0,
            "a reserved bit is set, no extension was agreed"
        );
        assert_eq!(first & 0x80, 0x80, "the relay sends no fragments");
        assert_eq!(second & 0x80, 0, "a server masks no frame");
        let (length, start) = match second {
            126 => (
                u64::from(u16::from_be_bytes(
                    self.input.get(2..4)?.try_into().unwrap(),
                )),
                4,
            ),
            127 => (
                u64::from_be_bytes(self.input.get(2..10)?.try_into().unwrap()),
                10,
            ),
            length => (u64::from(length), 2),
        };
        let minimal = match start {
            2 => true,
            4 => length > 125,
            _ => length > 65535,
        };
        assert!(minimal, "{length} bytes in a length field that is too long");
        let end = start + usize::try_from(length).unwrap();
        let payload = self.input.get(start..end)?.to_vec();
        self.input.advance(end);
        Some(Frame {
            opcode: first & 0x0F,
            payload,
        })
    }

    /// The next frame, end or reset.
    pub(crate) async fn next(&mut self) -> Seen {
        loop {
            if let Some(frame) = self.parse() {
                return Seen::Frame(frame);
            }
            match self.fill().await {
                Ok(0) => {
                    assert!(self.input.is_empty(), "the connection ends within a frame");
                    return Seen::End;
                }
                Ok(_) => {}
                Err(_) => return Seen::Reset,
            }
        }
    }

    /// The next frame, while the connection is open.
    pub(crate) async fn frame(&mut self) -> Frame {
        match self.next().await {
            Seen::Frame(frame) => frame,
            end => panic!("user {} wanted a frame and got {end:?}", self.id),
        }
    }

    /// The next frame, which is a text frame, read as JSON.
    pub(crate) async fn json(&mut self) -> Value {
        self.frame().await.json()
    }

    /// The next frame, which is a close frame: its code and reason.
    pub(crate) async fn close(&mut self) -> (u16, String) {
        self.frame().await.close()
    }

    /// Reads to the relay's close, replies with the same code, and checks that the connection ends in order. Returns
    /// the text frames before the close, its code and its reason.
    pub(crate) async fn rest(&mut self) -> (Vec<Value>, u16, String) {
        let (frames, code, reason) = self.until_close().await;
        // Fails if the relay has ended the connection, because it found a close of ours behind the bytes it refused.
        drop(self.try_write(&Wire::close(code, "").bytes()).await);
        assert_eq!(self.next().await, Seen::End);
        (frames, code, reason)
    }

    /// The same if the relay's close is the reply to ours: then the server ends the connection (RFC 6455 section
    /// 7.1.1).
    pub(crate) async fn answered(&mut self) -> (Vec<Value>, u16, String) {
        let rest = self.until_close().await;
        assert_eq!(self.next().await, Seen::End);
        rest
    }

    /// The text frames up to the relay's close frame, its code and its reason.
    pub(crate) async fn until_close(&mut self) -> (Vec<Value>, u16, String) {
        let mut frames = Vec::new();
        loop {
            let frame = self.frame().await;
            match frame.opcode {
                TEXT => frames.push(frame.json()),
                CLOSE => {
                    let (code, reason) = frame.close();
                    return (frames, code, reason);
                }
                PING | PONG => {}
                opcode => panic!("the relay sends no frame of opcode {opcode}"),
            }
        }
    }

    /// Reads any bytes to the end of the connection, and sends nothing.
    pub(crate) async fn drained(mut self) -> Seen {
        loop {
            self.input.clear();
            match self.fill().await {
                Ok(0) => return Seen::End,
                Ok(_) => {}
                Err(_) => return Seen::Reset,
            }
        }
    }
}

impl Frame {
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.opcode, TEXT, "{self:?}");
        serde_json::from_slice(&self.payload).expect("the relay sends JSON")
    }

    pub(crate) fn close(&self) -> (u16, String) {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        assert!(self.payload.len() <= 125, "{self:?}");
        let (code, reason) = match self.payload.split_at_checked(2) {
            None => (1005, &[][..]),
            Some((code, reason)) => (u16::from_be_bytes(code.try_into().unwrap()), reason),
        };
        (code, String::from_utf8(reason.to_vec()).unwrap())
    }
}

/// A request; by default a WebSocket handshake with all that RFC 6455 section 4.1 requires.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) version: String,
    headers: Vec<(String, String)>,
}

impl Handshake {
    pub(crate) fn new() -> Self {
        Self::request("GET", "/")
            .with("Connection", "Upgrade")
            .with("Upgrade", "websocket")
            .with("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .with("Sec-WebSocket-Version", "13")
    }

    /// A request that is no handshake.
    pub(crate) fn request(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            version: "HTTP/1.1".to_owned(),
            headers: Vec::new(),
        }
        .with("Host", "relay.test")
    }

    pub(crate) fn dialect(self, dialect: Dialect) -> Self {
        match dialect.subprotocol() {
            None => self,
            Some(subprotocol) => self.with("Sec-WebSocket-Protocol", subprotocol),
        }
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(has, _)| has != name);
        self
    }

    /// Replaces the value of a header.
    pub(crate) fn but(self, name: &str, value: &str) -> Self {
        self.without(name).with(name, value)
    }

    pub(crate) fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    pub(crate) fn target(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }

    pub(crate) fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} {}\r\n", self.method, self.target, self.version);
        for (name, value) in &self.headers {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// A frame to send, with each part valid or not.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    first: u8,
    length: Length,
    mask: Option<[u8; 4]>,
    payload: Vec<u8>,
}

/// How a frame states its length.
#[derive(Clone, Copy, Debug)]
enum Length {
    Minimal,
    Bits16,
    Bits64,
    Claimed(u64),
}

impl Wire {
    /// A valid frame of a client: final, masked, with the shortest length field.
    pub(crate) fn new(opcode: u8, payload: impl AsRef<[u8]>) -> Self {
        Self {
            first: 0x80 | opcode,
            length: Length::Minimal,
            mask: Some([0x37, 0xFA, 0x21, 0x3D]),
            payload: payload.as_ref().to_vec(),
        }
    }

    pub(crate) fn text(payload: impl AsRef<[u8]>) -> Self {
        Self::new(TEXT, payload)
    }

    pub(crate) fn close(code: u16, reason: impl AsRef<[u8]>) -> Self {
        Self::new(CLOSE, [&code.to_be_bytes(), reason.as_ref()].concat())
    }

    /// Not the last frame of its message.
    pub(crate) fn more(mut self) -> Self {
        self.first &= 0x7F;
        self
    }

    /// With reserved bits: 4 is RSV1, 2 is RSV2, 1 is RSV3.
    pub(crate) fn reserved(mut self, bits: u8) -> Self {
        self.first |= bits << 4;
        self
    }

    pub(crate) fn unmasked(mut self) -> Self {
        self.mask = None;
        self
    }

    pub(crate) fn masked_by(mut self, mask: [u8; 4]) -> Self {
        self.mask = Some(mask);
        self
    }

    /// With a length of 16 bits, whether it needs them or not.
    pub(crate) fn length16(mut self) -> Self {
        self.length = Length::Bits16;
        self
    }

    /// With a length of 64 bits, whether it needs them or not.
    pub(crate) fn length64(mut self) -> Self {
        self.length = Length::Bits64;
        self
    }

    /// With a length of 64 bits that may differ from the payload's.
    pub(crate) fn claiming(mut self, length: u64) -> Self {
        self.length = Length::Claimed(length);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mask_bit = if self.mask.is_some() { 0x80 } else { 0 };
        let length = self.payload.len();
        let mut bytes = vec![self.first];
        match (self.length, length) {
            (Length::Minimal, 0..=125) => bytes.push(mask_bit + u8::try_from(length).unwrap()),
            (Length::Minimal, 126..=65535) | (Length::Bits16, _) => {
                bytes.push(mask_bit + 126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            (Length::Minimal | Length::Bits64, _) => {
                bytes.push(mask_bit + 127);
                bytes.extend(u64::try_from(length).unwrap().to_be_bytes());
            }
            (Length::Claimed(length), _) => {
                bytes.push(mask_bit + 127);
                bytes.extend(length.to_be_bytes());
            }
        }
        let mask = self.mask.unwrap_or_default();
        bytes.extend(self.mask.into_iter().flatten());
        let masked = self.payload.iter().zip(mask.iter().cycle());
        bytes.extend(masked.map(|(byte, mask)| byte ^ mask));
        bytes
    }
}

/// A message as one text frame.
pub(crate) fn message(to: u64, text: &str) -> Wire {
    Wire::text(json!({"recipient_id": to, "message": text}).to_string())
}

/// A message that asks for an outcome, as one text frame.
pub(crate) fn question(to: u64, text: &str, id: impl Into<Value>) -> Wire {
    let id: Value = id.into();
    Wire::text(json!({"recipient_id": to, "message": text, "id": id}).to_string())
}

/// The bytes of several frames.
pub(crate) fn joined<'a>(frames: impl IntoIterator<Item = &'a Wire>) -> Vec<u8> {
    frames.into_iter().flat_map(Wire::bytes).collect()
}
