//! The two directions of `connect`: frames from the input to the relay, and frames of the relay to the output.
//! Neither waits for the other, because a relay stops reading from a client that does not read its outcomes.
//! The input and the output outlive a connection, so that the next one goes on with both.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::io;
use std::task::Poll;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper_tungstenite::HyperWebsocketStream;
use hyper_tungstenite::tungstenite::protocol::CloseFrame;
use hyper_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use hyper_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::protocol::{is_ping, readable_id};

/// Frames that wait between the thread that reads the input and the socket.
const INPUT_FRAMES: usize = 16;

/// How long nothing may come from the relay before its welcome, or at least.
const SILENCE_MIN: Duration = Duration::from_secs(10);

/// How long the end of a connection may take after the relay's close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where an interface puts what is typed. Dropping it says that the input has ended.
#[derive(Debug)]
pub(super) struct InputSender {
    frames: Sender<Result<String, InputError>>,
    _is_open: oneshot::Sender<()>,
}

impl InputSender {
    /// Puts a frame to send, or why the input cannot be read further. Waits while the queue is full: without a
    /// connection, nothing is taken from it. Returns whether the conversation goes on.
    pub(super) fn put(&self, frame: Result<String, InputError>) -> bool {
        self.frames.blocking_send(frame).is_ok()
    }
}

/// Where frames come from, and where those of the relay are shown.
pub(super) trait Interface {
    /// Shows a frame of the relay.
    fn show(&mut self, text: &str, frame: &Value) -> io::Result<()>;

    /// Says what happens to the connection. Where that fails, the next frame cannot be shown either.
    fn tell(&mut self, notice: &str);
}

/// Why the input cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The system's error.
    #[error("cannot read the input")]
    Io(#[from] io::Error),
    /// The terminal's error.
    #[error("cannot read from the terminal: {0}")]
    Terminal(String),
    /// A line has too many bytes.
    #[error("line {line} of the input has more than {limit} bytes")]
    TooLong {
        /// Its number, from 1.
        line: u64,
        /// The most bytes of a line.
        limit: u64,
    },
    /// A line is not UTF-8.
    #[error("line {line} of the input is not UTF-8")]
    NotUtf8 {
        /// Its number, from 1.
        line: u64,
    },
}

