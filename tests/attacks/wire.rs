//! Upgrade requests and frames as bytes, for the attackers and the pair.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// An address of the loopback network that the pair does not use.
pub(crate) fn attacker_address(number: u64) -> IpAddr {
    let [low, high, ..] = (number % 60_000 + 2).to_le_bytes();
    Ipv4Addr::new(127, 1, high, low).into()
}

/// Connects from the address `from`.
pub(crate) async fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects with a receive buffer of 4096 bytes, which is full soon if the peer does not read.
pub(crate) async fn connect_narrow(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// An upgrade request with additional header fields.
pub(crate) fn upgrade(fields: &str) -> Vec<u8> {
    format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
    .into_bytes()
}

/// Requests an upgrade. Returns the id of the user, or the status of the refusal.
pub(crate) async fn join(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    fields: &str,
) -> io::Result<Result<u64, u16>> {
    stream.write_all(&upgrade(fields)).await?;
    let mut head = Vec::new();
    // The relay sends a bare user no byte after the head.
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 || head.len() > 4096 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if head.windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let id = head.split_once("x-user-id: ").and_then(|(_, rest)| {
        let (id, _) = rest.split_once('\r')?;
        id.parse().ok()
    });
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(id.ok_or(status.unwrap_or(0)))
}

/// A frame with a mask of zeros.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match u16::try_from(payload.len()).expect("the payload is shorter than 64 KiB") {
        long @ 126.. => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&long.to_be_bytes());
        }
        short => bytes.push(0x80 | short.to_le_bytes()[0]),
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// A message as a text frame.
pub(crate) fn message(to: u64, text: &str) -> Vec<u8> {
    let json = format!("{{\"recipient_id\":{to},\"message\":\"{text}\"}}");
    frame(0x81, json.as_bytes())
}

/// Closes a connection with a reset.
pub(crate) fn reset(stream: TcpStream) {
    let lingers = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    lingers.expect("a TCP socket has this option");
    drop(stream);
}
