//! The two directions of `connect`: frames from the input to the relay, and frames of the relay to the output.
//! Neither waits for the other, because a relay stops reading from a client that does not read its outcomes.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper_tungstenite::HyperWebsocketStream;
use hyper_tungstenite::tungstenite::protocol::CloseFrame;
use hyper_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use hyper_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use serde_json::Value;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::timeout;

/// Frames that wait between the thread that reads the input and the socket.
const INPUT_FRAMES: usize = 16;

/// How long nothing may come from the relay before its welcome, or at least.
const SILENCE_MIN: Duration = Duration::from_secs(10);

/// A frame to send, or why the input cannot be read further.
pub(super) type Typed = Result<String, InputError>;

/// Where frames come from, and where those of the relay are shown.
pub(super) trait Interface {
    /// Shows a frame of the relay.
    fn show(&mut self, text: &str, frame: &Value) -> io::Result<()>;
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
    #[error("the relay closed the connection: {0}")]
    Closed(String),
    /// The relay sends nothing.
    #[error("nothing came from the relay for {0:?}, not even a ping")]
    Silent(Duration),
}

/// How a conversation ended that its user has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConversationEnd {
    /// No outcome but `delivered` came, and no error.
    pub(super) all_delivered: bool,
}

/// Talks until the input ends and the relay has answered the close, or until something fails.
pub(super) async fn run<I: Interface>(
    socket: HyperWebsocketStream,
    start: impl FnOnce(Sender<Typed>) -> I,
) -> Result<ConversationEnd, ConversationError> {
    let (typed, input) = mpsc::channel(INPUT_FRAMES);
    let interface = start(typed);
    let (sink, stream) = socket.split();
    let is_leaving = Cell::new(false);
    tokio::select! {
        failed = send(sink, input, &is_leaving) => Err(failed.into()),
        ended = receive(stream, interface, &is_leaving) => ended,
    }
}

/// Sends what is typed, and then a close. Returns only where the input fails: of a socket that fails, the other
/// direction knows more.
async fn send(
    mut sink: SplitSink<HyperWebsocketStream, Message>,
    mut input: Receiver<Typed>,
    is_leaving: &Cell<bool>,
) -> InputError {
    let sent = async {
        while let Some(typed) = input.recv().await {
            match typed {
                Ok(frame) => sink.send(Message::text(frame)).await?,
                Err(error) => return Ok(error),
            }
        }
        is_leaving.set(true);
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

async fn receive(
    mut stream: SplitStream<HyperWebsocketStream>,
    mut interface: impl Interface,
    is_leaving: &Cell<bool>,
) -> Result<ConversationEnd, ConversationError> {
    let (mut silence, mut all_delivered) = (SILENCE_MIN, true);
    loop {
        let heard = timeout(silence, stream.next()).await;
        let heard = heard.map_err(|_| ConversationError::Silent(silence))?;
        let text = match heard {
            Some(Ok(Message::Text(text))) => text,
            // The relay has answered the close. Before it, all outcomes have come.
            Some(Ok(Message::Close(frame))) if is_leaving.get() && is_normal(frame.as_ref()) => {
                return Ok(ConversationEnd { all_delivered });
            }
            None if is_leaving.get() => return Ok(ConversationEnd { all_delivered }),
            Some(Ok(Message::Close(frame))) => {
                return Err(ConversationError::Closed(closing(frame)));
            }
            None => return Err(ConversationError::Closed("without a reason".to_owned())),
            Some(Err(error)) => return Err(Box::new(error).into()),
            // A ping of the relay: the library answers it.
            Some(Ok(_)) => continue,
        };
        let frame: Value = serde_json::from_str(&text).unwrap_or_default();
        match frame.get("type").and_then(Value::as_str) {
            Some("welcome") => silence = silence_max(&frame),
            Some("outcome") => {
                all_delivered &= frame
                    .get("status")
                    .is_some_and(|status| status == "delivered");
            }
            Some("error") => all_delivered = false,
            _ => {}
        }
        interface.show(&text, &frame)?;
    }
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

fn closing(frame: Option<CloseFrame>) -> String {
    match frame {
        Some(CloseFrame { code, reason }) if reason.is_empty() => code.to_string(),
        Some(CloseFrame { code, reason }) => {
            format!("{code} {}", super::readable::printable(&reason))
        }
        None => "without a code".to_owned(),
    }
}
