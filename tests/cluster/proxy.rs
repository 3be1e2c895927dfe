//! A TCP proxy between a node and NATS that imitates a network that is slow, silent or broken. It runs in the test
//! process, because network namespaces of the kernel need root.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// The condition of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Bytes pass.
    Normal,
    /// Bytes pass late, at a limited rate.
    Slow {
        delay: Duration,
        bytes_per_second: u64,
    },
    /// No byte passes, and connections stay open. The proxy passes the bytes on later.
    Silent,
    /// Connections are reset, and new ones are refused.
    Reset,
}

/// A proxy to one server.
#[derive(Debug)]
pub(crate) struct Proxy {
    addr: SocketAddr,
    condition: watch::Sender<Condition>,
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (condition, seen) = watch::channel(Condition::Normal);
        tokio::spawn(accept(listener, port, seen));
        Self { addr, condition }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.addr)
    }

    pub(crate) fn set(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }
}

async fn accept(listener: TcpListener, port: u16, condition: watch::Receiver<Condition>) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        if *condition.borrow() == Condition::Reset {
            continue;
        }
        let condition = condition.clone();
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else {
                return;
            };
            for stream in [&near, &far] {
                stream.set_nodelay(true).unwrap();
            }
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            let out = pass(near_read, far_write, condition.clone());
            let back = pass(far_read, near_write, condition.clone());
            tokio::select! {
                () = out => {}
                () = back => {}
                () = until(condition, |condition| condition == Condition::Reset) => {}
            }
        });
    }
}

/// Waits for a condition.
async fn until(mut condition: watch::Receiver<Condition>, is: impl Fn(Condition) -> bool) {
    // An error means that the proxy is dropped: the condition changes no more.
    if condition
        .wait_for(|condition| is(*condition))
        .await
        .is_err()
    {
        std::future::pending::<()>().await;
    }
}

/// Passes bytes on under the current condition, until one of the two connections has ended.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    condition: watch::Receiver<Condition>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        until(condition.clone(), |condition| {
            condition != Condition::Silent
        })
        .await;
        let now = *condition.borrow();
        if let Condition::Slow {
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
