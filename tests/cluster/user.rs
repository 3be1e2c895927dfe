//! A connected user, with a WebSocket library that shares no code with the relay.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_websockets::{ClientBuilder, Message, WebSocketStream};

use crate::within;

/// Whether a user connects without a subprotocol or with `switchboard.v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Bare,
    V1,
}

/// All frames that a user has received.
#[derive(Clone, Debug, Default)]
pub(crate) struct Received {
    /// Messages as frames, in order.
    pub(crate) frames: Vec<Value>,
    /// Senders and texts of messages, in order.
    pub(crate) messages: Vec<(u64, String)>,
    /// Outcomes by message id.
    pub(crate) outcomes: HashMap<u64, Vec<String>>,
    /// The welcome.
    pub(crate) welcome: Option<Value>,
    /// Notices of other types.
    pub(crate) notices: Vec<Value>,
    /// The code of the close frame, 1006 without one; None while the connection is open.
    pub(crate) closed: Option<u16>,
}

/// One user. A task reads its frames, unless [`reads`](Self::reads) has stopped it.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) id: u64,
    sink: SplitSink<WebSocketStream<TcpStream>, Message>,
    received: Arc<Mutex<Received>>,
    /// The number of received frames.
    changed: watch::Receiver<u64>,
    reads: watch::Sender<bool>,
    reader: JoinHandle<()>,
}

