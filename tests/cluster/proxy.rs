//! A network between a node and NATS that can fail: cut, silent, or slow. A process of its own could do
//! no more, and a namespace of the kernel needs root.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// How the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Bytes pass.
    Fine,
    /// Bytes pass late, and not many at a time.
    Slow {
        delay: Duration,
        bytes_per_second: u64,
    },
    /// Nothing passes, and nobody is told: what is sent is kept for later.
    Silent,
    /// Connections are reset, and new ones are refused.
    Cut,
}

/// A way to one server.
#[derive(Debug)]
pub(crate) struct Proxy {
    addr: SocketAddr,
    weather: watch::Sender<Weather>,
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (weather, seen) = watch::channel(Weather::Fine);
        tokio::spawn(accept(listener, port, seen));
        Self { addr, weather }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.addr)
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn accept(listener: TcpListener, port: u16, weather: watch::Receiver<Weather>) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        if *weather.borrow() == Weather::Cut {
            continue;
        }
        let weather = weather.clone();
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else {
                return;
            };
            for stream in [&near, &far] {
                stream.set_nodelay(true).unwrap();
            }
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            let out = pass(near_read, far_write, weather.clone());
            let back = pass(far_read, near_write, weather.clone());
            tokio::select! {
                () = out => {}
                () = back => {}
                () = until(weather, |weather| weather == Weather::Cut) => {}
            }
        });
    }
}

/// Waits for a kind of weather.
async fn until(mut weather: watch::Receiver<Weather>, is: impl Fn(Weather) -> bool) {
    // Fails when the proxy is gone, and then the weather stays as it is.
    if weather.wait_for(|weather| is(*weather)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Passes bytes on, as the weather is, until one of the two has ended.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, weather: watch::Receiver<Weather>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        until(weather.clone(), |weather| weather != Weather::Silent).await;
        let now = *weather.borrow();
        if let Weather::Slow {
            delay,
            bytes_per_second,
        } = now
        {
            let takes = Duration::from_micros(count as u64 * 1_000_000 / bytes_per_second);
            sleep(delay + takes).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
