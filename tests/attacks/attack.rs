//! The attacks. Each one runs until its process is killed.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::wire::{
    attacker_address, connect, connect_narrow, frame, join, message, reset, upgrade,
};

const MOMENT: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

/// What each task of an attack needs.
#[derive(Clone, Debug)]
struct Attacker {
    target: SocketAddr,
    /// The listener for operators.
    admin: SocketAddr,
    /// Where the relay's certificate is, if it has one.
    folder: PathBuf,
    /// The number of connections of this process. It selects the address of the next connection.
    count: Arc<AtomicU64>,
    /// Limits the simultaneous upgrades, because otherwise the tasks delay each other.
    upgrades: Arc<Semaphore>,
    /// A `ClientHello`, made once and sent many times.
    hello: Arc<[u8]>,
}

impl Attacker {
    fn address(&self) -> IpAddr {
        attacker_address(self.count.fetch_add(1, Relaxed))
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        connect(self.address(), self.target).await
    }

    async fn join(&self) -> io::Result<TcpStream> {
        let _permit = self.upgrades.acquire().await.map_err(io::Error::other)?;
        let mut stream = self.connect().await?;
        match join(&mut stream, "").await? {
            Ok(_) => Ok(stream),
            Err(status) => {
                reset(stream);
                Err(io::Error::other(format!("status {status}")))
            }
        }
    }
}

/// Runs the attack with this name.
pub(crate) async fn run(name: &str, target: SocketAddr, admin: SocketAddr, folder: PathBuf) -> ! {
    let attacker = Attacker {
        target,
        admin,
        folder,
        count: Arc::new(AtomicU64::new(u64::from(std::process::id()) * 7919)),
        upgrades: Arc::new(Semaphore::new(100)),
        hello: client_hello().into(),
    };
    let (tasks, work): (usize, fn(Attacker) -> Work) = match name {
        "heads" => (2000, |attacker| Box::pin(slow_head(attacker))),
        "tls" => (2000, |attacker| Box::pin(slow_tls(attacker))),
        "hellos" => (32, |attacker| Box::pin(hello(attacker))),
        "frames" => (1000, |attacker| Box::pin(slow_frame(attacker))),
        "silent" => (7500, |attacker| Box::pin(silent(attacker))),
        "silent-everywhere" => (7500, |attacker| Box::pin(silent_everywhere(attacker))),
        "idle" => (7500, |attacker| Box::pin(idle(attacker))),
        "churn" => (32, |attacker| Box::pin(churn(attacker))),
        "pings" => (8, |attacker| Box::pin(flood(attacker, 0x89, 0x89))),
        "fragments" => (8, |attacker| Box::pin(flood(attacker, 0x01, 0x00))),
        "giant" => (32, |attacker| {
            let head = [
                &[0x81, 0xff],
                (1_u64 << 40).to_be_bytes().as_slice(),
                &[0; 4],
            ]
            .concat();
            Box::pin(invalid(attacker, head))
        }),
        "unfinished" => (1000, |attacker| Box::pin(unfinished(attacker))),
        "reserved" => (32, |attacker| {
            Box::pin(invalid(attacker, frame(0xc1, b"\x2a\xce\xcf")))
        }),
        "unread" => (1, |attacker| Box::pin(unread(attacker))),
        "slow" => (100, |attacker| {
            let phase = MOMENT * (attacker.count.load(Relaxed) % 100) as u32 / 100;
            Box::pin(slow_reader(attacker, phase))
        }),
        "slow-at-once" => (100, |attacker| {
            Box::pin(slow_reader(attacker, Duration::ZERO))
        }),
        "crowd" => (100, |attacker| Box::pin(crowd(attacker))),
        "records" => (8, |attacker| Box::pin(records(attacker))),
        "resets" => (32, |attacker| Box::pin(resets(attacker))),
        "proxies" => (32, |attacker| Box::pin(forged(attacker))),
        "tokens" => (32, |attacker| Box::pin(tokens(attacker, "x".to_owned()))),
        "kids" => (32, |attacker| {
            // The header is {"alg":"RS256","kid":"unknown"}; the relay never reads the payload.
            let token = "eyJhbGciOiJSUzI1NiIsImtpZCI6InVua25vd24ifQ.eyJleHAiOjk5OTk5OTk5OTl9.x";
            Box::pin(tokens(attacker, token.to_owned()))
        }),
        _ => panic!("no attack is called {name}"),
    };
    for number in 0..tasks {
        let attacker = attacker.clone();
        tokio::spawn(async move {
            loop {
                // A task that fails starts again; the error does not matter.
                if let Err(_refused) = work(attacker.clone()).await {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        });
        // The tasks start in groups of 50, so that they do not all connect at once.
        if number % 50 == 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }
    std::future::pending().await
}

/// The first bytes of a TLS client.
fn client_hello() -> Vec<u8> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = "localhost".try_into().expect("localhost is a valid name");
    let client = ClientConnection::new(Arc::new(config), name);
    let mut hello = Vec::new();
    let written = client
        .expect("the configuration is complete")
        .write_tls(&mut hello);
    written.expect("a Vec accepts every write");
    hello
}

type Work = std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Sends one byte each 100 ms, until the connection ends.
async fn drip(stream: &mut TcpStream, bytes: impl Iterator<Item = u8>) -> io::Result<()> {
    for byte in bytes {
        sleep(MOMENT).await;
        stream.write_u8(byte).await?;
    }
    Ok(())
}

/// Reads until the connection ends.
async fn read_to_end(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

async fn slow_head(attacker: Attacker) -> io::Result<()> {
    let mut stream = attacker.connect().await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: ").await?;
    let _ended = drip(&mut stream, std::iter::repeat(b'a')).await;
    sleep(SECOND).await;
    Ok(())
}

async fn slow_tls(attacker: Attacker) -> io::Result<()> {
    let mut stream = attacker.connect().await?;
    // The header of a record with a ClientHello of 508 bytes.
    stream
        .write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])
        .await?;
    let _ended = drip(&mut stream, std::iter::repeat(7)).await;
    sleep(SECOND).await;
    Ok(())
}

