//! The PROXY protocol, versions 1 and 2: the first bytes of a proxy on a connection give the client's address. The
//! header is read off the connection before anything else, and not one byte more.

use std::io;
use std::net::IpAddr;

use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::net::TcpStream;

/// The longest header that is accepted, bytes. The addresses take at most 232, and the extensions that proxies add
/// are far below the rest.
const HEADER_BYTES_MAX: usize = 4096;

/// The longest header of version 1 with its end of line, bytes (section 2.1 of the specification).
const VERSION_1_BYTES_MAX: usize = 107;

/// The header of a connection that a proxy has opened for itself.
pub(super) const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

/// The first bytes of version 1, and those of version 2.
const SIGNATURES: [&[u8]; 2] = [b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"];

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole header.
    Header {
        /// The client's address. None if the proxy opened the connection for itself.
        client_addr: Option<IpAddr>,
        /// The length of the header, bytes.
        length: usize,
    },
    /// The beginning of a header.
    Incomplete,
}

/// Reads the header at the front of `bytes`.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Error> {
    let config = ParseConfig {
        include_tlvs: false,
        ..ParseConfig::default()
    };
    // The library does not check the byte behind the first word.
    if !may_be_header(bytes) {
        return Err(Error::Invalid);
    }
    let bytes_max = if bytes.starts_with(SIGNATURES[0]) {
        VERSION_1_BYTES_MAX
    } else {
        HEADER_BYTES_MAX
    };
    match ProxyHeader::parse(bytes, config) {
        // The library accepts an end of line anywhere. Without this limit, a long header would be valid or not
        // depending on how many of its bytes arrive at once.
        Ok((_, length)) if length > bytes_max => Err(Error::Invalid),
        Ok((header, length)) => {
            let address = header.proxied_address();
            let client_addr = address.map(|address| address.source.ip().to_canonical());
            Ok(Parsed::Header {
                client_addr,
                length,
            })
        }
        Err(Error::BufferTooShort) if bytes.len() < HEADER_BYTES_MAX => Ok(Parsed::Incomplete),
        Err(Error::BufferTooShort) => Err(Error::Invalid),
        Err(error) => Err(error),
    }
}

/// Whether these bytes may be the beginning of a header.
pub(crate) fn may_be_header(bytes: &[u8]) -> bool {
    SIGNATURES.iter().any(|signature| {
        let compared = signature.len().min(bytes.len());
        signature[..compared] == bytes[..compared]
    })
}

/// Reads the header off a connection. Returns the client's address, or none if the proxy opened the connection
/// for itself.
pub(crate) async fn read(stream: &TcpStream) -> io::Result<Option<IpAddr>> {
    let mut header = vec![0; HEADER_BYTES_MAX];
    let mut have = 0;
    loop {
        let count = stream.peek(&mut header[have..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let parsed = parse(&header[..have + count])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // Reads the part that belongs to the header, because the next peek would return the same bytes at once.
        let wanted = match parsed {
            Parsed::Header { length, .. } => length - have,
            Parsed::Incomplete => count,
        };
        let mut taken = 0;
        while taken < wanted {
            stream.readable().await?;
            match stream.try_read(&mut header[have + taken..have + wanted]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => taken += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        have += wanted;
        if let Parsed::Header { client_addr, .. } = parsed {
            return Ok(client_addr);
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_header::ProxiedAddress;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn version_2(source: &str) -> Vec<u8> {
        let address = |text: &str| format!("{text}:4711").parse().unwrap();
        let destination = if source.starts_with('[') {
            "[::2]"
        } else {
            "10.0.0.2"
        };
        let addresses = ProxiedAddress::stream(address(source), address(destination));
        let mut bytes = Vec::new();
        ProxyHeader::with_address(addresses)
            .encode_v2(&mut bytes)
            .unwrap();
        bytes
    }

    #[test]
    fn a_header_gives_the_client_and_its_own_length() {
        let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
        let version_1 = |rest: &str| format!("PROXY {rest}\r\n").into_bytes();
        for (header, expected) in [
            (version_1("TCP4 1.1.1.1 10.0.0.1 4711 80"), Some("1.1.1.1")),
            (
                version_1("TCP6 2001:db8::1 ::1 4711 80"),
                Some("2001:db8::1"),
            ),
            (
                version_1("TCP6 ::ffff:1.1.1.1 ::1 4711 80"),
                Some("1.1.1.1"),
            ),
            (version_1("UNKNOWN"), None),
            (version_1("UNKNOWN ffff::1 ::1 1 2"), None),
            (version_2("1.1.1.1"), Some("1.1.1.1")),
            (version_2("[2001:db8::1]"), Some("2001:db8::1")),
            (local.to_vec(), None),
        ] {
            let client_addr = expected.map(|address| address.parse().unwrap());
            let mut bytes = header.clone();
            bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let found = parse(&bytes).unwrap();
            assert_eq!(
                found,
                Parsed::Header {
                    client_addr,
                    length: header.len(),
                },
                "{header:?}"
            );
            for end in 1..header.len() {
                let found = parse(&header[..end]).unwrap();
                assert_eq!(found, Parsed::Incomplete, "{end} of {header:?}");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_header_are_refused_at_once() {
        let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        let long_and_whole = [b"PROXY UNKNOWN ".as_slice(), &[b'1'; 92], b"\r\n"].concat();
        let endless = [SIGNATURES[1], &[0x21, 0x11, 0xff, 0xff], &[0; 5000]].concat();
        for bytes in [
            b"G".as_slice(),
            b"GET / HTTP/1.1\r\n",
            b"PROXYTCP4",
            b"PROXY\tUNKNOWN\r\n",
            b"PROXY TCP4 1.1.1.1 10.0.0.1 4711 80\r ",
            b"PROXY TCP9 1.1.1.1 10.0.0.1 4711 80\r\n",
            b"PROXY TCP4 999.1.1.1 10.0.0.1 4711 80\r\n",
            b"\r\nGET",
            &long,
            &long_and_whole,
            &endless,
        ] {
            let found = parse(bytes);
            assert!(found.is_err(), "{found:?} of {bytes:?}");
        }
    }

    #[tokio::test]
    async fn no_byte_behind_the_header_is_read() {
        for header in [
            b"PROXY TCP4 1.1.1.1 10.0.0.1 4711 80\r\n".to_vec(),
            version_2("1.1.1.1"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut proxy = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            proxy.set_nodelay(true).unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            // In two parts, the second with the bytes behind the header.
            proxy.write_all(&header[..9]).await.unwrap();
            let (client_addr, ()) = tokio::join!(read(&stream), async {
                tokio::task::yield_now().await;
                proxy.write_all(&header[9..]).await.unwrap();
                proxy.write_all(b"GET").await.unwrap();
            });
            assert_eq!(client_addr.unwrap(), Some("1.1.1.1".parse().unwrap()));
            drop(proxy);
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"GET");
        }
    }
}