/// The reason why a connection was refused.
#[derive(Debug)]
pub(crate) struct Refused(#[allow(dead_code, reason = "shown by Debug")] pub(crate) String);

impl User {
    pub(crate) async fn connect(port: u16, dialect: Dialect) -> Self {
        let joined = within("the upgrade", Self::try_connect(port, dialect)).await;
        joined.expect("the upgrade succeeds")
    }

    /// Connects with the ticket of an earlier connection.
    pub(crate) async fn reconnect(port: u16, ticket: &str) -> Self {
        let joined = within("the upgrade", Self::try_reconnect(port, ticket)).await;
        joined.expect("the upgrade succeeds")
    }

    pub(crate) async fn try_reconnect(port: u16, ticket: &str) -> Result<Self, Refused> {
        let protocols = format!("switchboard.v1, ticket.{ticket}");
        Self::try_join(port, &protocols).await
    }

    pub(crate) async fn try_connect(port: u16, dialect: Dialect) -> Result<Self, Refused> {
        let protocols = match dialect {
            Dialect::Bare => "",
            Dialect::V1 => "switchboard.v1",
        };
        Self::try_join(port, protocols).await
    }

    async fn try_join(port: u16, protocols: &str) -> Result<Self, Refused> {
        let refused = |error: &dyn std::fmt::Display| Refused(error.to_string());
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        let stream = stream.map_err(|error| refused(&error))?;
        stream.set_nodelay(true).unwrap();
        let mut builder = ClientBuilder::new()
            .uri(&format!("ws://127.0.0.1:{port}/"))
            .unwrap();
        if !protocols.is_empty() {
            let name = "sec-websocket-protocol".parse().unwrap();
            let value = protocols.parse().unwrap();
            builder = builder.add_header(name, value).unwrap();
        }
        let upgraded = builder.connect_on(stream).await;
        let (socket, response) = upgraded.map_err(|error| refused(&error))?;
        let id = response.headers().get("x-user-id").unwrap();
        let id = id.to_str().unwrap().parse().unwrap();

        let (sink, mut stream) = socket.split();
        let received = Arc::new(Mutex::new(Received::default()));
        let (count, changed) = watch::channel(0);
        let (reads, mut may_read) = watch::channel(true);
        let log = received.clone();
        let reader = tokio::spawn(async move {
            loop {
                if may_read.wait_for(|may| *may).await.is_err() {
                    return;
                }
                let next = stream.next().await;
                let is_over = !matches!(next, Some(Ok(_)));
                {
                    let mut received = log.lock().unwrap();
                    match next {
                        Some(Ok(message)) => received.record(&message),
                        _ => {
                            received.closed.get_or_insert(1006);
                        }
                    }
                }
                count.send_modify(|count| *count += 1);
                if is_over {
                    return;
                }
            }
        });
        Ok(Self {
            id,
            sink,
            received,
            changed,
            reads,
            reader,
        })
    }

    /// Sends a message without an id.
    pub(crate) async fn say(&mut self, to: u64, text: &str) {
        self.send(json!({"recipient_id": to, "message": text}))
            .await;
    }

    /// Sends a message that asks for an outcome.
    pub(crate) async fn ask(&mut self, to: u64, text: &str, id: u64) {
        self.send(json!({"recipient_id": to, "message": text, "id": id}))
            .await;
    }

    pub(crate) async fn send(&mut self, frame: Value) {
        let sent = within("a write", self.try_send(frame)).await;
        sent.expect("the connection is open");
    }

    pub(crate) async fn try_send(&mut self, frame: Value) -> Result<(), tokio_websockets::Error> {
        self.sink.send(Message::text(frame.to_string())).await
    }

    /// Queues a message and does not flush it.
    pub(crate) async fn feed(&mut self, frame: Value) {
        let fed = self.sink.feed(Message::text(frame.to_string()));
        within("a write", fed)
            .await
            .expect("the connection is open");
    }

    pub(crate) async fn flush(&mut self) {
        within("a write", self.sink.flush()).await.unwrap();
    }

    /// Stops the reading of frames, or continues it.
    pub(crate) fn reads(&self, reads: bool) {
        self.reads.send_replace(reads);
    }

    /// The frames received so far.
    pub(crate) fn received(&self) -> Received {
        self.received.lock().unwrap().clone()
    }

    /// Calls `look` with the frames received so far.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Received) -> R) -> R {
        look(&self.received.lock().unwrap())
    }

    /// Waits until the received frames satisfy `is`.
    pub(crate) async fn until(&mut self, what: &str, is: impl Fn(&Received) -> bool) {
        let wait = async {
            loop {
                self.changed.borrow_and_update();
                if self.look(&is) || self.changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let waited = tokio::time::timeout(crate::PATIENCE, wait).await;
        assert!(
            waited.is_ok() && self.look(&is),
            "user {} did not receive {what}, but {:?}",
            self.id,
            self.summary()
        );
    }

    /// Waits for the welcome.
    pub(crate) async fn welcome(&mut self) -> Value {
        self.until("a welcome", |received| received.welcome.is_some())
            .await;
        self.look(|received| received.welcome.clone().unwrap())
    }

    /// Waits for the welcome, and returns its ticket.
    pub(crate) async fn ticket(&mut self) -> String {
        self.welcome().await["ticket"].as_str().unwrap().to_owned()
    }

    /// Waits for a message with this sender and text.
    pub(crate) async fn hears(&mut self, from: u64, text: &str) {
        let message = (from, text.to_owned());
        self.until(&format!("{message:?}"), |received| {
            received.messages.contains(&message)
        })
        .await;
    }

    /// Waits for the outcome of a message.
    pub(crate) async fn outcome(&mut self, id: u64) -> String {
        let is_known = |received: &Received| received.outcomes.contains_key(&id);
        self.until(&format!("the outcome of {id}"), is_known).await;
        self.look(|received| received.outcomes[&id].join("+"))
    }

    fn summary(&self) -> String {
        self.look(|received| {
            let last = received.messages.last();
            format!(
                "{} messages (the last {last:?}), {} outcomes, notices {:?}, closed {:?}",
                received.messages.len(),
                received.outcomes.len(),
                received.notices,
                received.closed
            )
        })
    }

    /// Closes the connection, and waits for its end.
    pub(crate) async fn leave(mut self) -> Received {
        // The send fails if the relay has closed already.
        let close = Message::close(Some(1000.try_into().unwrap()), "");
        let _closed = self.sink.send(close).await.is_err();
        self.until("the end", |received| received.closed.is_some())
            .await;
        self.received()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Received {
    fn record(&mut self, message: &Message) {
        if let Some((code, _)) = message.as_close() {
            self.closed = Some(code.into());
            return;
        }
        let Some(text) = message.as_text() else {
            return;
        };
        let frame: Value = serde_json::from_str(text).unwrap();
        match frame["type"].as_str() {
            None | Some("message") => {
                let sender = frame["sender_id"].as_u64().unwrap();
                let text = frame["message"].as_str().unwrap().to_owned();
                self.messages.push((sender, text));
                self.frames.push(frame);
            }
            Some("outcome") => {
                let id = frame["id"].as_u64().unwrap();
                let status = frame["status"].as_str().unwrap().to_owned();
                self.outcomes.entry(id).or_default().push(status);
            }
            Some("welcome") => self.welcome = Some(frame),
            Some(_) => self.notices.push(frame),
        }
    }
}
