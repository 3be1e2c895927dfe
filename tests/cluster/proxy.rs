//! A TCP proxy between a node and NATS that imitates a network that is slow, silent or broken. It runs in the test
//! process, because network namespaces of the kernel need root.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

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
    // What is read waits for its time in a queue, so that a delay takes no room from what comes behind it.
    let (queue, mut queued) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let watched = condition.clone();
    let reading = async move {
        let mut buffer = vec![0; 16 * 1024];
        let mut last = Instant::now();
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let mut due = Instant::now();
            let now = *condition.borrow();
            if let Condition::Slow {
                delay,
                bytes_per_second,
            } = now
            {
                let takes = Duration::from_micros(count as u64 * 1_000_000 / bytes_per_second);
                last = last.max(due) + takes;
                due = last + delay;
            }
            if queue.send((due, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = queued.recv().await {
            sleep_until(due).await;
            let is_passing = |condition| condition != Condition::Silent;
            until(watched.clone(), is_passing).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let mut writing = std::pin::pin!(writing);
    tokio::select! {
        () = reading => writing.await,
        () = &mut writing => {}
    }
}
