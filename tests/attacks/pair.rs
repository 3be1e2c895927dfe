//! Two users who behave: one writes at a steady rate, and the other says how long it took.
//!
//! A message's time is from before its write to when the relay has written it to the reader's socket, by
//! the kernel's stamp on the packet (`SO_TIMESTAMPNS`): what the reader then waits for a core, which it
//! shares with the attackers, is not the relay's.

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

/// Messages a second.
pub(crate) const RATE: u32 = 400;

/// Until the pair is in.
const PATIENCE: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(100);

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// The pair.
pub(crate) struct Pair {
    sender: Box<dyn Wire>,
    reader: Box<dyn Wire>,
    /// When what the reader read last had come to it.
    came: Arc<AtomicU64>,
    to: u64,
}

/// What it saw in a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Messages that arrived, a second.
    pub(crate) rate: f64,
}

impl Pair {
    /// Both join, over TLS where there is a certificate.
    pub(crate) async fn join(
        server: &Server,
        certificate: Option<&CertificateDer<'static>>,
        fields: &str,
    ) -> Self {
        let enter = async || {
            let begin = Instant::now();
            loop {
                // An attack may have used up the rate just now, of handshakes or of those of TLS.
                let is_early = begin.elapsed() < PATIENCE;
                let (mut stream, came) = match connect(server, certificate).await {
                    Ok(connected) => connected,
                    Err(error) if is_early && error.kind() == io::ErrorKind::ConnectionReset => {
                        sleep(MOMENT).await;
                        continue;
                    }
                    Err(error) => panic!("no connection: {error}"),
                };
                match join(&mut stream, fields).await.expect("an answer") {
                    Ok(id) => return (stream, came, id),
                    Err(503) if is_early => sleep(MOMENT).await,
                    Err(status) => panic!("refused with {status}"),
                }
            }
        };
        let (sender, _, _) = enter().await;
        let (reader, came, to) = enter().await;
        Self {
            sender,
            reader,
            came,
            to,
        }
    }

    /// Talks for a while.
    pub(crate) async fn talk(&mut self, time: Duration) -> Talk {
        let Self {
            sender,
            reader,
            came,
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
                    .expect("it stays");
            }
        };
        let read = async {
            let mut took = Vec::with_capacity(count);
            let mut room = Vec::new();
            while took.len() < count {
                assert_ne!(reader.read_buf(&mut room).await.expect("it stays"), 0);
                for sent in take_frames(&mut room) {
                    took.push(came.load(Relaxed).saturating_sub(sent));
                }
            }
            took
        };
        let ((), mut took) = tokio::join!(write, read);
        let rate = count as f64 / epoch.elapsed().as_secs_f64();
        took.sort_unstable();
        let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)] as f64 / 1e3;
        Talk {
            p50: at(50),
            p99: at(99),
            rate,
        }
    }
}

/// Takes whole frames off the front; when each was sent.
fn take_frames(room: &mut Vec<u8>) -> Vec<u64> {
    let mut found = Vec::new();
    while let [first, length, ..] = room[..] {
        let end = 2 + usize::from(length);
        if room.len() < end {
            break;
        }
        if first == 0x81 {
            let text = String::from_utf8_lossy(&room[..end]);
            let (_, sent) = text.rsplit_once(":\"").expect("a message");
            let sent = sent.trim_end_matches("\"}");
            found.push(sent.parse().expect("a time"));
        }
        room.drain(..end);
    }
    found
}

/// Of the clock that the kernel's stamps are of.
fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.expect("a clock that is set").as_nanos() as u64
}

/// A connection, and when what was read last had come to it.
async fn connect(
    server: &Server,
    certificate: Option<&CertificateDer<'static>>,
) -> io::Result<(Box<dyn Wire>, Arc<AtomicU64>)> {
    let stream = TcpStream::connect(server.users).await?;
    stream.set_nodelay(true)?;
    setsockopt(&stream, sockopt::ReceiveTimestampns, &true)?;
    let came = Arc::new(AtomicU64::new(0));
    let stream = Stamped {
        stream,
        came: came.clone(),
    };
    let Some(certificate) = certificate else {
        return Ok((Box::new(stream), came));
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
    Ok((Box::new(connector.connect(name, stream).await?), came))
}

/// A stream that keeps the stamp of the last packet that was read from.
struct Stamped {
    stream: TcpStream,
    came: Arc<AtomicU64>,
}

impl Stamped {
    fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        let mut control = cmsg_space!(TimeSpec);
        let mut parts = [IoSliceMut::new(room)];
        let socket = self.stream.as_raw_fd();
        let found = recvmsg::<()>(socket, &mut parts, Some(&mut control), MsgFlags::empty())?;
        for message in found.cmsgs()? {
            if let ControlMessageOwned::ScmTimestampns(stamp) = message {
                let stamp = SystemTime::UNIX_EPOCH + Duration::from(stamp);
                self.came.store(nanos(stamp), Relaxed);
            }
        }
        Ok(found.bytes)
    }
}

impl AsyncRead for Stamped {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let receive = || self.receive(room.initialize_unfilled());
            match self.stream.try_io(Interest::READABLE, receive) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => {
                    room.advance(received?);
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
