//! A user with a WebSocket library, `tokio-websockets`: it answers pings and closes, refuses frames that a server must
//! not send, and shares no code with the relay.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_websockets::upgrade::Response;
use tokio_websockets::{ClientBuilder, Message, WebSocketStream};

use super::{Dialect, within};

/// One user.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) dialect: Dialect,
    pub(crate) socket: WebSocketStream<TcpStream>,
}

/// What a user receives.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    /// A text frame, parsed as JSON.
    Frame(Value),
    /// A close frame.
    Close(u16, String),
    /// The end of the connection, with the error if there was one.
    End(Option<String>),
}

impl Client {
    /// Joins, and reads the welcome if the dialect has one.
    pub(crate) async fn connect(addr: SocketAddr, dialect: Dialect) -> Self {
        let (socket, response) = within("the upgrade", Self::upgrade(addr, dialect))
            .await
            .expect("the upgrade succeeds");
        let id = response.headers().get("x-user-id");
        let id = id.expect("the 101 carries the id").to_str().unwrap();
        let mut client = Self {
            id: id.parse().unwrap(),
            dialect,
            socket,
        };
        if dialect == Dialect::V1 {
            let welcome = client.hear().await;
            assert_eq!(welcome["type"], "welcome", "{welcome}");
            assert_eq!(welcome["user_id"], client.id, "{welcome}");
        }
        client
    }

    /// Requests an upgrade, which may be refused.
    pub(crate) async fn upgrade(
        addr: SocketAddr,
        dialect: Dialect,
    ) -> Result<(WebSocketStream<TcpStream>, Response), tokio_websockets::Error> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let mut builder = ClientBuilder::new().uri(&format!("ws://{addr}/")).unwrap();
        if let Some(subprotocol) = dialect.subprotocol() {
            let name = "sec-websocket-protocol".parse().unwrap();
            builder = builder.add_header(name, subprotocol.parse().unwrap())?;
        }
        builder.connect_on(stream).await
    }

    /// Sends a message as a text frame.
    pub(crate) async fn say(&mut self, to: u64, text: &str) {
        self.send(&json!({"recipient_id": to, "message": text}))
            .await;
    }

    /// Sends a message that asks for an outcome.
    pub(crate) async fn ask(&mut self, to: u64, text: &str, id: impl Into<Value>) {
        let id: Value = id.into();
        self.send(&json!({"recipient_id": to, "message": text, "id": id}))
            .await;
    }

    pub(crate) async fn send(&mut self, frame: &Value) {
        self.send_text(&frame.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        let message = Message::text(text.to_owned());
        within("a write", self.socket.send(message)).await.unwrap();
    }

    pub(crate) async fn send_binary(&mut self, bytes: &[u8]) {
        let message = Message::binary(bytes.to_vec());
        within("a write", self.socket.send(message)).await.unwrap();
    }

    /// The next frame, close or end.
    pub(crate) async fn next(&mut self) -> Heard {
        loop {
            let message = within("a frame or the end", self.socket.next()).await;
            match message {
                None => return Heard::End(None),
                Some(Err(error)) => return Heard::End(Some(error.to_string())),
                Some(Ok(message)) => {
                    if let Some(heard) = heard(&message) {
                        return heard;
                    }
                }
            }
        }
    }

    /// The next frame, while the connection is open.
    pub(crate) async fn hear(&mut self) -> Value {
        match self.next().await {
            Heard::Frame(frame) => frame,
            end => panic!("user {} wanted a frame and got {end:?}", self.id),
        }
    }

    /// Checks that the next frame is this message.
    pub(crate) async fn hears(&mut self, sender: u64, text: &str) {
        let expected = self.dialect.message(sender, text);
        assert_eq!(self.hear().await, expected);
    }

    /// Checks that the next frame is this outcome.
    pub(crate) async fn learns(&mut self, id: impl Into<Value>, status: &str) {
        let expected = json!({"type": "outcome", "id": id.into(), "status": status});
        assert_eq!(self.hear().await, expected);
    }

    /// Checks that the next frame is an error with this code. Returns its detail.
    pub(crate) async fn errs(&mut self, code: &str) -> String {
        let frame = self.hear().await;
        assert_eq!(frame["type"], "error", "{frame}");
        assert_eq!(frame["code"], code, "{frame}");
        assert_eq!(frame.as_object().unwrap().len(), 3, "{frame}");
        frame["detail"].as_str().expect("a detail").to_owned()
    }

    /// Checks that only a close with this code follows, and the end. Returns its reason.
    pub(crate) async fn closed_with(&mut self, code: u16) -> String {
        let (frames, heard, reason) = self.rest().await;
        assert_eq!(frames, Vec::<Value>::new(), "before the close {heard}");
        assert_eq!(heard, code, "{reason}");
        reason
    }

    /// Reads to the end of the connection. Returns the frames before the close, its code and its reason.
    pub(crate) async fn rest(&mut self) -> (Vec<Value>, u16, String) {
        let mut frames = Vec::new();
        let (code, reason) = loop {
            match self.next().await {
                Heard::Frame(frame) => frames.push(frame),
                Heard::Close(code, reason) => break (code, reason),
                Heard::End(how) => panic!("user {} got no close frame: {how:?}", self.id),
            }
        };
        assert_eq!(self.next().await, Heard::End(None));
        (frames, code, reason)
    }

    /// Closes with 1000. Returns the frames that still come.
    pub(crate) async fn leave(mut self) -> Vec<Value> {
        let close = Message::close(Some(1000.try_into().unwrap()), "");
        within("a close", self.socket.send(close)).await.unwrap();
        let (frames, code, _) = self.rest().await;
        assert_eq!(code, 1000, "the reply to a close has its code");
        frames
    }
}

/// What a message of the library contains; none for a ping or a pong.
pub(crate) fn heard(message: &Message) -> Option<Heard> {
    if let Some((code, reason)) = message.as_close() {
        return Some(Heard::Close(code.into(), reason.to_owned()));
    }
    assert!(!message.is_binary(), "the relay sends no binary frame");
    let text = message.as_text()?;
    let frame = serde_json::from_str(text);
    Some(Heard::Frame(frame.expect("the relay sends JSON")))
}
