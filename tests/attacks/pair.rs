//! Two well-behaved users: one writes at a steady rate, and the other measures the latency.
//!
//! The latency of a message runs from before its write until the relay has written it to the reader's socket, by the
//! kernel's timestamp on the packet (`SO_TIMESTAMPNS`). The time that the reader then waits for its core is not part of
//! it, because the reader shares the core with the attackers.

use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::server::Server;
use crate::wire::{join, message};

/// Messages per second.
pub(crate) const RATE: u32 = 400;

/// The time limit for the pair to join.
const PATIENCE: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(100);

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// The pair.
pub(crate) struct Pair {
    sender: Box<dyn Wire>,
    reader: Box<dyn Wire>,
    /// The arrival time of the last packet that the reader has read, in nanoseconds.
    arrived: Arc<AtomicU64>,
    to: u64,
}

/// The latencies and the rate of a period. Latencies are in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Messages that arrived, per second.
    pub(crate) rate: f64,
}

impl Pair {
    /// Connects both users, over TLS if there is a certificate.
    pub(crate) async fn join(
        server: &Server,
        certificate: Option<&CertificateDer<'static>>,
        fields: &str,
    ) -> Self {
        let enter = async || {
            let begin = Instant::now();
            loop {
                // An attack may have just used up the rate of handshakes or of TLS handshakes.
                let is_early = begin.elapsed() < PATIENCE;
                let (mut stream, arrived) = match connect(server, certificate).await {
                    Ok(connected) => connected,
                    Err(error) if is_early && error.kind() == io::ErrorKind::ConnectionReset => {
                        sleep(MOMENT).await;
                        continue;
                    }
                    Err(error) => panic!("the pair could not connect: {error}"),
                };
                match join(&mut stream, fields).await.expect("the relay answers") {
                    Ok(id) => return (stream, arrived, id),
                    Err(503) if is_early => sleep(MOMENT).await,
                    Err(status) => panic!("the relay refused the pair with {status}"),
                }
            }
        };
        let (sender, _, _) = enter().await;
        let (reader, arrived, to) = enter().await;
        Self {
            sender,
            reader,
            arrived,
            to,
        }
    }

    /// Exchanges messages for this time.
    pub(crate) async fn talk(&mut self, time: Duration) -> Talk {
        let Self {
            sender,
            reader,
            arrived,
            to,
        } = self;
        let epoch = Instant::now();
        let count = time.as_millis() as usize * RATE as usize / 1000;
        let write = async {
            let mut ticks = interval(Duration::from_secs(1) / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for _ in 0..count {
                ticks.tick().await;
                let sent = format!("{:020}", nanos(SystemTime::now()));
                sender
                    .write_all(&message(*to, &sent))
                    .await
                    .expect("the pair stays connected");
            }
        };
        let read = async {
            let mut latencies = Vec::with_capacity(count);
            let mut buffer = Vec::new();
            while latencies.len() < count {
                assert_ne!(
                    reader
                        .read_buf(&mut buffer)
                        .await
                        .expect("the pair stays connected"),
                    0
                );
                for sent in take_frames(&mut buffer) {
                    latencies.push(arrived.load(Relaxed).saturating_sub(sent));
                }
            }
            latencies
        };
        let ((), mut latencies) = tokio::join!(write, read);
        let rate = count as f64 / epoch.elapsed().as_secs_f64();
        latencies.sort_unstable();
        let at = |share: usize| {
            latencies[(latencies.len() * share / 100).min(latencies.len() - 1)] as f64 / 1e3
        };
        Talk {
            p50: at(50),
            p99: at(99),
            rate,
        }
    }
}

/// Removes whole frames from the buffer. Returns the time at which each message was sent, in nanoseconds.
fn take_frames(buffer: &mut Vec<u8>) -> Vec<u64> {
    let mut found = Vec::new();
    while let [first, length, ..] = buffer[..] {
        let end = 2 + usize::from(length);
        if buffer.len() < end {
            break;
        }
        if first == 0x81 {
            let text = String::from_utf8_lossy(&buffer[..end]);
            let (_, sent) = text.rsplit_once(":\"").expect("the frame is a message");
            let sent = sent.trim_end_matches("\"}");
            found.push(sent.parse().expect("the text is a time"));
        }
        buffer.drain(..end);
    }
    found
}

/// Nanoseconds of the clock that the kernel uses for its timestamps.
fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.expect("the clock is after 1970").as_nanos() as u64
}

/// Connects to the relay. Returns the connection, and the arrival time of the last packet that was read from it.
async fn connect(
    server: &Server,
    certificate: Option<&CertificateDer<'static>>,
) -> io::Result<(Box<dyn Wire>, Arc<AtomicU64>)> {
    let stream = TcpStream::connect(server.users).await?;
    stream.set_nodelay(true)?;
    setsockopt(&stream, sockopt::ReceiveTimestampns, &true)?;
    let arrived = Arc::new(AtomicU64::new(0));
    let stream = Stamped {
        stream,
        arrived: arrived.clone(),
    };
    let Some(certificate) = certificate else {
        return Ok((Box::new(stream), arrived));
    };
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).map_err(io::Error::other)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::new(config));
    Ok((Box::new(connector.connect(name, stream).await?), arrived))
}

/// A stream that stores the timestamp of the last packet that was read.
struct Stamped {
    stream: TcpStream,
    arrived: Arc<AtomicU64>,
}

impl Stamped {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut control = cmsg_space!(TimeSpec);
        let mut parts = [IoSliceMut::new(buffer)];
        let socket = self.stream.as_raw_fd();
        let found = recvmsg::<()>(socket, &mut parts, Some(&mut control), MsgFlags::empty())?;
        for message in found.cmsgs()? {
            if let ControlMessageOwned::ScmTimestampns(stamp) = message {
                let stamp = SystemTime::UNIX_EPOCH + Duration::from(stamp);
                self.arrived.store(nanos(stamp), Relaxed);
            }
        }
        Ok(found.bytes)
    }
}

impl AsyncRead for Stamped {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let receive = || self.receive(buffer.initialize_unfilled());
            match self.stream.try_io(Interest::READABLE, receive) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => {
                    buffer.advance(received?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Stamped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
