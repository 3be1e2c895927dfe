//! What a message from the peer leads to: it is sent, refused or answered, or the connection closes. Must not
//! touch the socket.

use std::ops::ControlFlow;

use hyper_tungstenite::tungstenite::Message;
use hyper_tungstenite::tungstenite::error::{Error, ProtocolError};
use hyper_tungstenite::tungstenite::protocol::CloseFrame;
use hyper_tungstenite::tungstenite::protocol::frame::coding::Data;

use super::endpoint::Endpoint;
use super::state::{Close, Open, SessionState, Step};
use super::turn::Turn;
use crate::protocol::{
    BadInput, Dialect, Field, Inbound, Status, close_code, decode, is_ping, push_data, readable_id,
};
use crate::telemetry::metrics::DropReason;

/// The detail of an error for a peer above its rates.
const RATE_LIMITED: &str = "too many messages, or bytes of them";

/// A turn of a session that is open.
pub(super) struct OpenTurn<'a, S> {
    pub(super) open: &'a mut Open,
    pub(super) endpoint: &'a mut Endpoint<S>,
    pub(super) turn: &'a mut Turn,
}

impl<S> OpenTurn<'_, S> {
    /// Begins to close the connection.
    pub(super) fn close<T>(&mut self, close: Close) -> Step<T> {
        SessionState::close(close, self.endpoint, self.turn.now).into_step()
    }

    pub(super) fn on_message(&mut self, message: &Message) -> Step {
        if self.endpoint.config().echo && self.echo(message) {
            return ControlFlow::Continue(());
        }
        match message {
            Message::Text(text) => self.on_text(text),
            Message::Binary(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => self.on_text(text),
                Err(_) => self.on_bad_input(BadInput::NotJson, None),
            },
            Message::Close(frame) => self.on_close(frame.as_ref()),
            Message::Pong(_) => {
                self.open.heartbeat.on_pong();
                ControlFlow::Continue(())
            }
            // tungstenite answers a ping by itself, and never gives out a raw frame.
            Message::Ping(_) | Message::Frame(_) => ControlFlow::Continue(()),
        }
    }

    /// Sends a data message back. Returns whether it was one. It counts as a reply, so that a peer that
    /// does not read is not read from.
    fn echo(&mut self, message: &Message) -> bool {
        let (kind, payload) = match message {
            Message::Text(text) => (Data::Text, text.as_bytes()),
            Message::Binary(bytes) => (Data::Binary, &bytes[..]),
            _ => return false,
        };
        push_data(&mut self.endpoint.io.output, kind, payload);
        let Endpoint {
            replies, context, ..
        } = &mut *self.endpoint;
        replies.on_pushed(payload.len(), &context.metrics);
        true
    }

    fn on_text(&mut self, text: &str) -> Step {
        let Self {
            open,
            endpoint,
            turn,
        } = self;
        let dialect = endpoint.dialect();
        let is_within_rates = open.rates.take(text.len(), endpoint.config(), turn.now);
        if !is_within_rates && dialect == Dialect::Bare {
            return self.on_rate_limited(None);
        }
        match decode(text, dialect) {
            Ok(inbound) if is_within_rates && text.len() <= endpoint.config().message_bytes => {
                if let Some(id) = inbound.id {
                    endpoint.promise(id);
                }
                endpoint.flushed.received += 1;
                endpoint.membership.send(inbound, turn.now, &mut turn.wakes);
                ControlFlow::Continue(())
            }
            refused => self.on_refused(text, &refused, is_within_rates),
        }
    }

    /// Answers a text that is no message, or one that is over a limit. Out of the way of messages that are sent.
    #[cold]
    fn on_refused(
        &mut self,
        text: &str,
        decoded: &Result<Inbound<'_>, BadInput>,
        is_within_rates: bool,
    ) -> Step {
        let dialect = self.endpoint.dialect();
        // Whatever else is wrong with a message, its sender learns by its id what became of it.
        let id = match decoded {
            Ok(inbound) => inbound.id,
            Err(_) if dialect == Dialect::V1 => readable_id(text),
            Err(_) => None,
        };
        if let Err(BadInput::Missing(Field::RecipientId)) = decoded
            && dialect == Dialect::V1
            && is_ping(text)
        {
            self.on_ping(id, is_within_rates);
            return ControlFlow::Continue(());
        }
        if !is_within_rates {
            return self.on_rate_limited(id);
        }
        match decoded {
            Err(bad) if text.len() <= self.endpoint.config().message_bytes => {
                self.on_bad_input(*bad, id)
            }
            _ => self.on_too_large(id),
        }
    }

    /// Answers a ping of the peer's program, which is no message and has no outcome.
    fn on_ping(&mut self, id: Option<&str>, is_within_rates: bool) {
        if is_within_rates {
            self.endpoint.push_pong(id);
        } else {
            self.endpoint.push_error("rate_limited", RATE_LIMITED, None);
        }
    }

    /// Receives a message and drops it at once. The sender gets an outcome if it gave the message an id.
    fn refuse(&mut self, id: Option<&str>, reason: DropReason, status: Status) {
        let Self { endpoint, turn, .. } = self;
        endpoint.flushed.received += 1;
        if let Some(id) = id {
            endpoint.promise(id);
        }
        endpoint
            .membership
            .refuse(id, reason, status, &mut turn.wakes);
    }

    fn on_rate_limited(&mut self, id: Option<&str>) -> Step {
        self.refuse(id, DropReason::RateLimited, Status::RateLimited);
        if id.is_none() && self.endpoint.dialect() == Dialect::V1 {
            self.endpoint.push_error("rate_limited", RATE_LIMITED, None);
        }
        ControlFlow::Continue(())
    }

    fn on_too_large(&mut self, id: Option<&str>) -> Step {
        self.refuse(id, DropReason::TooLarge, Status::TooLarge);
        if id.is_some() {
            return ControlFlow::Continue(());
        }
        let bytes = self.endpoint.config().message_bytes;
        match self.endpoint.dialect() {
            Dialect::Bare => self.close(Close::too_large(bytes)),
            Dialect::V1 => {
                let detail = format!("the message is over {bytes} bytes");
                self.endpoint.push_error("too_large", &detail, None);
                self.count_bad_message()
            }
        }
    }

    fn on_bad_input(&mut self, bad: BadInput, id: Option<&str>) -> Step {
        self.endpoint.context.metrics.bad_message();
        match self.endpoint.dialect() {
            Dialect::Bare => self.close(Close::new(close_code::INVALID, bad.to_string())),
            Dialect::V1 => {
                let Self { endpoint, turn, .. } = self;
                endpoint.push_error(bad.code(), &bad.to_string(), id);
                if let Some(id) = id {
                    endpoint.promise(id);
                    endpoint.membership.reject(id, &mut turn.wakes);
                }
                self.count_bad_message()
            }
        }
    }

    fn count_bad_message(&mut self) -> Step {
        self.open.bad_messages += 1;
        if self.open.bad_messages < self.endpoint.config().bad_messages {
            return ControlFlow::Continue(());
        }
        self.close(Close::new(close_code::POLICY, "too many bad messages"))
    }

    /// Takes the frames that ended no message off the rates. None of them is refused, because they come
    /// in the middle of messages and a ping must be answered; a peer that is over its rates is closed.
    pub(super) fn meter_non_message_frames(&mut self) -> Step {
        let Self {
            open,
            endpoint,
            turn,
        } = self;
        let frames = u64::from(endpoint.io.take_non_message_frames());
        if frames == 0 || open.rates.owe(frames, endpoint.config(), turn.now) {
            return ControlFlow::Continue(());
        }
        self.close(Close::new(close_code::POLICY, "too many frames"))
    }

    /// The peer closes: its code is echoed (RFC 6455 section 5.5.1).
    fn on_close(&mut self, frame: Option<&CloseFrame>) -> Step {
        // tungstenite gives out 1002 for every code that it does not know, 1014 among them.
        let code = frame.map(|_| self.endpoint.io.peer_close_code());
        if code.is_none_or(close_code::may_be_received) {
            return self
                .open
                .answer(code, self.endpoint, self.turn.now)
                .into_step();
        }
        self.close(Close::new(
            close_code::PROTOCOL,
            "no peer may send this close code",
        ))
    }

    /// Closes for what tungstenite could not read. Tungstenite must not be asked again: after some of
    /// these errors it would panic, or go on in the middle of a message.
    pub(super) fn on_error<T>(&mut self, error: &Error) -> Step<T> {
        let close = match error {
            Error::Capacity(_) => {
                self.refuse(None, DropReason::TooLarge, Status::TooLarge);
                Close::too_large(self.endpoint.config().message_bytes)
            }
            Error::Utf8(_) => Close::new(close_code::INVALID, "text is not UTF-8"),
            Error::Protocol(ProtocolError::UnmaskedFrameFromClient) => {
                Close::new(close_code::PROTOCOL, "frame is not masked")
            }
            Error::Protocol(_) => Close::new(close_code::PROTOCOL, "malformed frame"),
            _ => Close::new(close_code::INTERNAL, "internal error"),
        };
        self.close(close)
    }
}
