//! Two users who behave: one writes at a steady rate, and the other takes the time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::server::Server;
use crate::wire::{join, message};

/// Messages a second.
pub(crate) const RATE: u32 = 400;

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// The pair.
pub(crate) struct Pair {
    sender: Box<dyn Wire>,
    reader: Box<dyn Wire>,
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
        let mut sender = connect(server, certificate).await.expect("a connection");
        let mut reader = connect(server, certificate).await.expect("a connection");
        join(&mut sender, fields)
            .await
            .expect("an answer")
            .expect("a place");
        let to = join(&mut reader, fields).await.expect("an answer");
        Self {
            sender,
            reader,
            to: to.expect("a place"),
        }
    }

    /// Talks for a while.
    pub(crate) async fn talk(&mut self, time: Duration) -> Talk {
        let Self { sender, reader, to } = self;
        let epoch = Instant::now();
        let count = time.as_millis() as usize * RATE as usize / 1000;
        let write = async {
            let mut ticks = interval(Duration::from_secs(1) / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for _ in 0..count {
                ticks.tick().await;
                let sent = format!("{:020}", epoch.elapsed().as_nanos());
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
                let now = epoch.elapsed().as_nanos();
                for sent in take_frames(&mut room) {
                    took.push((now - sent) as u64);
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
fn take_frames(room: &mut Vec<u8>) -> Vec<u128> {
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

async fn connect(
    server: &Server,
    certificate: Option<&CertificateDer<'static>>,
) -> io::Result<Box<dyn Wire>> {
    let stream = TcpStream::connect(server.users).await?;
    stream.set_nodelay(true)?;
    let Some(certificate) = certificate else {
        return Ok(Box::new(stream));
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
    Ok(Box::new(connector.connect(name, stream).await?))
}