/// Sends a hello, waits for the answer or the refusal, and resets the connection.
async fn hello(attacker: Attacker) -> io::Result<()> {
    let mut stream = attacker.connect().await?;
    stream.write_all(&attacker.hello).await?;
    // The task continues after a refusal, too.
    let _answer = stream.read(&mut [0; 4096]).await;
    reset(stream);
    Ok(())
}

async fn slow_frame(attacker: Attacker) -> io::Result<()> {
    let mut stream = attacker.join().await?;
    let frame = frame(0x81, &vec![b' '; 60_000]);
    drip(&mut stream, frame.into_iter()).await
}

async fn silent(attacker: Attacker) -> io::Result<()> {
    let mut stream = attacker.connect().await?;
    let _ended = read_to_end(&mut stream).await;
    sleep(SECOND).await;
    Ok(())
}

/// Connects to a listener of the relay and stays silent: by IPv4, by IPv6, or to the listener for operators.
async fn silent_everywhere(attacker: Attacker) -> io::Result<()> {
    let mut stream = match attacker.count.fetch_add(1, Relaxed) % 3 {
        0 => attacker.connect().await?,
        1 => TcpStream::connect((Ipv6Addr::LOCALHOST, attacker.target.port())).await?,
        _ => connect(attacker.address(), attacker.admin).await?,
    };
    let _ended = read_to_end(&mut stream).await;
    sleep(SECOND).await;
    Ok(())
}

async fn idle(attacker: Attacker) -> io::Result<()> {
    let mut stream = attacker.join().await?;
    read_to_end(&mut stream).await
}

async fn churn(attacker: Attacker) -> io::Result<()> {
    let mut stream = attacker.join().await?;
    stream.write_all(&frame(0x88, &[3, 232])).await?;
    read_to_end(&mut stream).await
}

/// Sends the frame `first`, and then only the frame `other`, at full speed. Reads nothing.
async fn flood(attacker: Attacker, first: u8, other: u8) -> io::Result<()> {
    let mut stream = attacker.join().await?;
    let payload = if first == 0x89 {
        &[b'x'; 125][..]
    } else {
        b" "
    };
    stream.write_all(&frame(first, payload)).await?;
    let more = frame(other, payload).repeat(500);
    loop {
        stream.write_all(&more).await?;
    }
}

/// Sends invalid bytes, and answers the close.
async fn invalid(attacker: Attacker, bytes: Vec<u8>) -> io::Result<()> {
    let mut stream = attacker.join().await?;
    stream.write_all(&bytes).await?;
    let mut close = [0; 4];
    stream.read_exact(&mut close).await?;
    stream.write_all(&frame(0x88, &close[2..])).await?;
    read_to_end(&mut stream).await
}

/// Sends the beginning of a message of 65,000 bytes, and no more.
async fn unfinished(attacker: Attacker) -> io::Result<()> {
    let mut stream = attacker.join().await?;
    stream
        .write_all(&frame(0x81, &vec![b' '; 65_000])[..100])
        .await?;
    read_to_end(&mut stream).await
}