/// Why a conversation ends before its user wants it to.
#[derive(Debug, thiserror::Error)]
pub enum ConversationError {
    /// The input fails.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The output fails.
    #[error("cannot write")]
    Output(#[from] io::Error),
    /// The connection fails.
    #[error("the connection failed: {0}")]
    Socket(#[from] Box<Error>),
    /// The relay closes.
    #[error("the relay closed the connection: {text}")]
    Closed {
        /// The close code, or 1006 of RFC 6455 for none.
        code: u16,
        /// The code and the reason.
        text: String,
    },
    /// The relay sends nothing.
    #[error("nothing came from the relay for {0:?}, not even a ping")]
    Silent(Duration),
}

/// What outlives a connection.
pub(super) struct Conversation {
    /// What is typed. Dropped before the output, because the thread of a terminal may wait for room in the queue.
    frames: Receiver<Result<String, InputError>>,
    /// Closes at the end of the input, while the last frames may still wait in the queue.
    input_ended: oneshot::Receiver<()>,
    output: Output,
}

/// Where the frames of the relay go, and what they have said that is used later.
struct Output {
    interface: Box<dyn Interface>,
    /// No outcome but `delivered` came, and no error.
    all_delivered: bool,
    /// That of the last welcome that had one.
    ticket: Option<String>,
    /// The wait of a `reconnect`.
    reconnect_after: Option<Duration>,
}

/// What the two directions of a connection know of each other. Both are parts of one task.
#[derive(Default)]
struct Connection {
    /// Messages that were sent and have no outcome yet, by their ids.
    pending: RefCell<VecDeque<Value>>,
    /// The relay reads nothing more, as its `reconnect` or its close has said.
    is_deaf: Cell<bool>,
    /// The input has ended, and this side closes.
    is_leaving: Cell<bool>,
}

impl Conversation {
    /// Begins to read the input.
    pub(super) fn start(interface: impl FnOnce(InputSender) -> Box<dyn Interface>) -> Self {
        let (frames, typed) = mpsc::channel(INPUT_FRAMES);
        let (is_open, input_ended) = oneshot::channel();
        let interface = interface(InputSender {
            frames,
            _is_open: is_open,
        });
        let output = Output {
            interface,
            all_delivered: true,
            ticket: None,
            reconnect_after: None,
        };
        Self {
            frames: typed,
            input_ended,
            output,
        }
    }

    /// Talks until the input ends and the relay has answered the close, or until something fails. Returns whether
    /// no outcome but `delivered` came, and no error.
    pub(super) async fn hold(
        &mut self,
        socket: HyperWebsocketStream,
    ) -> Result<bool, ConversationError> {
        let (sink, stream) = socket.split();
        let connection = Connection::default();
        let ended = tokio::select! {
            failed = send(sink, &mut self.frames, &connection) => Err(failed.into()),
            ended = self.output.receive(stream, &connection) => ended,
        };
        for id in connection.pending.take() {
            self.output.settle(&id, "unknown")?;
        }
        ended.map(|()| self.output.all_delivered)
    }

    /// The last ticket of the relay.
    pub(super) fn ticket(&self) -> Option<String> {
        self.output.ticket.clone()
    }

    /// The wait that the relay has asked for in `reconnect`.
    pub(super) fn reconnect_after(&mut self) -> Option<Duration> {
        self.output.reconnect_after.take()
    }

    /// Tells of a lost connection, and does the work of the next one. Returns nothing if the input has ended or ends
    /// meanwhile, because the relay may never return.
    pub(super) async fn between<T>(
        &mut self,
        notice: &str,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let told = async {
            self.output.interface.tell(notice);
            work.await
        };
        tokio::select! {
            biased;
            _ = &mut self.input_ended => None,
            done = told => Some(done),
        }
    }

    /// Reports what was typed and not sent.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.frames.close();
        while let Ok(frame) = self.frames.try_recv() {
            if let Some(id) = frame.ok().as_deref().and_then(message_id) {
                self.output.settle(&id, "not_sent")?;
            }
        }
        Ok(())
    }
}

/// Sends what is typed, and then a close. Returns only where the input fails: of a socket that fails, the other
/// direction knows more.
async fn send(
    mut sink: SplitSink<HyperWebsocketStream, Message>,
    frames: &mut Receiver<Result<String, InputError>>,
    connection: &Connection,
) -> InputError {
    let sent = async {
        loop {
            // What is typed now waits for the next connection. The relay's `reconnect` wakes the task, and so this.
            let next = poll_fn(|cx| {
                if connection.is_deaf.get() {
                    return Poll::Pending;
                }
                frames.poll_recv(cx)
            });
            let frame = match next.await {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Ok(error),
                None => break,
            };
            connection.pending.borrow_mut().extend(message_id(&frame));
            sink.send(Message::text(frame)).await?;
        }
        connection.is_leaving.set(true);
        let (code, reason) = (CloseCode::Normal, Utf8Bytes::default());
        sink.send(Message::Close(Some(CloseFrame { code, reason })))
            .await?;
        pending().await
    };
    let sent: Result<_, Error> = sent.await;
    match sent {
        Ok(error) => error,
        Err(_) => pending().await,
    }
}

impl Output {
    /// Shows what comes until the relay has answered the close.
    async fn receive(
        &mut self,
        mut stream: SplitStream<HyperWebsocketStream>,
        connection: &Connection,
    ) -> Result<(), ConversationError> {
        let mut silence = SILENCE_MIN;
        let close = loop {
            let heard = timeout(silence, stream.next()).await;
            let heard = heard.map_err(|_| ConversationError::Silent(silence))?;
            let text = match heard {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(frame))) => break frame,
                None if connection.is_leaving.get() => return Ok(()),
                None => {
                    let text = "without a reason".to_owned();
                    return Err(ConversationError::Closed { code: 1006, text });
                }
                Some(Err(error)) => return Err(Box::new(error).into()),
                // A ping of the relay: the library answers it.
                Some(Ok(_)) => continue,
            };
            let frame: Value = serde_json::from_str(&text).unwrap_or_default();
            match frame.get("type").and_then(Value::as_str) {
                Some("welcome") => {
                    silence = silence_max(&frame);
                    let ticket = frame.get("ticket").and_then(Value::as_str);
                    self.ticket = ticket.map(str::to_owned).or(self.ticket.take());
                }
                Some("outcome") => {
                    let is = |key: &str, value: &Value| frame.get(key) == Some(value);
                    self.all_delivered &= is("status", &json!("delivered"));
                    let mut pending = connection.pending.borrow_mut();
                    // Outcomes nearly keep the order of their messages, so the first ids are compared.
                    if let Some(index) = pending.iter().position(|id| is("id", id)) {
                        pending.remove(index);
                    }
                }
                Some("error") => self.all_delivered = false,
                Some("reconnect") => {
                    connection.is_deaf.set(true);
                    let after = frame.get("after_ms").and_then(Value::as_u64);
                    self.reconnect_after = after.map(Duration::from_millis);
                }
                _ => {}
            }
            self.interface.show(&text, &frame)?;
        };
        connection.is_deaf.set(true);
        // The library answers the close while it reads to the end of the stream. Another end is as good.
        let end = async { while let Some(Ok(_)) = stream.next().await {} };
        let _in_time = timeout(CLOSE_TIMEOUT, end).await.is_ok();
        // Before the answer to the close of this side, all outcomes have come.
        match close {
            close if connection.is_leaving.get() && is_normal(close.as_ref()) => Ok(()),
            close => Err(closed(close)),
        }
    }

    /// Shows the outcome of a message that the relay does not report.
    fn settle(&mut self, id: &Value, status: &str) -> io::Result<()> {
        self.all_delivered = false;
        let text = format!(r#"{{"type":"outcome","id":{id},"status":"{status}"}}"#);
        let frame = json!({"type": "outcome", "id": id, "status": status});
        self.interface.show(&text, &frame)
    }
}

/// The id by which a frame asks for an outcome.
fn message_id(frame: &str) -> Option<Value> {
    let id = readable_id(frame).filter(|_| !is_ping(frame))?;
    serde_json::from_str(id).ok()
}

/// Twice the time between two pings of the relay: one may be late.
fn silence_max(welcome: &Value) -> Duration {
    let heartbeat = welcome.get("heartbeat_ms").and_then(Value::as_u64);
    let heartbeat = Duration::from_millis(heartbeat.unwrap_or_default());
    heartbeat.saturating_mul(2).max(SILENCE_MIN)
}

/// Whether a close is the answer to that of this side, and not one for a reason of the relay.
fn is_normal(frame: Option<&CloseFrame>) -> bool {
    frame.is_none_or(|frame| frame.code == CloseCode::Normal)
}

fn closed(frame: Option<CloseFrame>) -> ConversationError {
    let Some(CloseFrame { code, reason }) = frame else {
        let text = "without a code".to_owned();
        return ConversationError::Closed { code: 1005, text };
    };
    let reason = super::readable::printable(&reason);
    let text = format!("{code} {reason}").trim_end().to_owned();
    let code = code.into();
    ConversationError::Closed { code, text }
}