/// A user that does not read, and a thousand users that write to it.
async fn unread(attacker: Attacker) -> io::Result<()> {
    let mut stream = connect_narrow(attacker.address(), attacker.target).await?;
    let id = join(&mut stream, "").await?;
    let id = id.map_err(|_| io::ErrorKind::ConnectionRefused)?;
    let text = message(id, &"x".repeat(1000));
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let (attacker, text) = (attacker.clone(), text.clone());
        writers.spawn(async move {
            let mut stream = attacker.join().await?;
            loop {
                stream.write_all(&text).await?;
                sleep(MOMENT).await;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        let _refused: io::Result<()> = ended.map_err(io::Error::other)?;
    }
    drop(stream);
    Ok(())
}

/// A user that reads one byte per second. Another connection writes to it, after `phase`.
async fn slow_reader(attacker: Attacker, phase: Duration) -> io::Result<()> {
    let mut reader = connect_narrow(attacker.address(), attacker.target).await?;
    let id = join(&mut reader, "").await?;
    let id = id.map_err(|_| io::ErrorKind::ConnectionRefused)?;
    let mut writer = attacker.join().await?;
    let text = message(id, &"x".repeat(10_000));
    let write = async {
        sleep(phase).await;
        loop {
            writer.write_all(&text).await?;
            sleep(MOMENT).await;
        }
    };
    let read = async {
        loop {
            reader.read_u8().await?;
            sleep(SECOND).await;
        }
    };
    tokio::select! {
        ended = write => ended,
        ended = read => ended,
    }
}

/// Users that read nothing, and one that writes to all of them: 80 KB to each, of which the kernel takes a part, and
/// then a kilobyte a second.
async fn crowd(attacker: Attacker) -> io::Result<()> {
    let mut writer = attacker.join().await?;
    let mut readers = Vec::new();
    for _ in 0..44 {
        let _permit = attacker
            .upgrades
            .acquire()
            .await
            .map_err(io::Error::other)?;
        let mut reader = connect_narrow(attacker.address(), attacker.target).await?;
        let id = join(&mut reader, "").await?;
        readers.push((reader, id.map_err(|_| io::ErrorKind::ConnectionRefused)?));
    }
    for bytes in std::iter::repeat_n(10_000, 8).chain(std::iter::repeat(1_000)) {
        let text = "x".repeat(bytes);
        for (_, id) in &readers {
            writer.write_all(&message(*id, &text)).await?;
        }
        sleep(SECOND).await;
    }
    Ok(())
}

/// Sends long messages in TLS records of one byte, as fast as they can be encrypted.
async fn records(attacker: Attacker) -> io::Result<()> {
    let pem = std::fs::read(attacker.folder.join("cert.pem"))?;
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(&pem).map_err(io::Error::other)?;
    roots.add(certificate).map_err(io::Error::other)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().map_err(io::Error::other)?;
    let tls = TlsConnector::from(Arc::new(config));
    let mut stream = tls.connect(name, attacker.connect().await?).await?;
    let id = join(&mut stream, "").await?;
    id.map_err(|_| io::ErrorKind::ConnectionRefused)?;
    let nobody = u64::from(u32::MAX);
    let text = message(nobody, &"x".repeat(60_000));
    let (tcp, tls) = stream.get_mut();
    loop {
        for piece in text.chunks(1000) {
            let mut records = Vec::new();
            for byte in piece {
                tls.writer().write_all(&[*byte])?;
                tls.write_tls(&mut records)?;
            }
            tcp.write_all(&records).await?;
        }
    }
}

/// Resets connections after the first byte, the second, and so on, of an upgrade request, a message and a close.
async fn resets(attacker: Attacker) -> io::Result<()> {
    let all = [upgrade(""), message(1, "x"), frame(0x88, &[3, 232])].concat();
    for end in 0..all.len() {
        let mut stream = attacker.connect().await?;
        stream.write_all(&all[..end]).await?;
        if end % 16 == 0 {
            // Gives the relay time to read the bytes.
            sleep(Duration::from_millis(1)).await;
        }
        reset(stream);
    }
    Ok(())
}

/// Forges another client address for each connection. All connections come from one address.
async fn forged(attacker: Attacker) -> io::Result<()> {
    let number = attacker.count.fetch_add(1, Relaxed);
    let [a, b, c, ..] = number.to_le_bytes();
    let mut stream = connect(attacker_address(0), attacker.target).await?;
    if number.is_multiple_of(2) {
        let fields =
            format!("X-Forwarded-For: 10.{a}.{b}.{c}\r\nForwarded: for=10.{a}.{b}.{c}\r\n");
        if join(&mut stream, &fields).await?.is_ok() {
            return read_to_end(&mut stream).await;
        }
    } else {
        let header = format!("PROXY TCP4 10.{a}.{b}.{c} 10.0.0.1 4711 80\r\n");
        stream.write_all(header.as_bytes()).await?;
        join(&mut stream, "").await?.ok();
    }
    reset(stream);
    Ok(())
}

/// Sends another token with each connection, from one address.
async fn tokens(attacker: Attacker, token: String) -> io::Result<()> {
    let number = attacker.count.fetch_add(1, Relaxed);
    let mut stream = connect(attacker_address(0), attacker.target).await?;
    let fields = format!("Authorization: Bearer {token}{number}\r\n");
    join(&mut stream, &fields).await?.ok();
    reset(stream);
    Ok(())
}
