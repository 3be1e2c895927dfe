//! The reading half of a turn: chunk, frame, message, relay. Reads about one chunk a turn, and nothing
//! while this user has to take its outcomes first.

use std::ops::ControlFlow;
use std::task::Poll;
use std::time::Duration;

use hyper_tungstenite::tungstenite::Message;
use hyper_tungstenite::tungstenite::error::{Error, ProtocolError};
use hyper_tungstenite::tungstenite::protocol::CloseFrame;
use hyper_tungstenite::tungstenite::protocol::frame::coding::{CloseCode as FrameCode, Data};
use tokio::io::{AsyncRead, AsyncWrite};

use super::endpoint::Endpoint;
use super::frames::READ_CHUNK_BYTES;
use super::machine::Machine;
use super::state::{Close, Open, RateBuckets, SessionState};
use super::turn::Turn;
use crate::directory::Wakes;
use crate::protocol::{BadInput, Dialect, Status, close_code, decode, push_data};
use crate::telemetry::metrics::{CloseCode, DropReason, Initiator};

/// Bytes that a frame which ends no message takes off the byte rate: those of the largest control frame.
const NON_MESSAGE_FRAME_BYTES: u64 = 2 + 4 + 125;

impl<S: AsyncRead + AsyncWrite + Unpin> Machine<S> {
    pub(super) fn read(&mut self, turn: &mut Turn<'_, '_>) {
        let endpoint = &mut self.endpoint;
        if endpoint.is_throttled {
            return;
        }
        let step = match &mut self.state {
            SessionState::Open(open) => open.read(endpoint, turn),
            SessionState::Discarding { .. } => endpoint.discard(turn),
            SessionState::AwaitingOutcomes { .. }
            | SessionState::Flushing { .. }
            | SessionState::Answering { .. }
            | SessionState::Ended { .. } => return,
        };
        if let ControlFlow::Break(next) = step {
            self.state = next;
        }
    }
}

impl Open {
    fn read<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        endpoint: &mut Endpoint<S>,
        turn: &mut Turn<'_, '_>,
    ) -> ControlFlow<SessionState> {
        endpoint.io.begin_turn();
        let step = self.read_messages(endpoint, turn);
        endpoint.membership.release_room();
        step
    }

    fn read_messages<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        endpoint: &mut Endpoint<S>,
        turn: &mut Turn<'_, '_>,
    ) -> ControlFlow<SessionState> {
        while let Some(message) = self.next_message(endpoint, turn)? {
            self.on_message(&message, endpoint, turn)?;
        }
        ControlFlow::Continue(())
    }

    /// Returns the next message; nothing where none can be had in this turn.
    fn next_message<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        endpoint: &mut Endpoint<S>,
        turn: &mut Turn<'_, '_>,
    ) -> ControlFlow<SessionState, Option<Message>> {
        loop {
            let is_input_used = endpoint.io.is_input_used();
            let may_bring_a_message = self.websocket.is_some() || !is_input_used;
            if may_bring_a_message && !self.may_read(endpoint, turn) {
                return ControlFlow::Continue(None);
            }
            if self.websocket.is_none() && is_input_used {
                // Nothing is half read: tungstenite's side is needed only if something comes. What
                // comes may be a message, so the loop asks again whether it may be read.
                if !self.read_chunk(endpoint, turn)? {
                    return ControlFlow::Continue(None);
                }
                continue;
            }
            let websocket = self.websocket.get_or_insert_with(|| {
                let dialect = endpoint.membership.client().dialect();
                turn.scratch
                    .take_websocket(&endpoint.context.config, dialect)
            });
            match websocket.read(&mut endpoint.io) {
                Ok(message) => {
                    let is_data = message.is_text() || message.is_binary();
                    if is_data && endpoint.io.brought_one_message() {
                        turn.scratch.websocket = self.websocket.take();
                    }
                    return ControlFlow::Continue(Some(message));
                }
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if !endpoint.io.is_input_used() {
                        // The budget for small frames is spent.
                        endpoint.is_throttled = true;
                        return ControlFlow::Continue(None);
                    }
                    if endpoint.io.is_idle() {
                        turn.scratch.websocket = self.websocket.take();
                    }
                    if !self.read_chunk(endpoint, turn)? {
                        return ControlFlow::Continue(None);
                    }
                }
                Err(error) => return ControlFlow::Break(on_error(&error, endpoint, turn)),
            }
        }
    }

    /// Reads the next chunk. Returns false where none can be had in this turn.
    fn read_chunk<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        endpoint: &mut Endpoint<S>,
        turn: &mut Turn<'_, '_>,
    ) -> ControlFlow<SessionState, bool> {
        if endpoint.io.tracker().is_violated() {
            let close = Close::new(close_code::PROTOCOL, "malformed frame header");
            return ControlFlow::Break(SessionState::close(close, endpoint, turn.now));
        }
        if endpoint.io.is_budget_spent() {
            endpoint.is_throttled = true;
            return ControlFlow::Continue(false);
        }
        // A turn reads one chunk's bytes. TLS brings them in several pieces.
        if turn.chunk_bytes >= READ_CHUNK_BYTES {
            turn.yield_turn();
            return ControlFlow::Continue(false);
        }
        match endpoint
            .io
            .poll_read_chunk(turn.cx, &mut turn.scratch.chunk)
        {
            Poll::Pending => ControlFlow::Continue(false),
            Poll::Ready(Ok(0)) => ControlFlow::Break(SessionState::end_as(
                Initiator::Client,
                CloseCode::Code(1006),
                endpoint,
            )),
            Poll::Ready(Ok(count)) => {
                // A chunk that is not full may have emptied the socket. It is read once more all the
                // same, because only a read that finds nothing registers this task to be woken.
                turn.chunk_bytes += count;
                turn.made_system_call();
                endpoint.context.metrics.bytes_read(count);
                self.meter_non_message_frames(endpoint, turn.now)?;
                ControlFlow::Continue(true)
            }
            Poll::Ready(Err(error)) => ControlFlow::Break(SessionState::fail(&error, endpoint)),
        }
    }

    /// Whether there is room for the outcomes of a message, and for the message in the router. While there
    /// is none, the pong clock stands still, because the pong may be behind what is not read.
    fn may_read<S>(&mut self, endpoint: &mut Endpoint<S>, turn: &mut Turn<'_, '_>) -> bool {
        let may_read = endpoint.replies.owed() < endpoint.config().outcomes_pending
            && endpoint.membership.poll_ready(turn.cx).is_ready();
        if may_read {
            self.heartbeat.resume(turn.now);
        } else {
            self.heartbeat.pause(turn.now);
        }
        may_read
    }

    fn on_message<S>(
        &mut self,
        message: &Message,
        endpoint: &mut Endpoint<S>,
        turn: &mut Turn<'_, '_>,
    ) -> ControlFlow<SessionState> {
        if endpoint.config().echo && echo(message, endpoint) {
            return ControlFlow::Continue(());
        }
        match message {
            Message::Text(text) => return self.on_text(text, endpoint, turn),
            Message::Binary(bytes) => {
                return match std::str::from_utf8(bytes) {
                    Ok(text) => self.on_text(text, endpoint, turn),
                    Err(_) => self.on_bad_input(BadInput::NotJson, endpoint, turn.now),
                };
            }
            Message::Pong(_) => self.heartbeat.on_pong(),
            Message::Close(frame) => {
                return ControlFlow::Break(on_close(frame.as_ref(), endpoint, turn.now));
            }
            // tungstenite answers a ping by itself, and never gives out a raw frame.
            Message::Ping(_) | Message::Frame(_) => {}
        }
        ControlFlow::Continue(())
    }

    fn on_text<S>(
        &mut self,
        text: &str,
        endpoint: &mut Endpoint<S>,
        turn: &mut Turn<'_, '_>,
    ) -> ControlFlow<SessionState> {
        let wakes = &mut turn.scratch.wakes;
        let dialect = endpoint.dialect();
        let is_within_rates = self.rates.take(text.len(), endpoint, turn.now);
        if !is_within_rates && dialect == Dialect::Bare {
            on_rate_limited(None, endpoint, wakes);
            return ControlFlow::Continue(());
        }
        let decoded = decode(text, dialect);
        if !is_within_rates {
            let id = decoded.ok().and_then(|inbound| inbound.id);
            on_rate_limited(id, endpoint, wakes);
            return ControlFlow::Continue(());
        }
        if text.len() > endpoint.config().message_bytes {
            let id = decoded.ok().and_then(|inbound| inbound.id);
            return self.on_too_large(id, endpoint, turn);
        }
        match decoded {
            Ok(inbound) => {
                if inbound.id.is_some() {
                    endpoint.replies.promise();
                }
                endpoint.flushed.received += 1;
                endpoint.membership.send(inbound, turn.now, wakes);
                ControlFlow::Continue(())
            }
            Err(bad) => self.on_bad_input(bad, endpoint, turn.now),
        }
    }

    fn on_too_large<S>(
        &mut self,
        id: Option<&str>,
        endpoint: &mut Endpoint<S>,
        turn: &mut Turn<'_, '_>,
    ) -> ControlFlow<SessionState> {
        let wakes = &mut turn.scratch.wakes;
        endpoint.refuse(id, DropReason::TooLarge, Status::TooLarge, wakes);
        if id.is_some() {
            endpoint.replies.promise();
            return ControlFlow::Continue(());
        }
        if endpoint.dialect() == Dialect::Bare {
            let close = too_large(endpoint);
            return ControlFlow::Break(SessionState::close(close, endpoint, turn.now));
        }
        let detail = format!(
            "the message is over {} bytes",
            endpoint.config().message_bytes
        );
        endpoint.push_error("too_large", &detail);
        self.count_bad_message(endpoint, turn.now)
    }

    fn on_bad_input<S>(
        &mut self,
        bad: BadInput,
        endpoint: &mut Endpoint<S>,
        now: u64,
    ) -> ControlFlow<SessionState> {
        endpoint.context.metrics.bad_message();
        match endpoint.dialect() {
            Dialect::Bare => {
                let close = Close::new(close_code::INVALID, bad.to_string());
                ControlFlow::Break(SessionState::close(close, endpoint, now))
            }
            Dialect::V1 => {
                endpoint.push_error(bad.code(), &bad.to_string());
                self.count_bad_message(endpoint, now)
            }
        }
    }

    fn count_bad_message<S>(
        &mut self,
        endpoint: &mut Endpoint<S>,
        now: u64,
    ) -> ControlFlow<SessionState> {
        self.bad_messages += 1;
        if self.bad_messages < endpoint.config().bad_messages {
            return ControlFlow::Continue(());
        }
        let close = Close::new(close_code::POLICY, "too many bad messages");
        ControlFlow::Break(SessionState::close(close, endpoint, now))
    }

    /// Takes the frames that ended no message off the rates. None of them is refused, because they come
    /// in the middle of messages and a ping must be answered; a peer that is over its rates is closed.
    fn meter_non_message_frames<S>(
        &mut self,
        endpoint: &mut Endpoint<S>,
        now: u64,
    ) -> ControlFlow<SessionState> {
        let frames = u64::from(endpoint.io.tracker_mut().take_non_message_frames());
        if frames == 0 || self.rates.owe(frames, endpoint, now) {
            return ControlFlow::Continue(());
        }
        let close = Close::new(close_code::POLICY, "too many frames");
        ControlFlow::Break(SessionState::close(close, endpoint, now))
    }
}

impl RateBuckets {
    /// Takes a message of so many bytes off the rates. Returns whether it is within them.
    fn take<S>(&mut self, bytes: usize, endpoint: &Endpoint<S>, now: u64) -> bool {
        let config = endpoint.config();
        let now = Duration::from_micros(now);
        let messages = |rate| self.messages.take(rate, 1, now);
        let bytes = |rate| self.bytes.take(rate, bytes as u64, now);
        config.message_rate.is_none_or(messages) && config.byte_rate.is_none_or(bytes)
    }

    /// Takes so many frames that end no message off the rates in any case. Returns whether they are
    /// within them.
    fn owe<S>(&mut self, frames: u64, endpoint: &Endpoint<S>, now: u64) -> bool {
        let config = endpoint.config();
        let now = Duration::from_micros(now);
        let messages = |rate| self.messages.owe(rate, frames, now);
        let bytes = |rate| self.bytes.owe(rate, frames * NON_MESSAGE_FRAME_BYTES, now);
        // Both are taken, even where the first is over its rate.
        config.message_rate.is_none_or(messages) & config.byte_rate.is_none_or(bytes)
    }
}

impl<S> Endpoint<S> {
    /// Receives a message and drops it at once. The sender gets an outcome if it gave the message an id.
    fn refuse(&mut self, id: Option<&str>, reason: DropReason, status: Status, wakes: &mut Wakes) {
        self.flushed.received += 1;
        self.membership.refuse(id, reason, status, wakes);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Endpoint<S> {
    /// Reads and discards, so that the peer gets the relay's close frame: closing a socket with unread
    /// bytes resets the connection, and a reset can overtake what was flushed.
    fn discard(&mut self, turn: &mut Turn<'_, '_>) -> ControlFlow<SessionState> {
        if self.io.tracker().is_closed() {
            return ControlFlow::Break(SessionState::end());
        }
        match self.io.poll_discard(turn.cx, &mut turn.scratch.chunk) {
            Poll::Pending => ControlFlow::Continue(()),
            Poll::Ready(Ok(0) | Err(_)) => ControlFlow::Break(SessionState::end()),
            Poll::Ready(Ok(_)) if self.io.tracker().is_closed() => {
                ControlFlow::Break(SessionState::end())
            }
            // A little at a time, so that a peer that sends on does not delay others.
            Poll::Ready(Ok(_)) => {
                self.is_throttled = true;
                ControlFlow::Continue(())
            }
        }
    }
}

/// Sends a message back. Returns whether it was one. It counts as a reply, so that a peer that does not
/// read is not read from.
fn echo<S>(message: &Message, endpoint: &mut Endpoint<S>) -> bool {
    let (kind, payload) = match message {
        Message::Text(text) => (Data::Text, text.as_bytes()),
        Message::Binary(bytes) => (Data::Binary, &bytes[..]),
        _ => return false,
    };
    push_data(&mut endpoint.io.output, kind, payload);
    endpoint.replies.promise();
    endpoint.replies.on_taken(1);
    true
}

fn on_rate_limited<S>(id: Option<&str>, endpoint: &mut Endpoint<S>, wakes: &mut Wakes) {
    endpoint.refuse(id, DropReason::RateLimited, Status::RateLimited, wakes);
    if id.is_some() {
        endpoint.replies.promise();
    } else if endpoint.dialect() == Dialect::V1 {
        endpoint.push_error("rate_limited", "too many messages, or bytes of them");
    }
}

fn too_large<S>(endpoint: &Endpoint<S>) -> Close {
    let bytes = endpoint.config().message_bytes;
    Close::new(
        close_code::SIZE,
        format!("a message has at most {bytes} bytes"),
    )
}

/// The peer closes: its code is echoed (RFC 6455 section 5.5.1).
fn on_close<S>(frame: Option<&CloseFrame>, endpoint: &mut Endpoint<S>, now: u64) -> SessionState {
    // tungstenite gives out a close frame that a peer may not send as a protocol error of its own.
    let initiator = match frame {
        Some(CloseFrame {
            code: FrameCode::Protocol,
            reason,
        }) if reason.as_str() == "Protocol violation" => Initiator::Server,
        _ => Initiator::Client,
    };
    let code = frame.map(|frame| u16::from(frame.code));
    SessionState::answer(code, initiator, endpoint, now)
}

/// Closes for what tungstenite could not read. Tungstenite must not be asked again: after some of these
/// errors it would panic, or go on in the middle of a message.
fn on_error<S>(error: &Error, endpoint: &mut Endpoint<S>, turn: &mut Turn<'_, '_>) -> SessionState {
    let close = match error {
        Error::Capacity(_) => {
            let wakes = &mut turn.scratch.wakes;
            endpoint.refuse(None, DropReason::TooLarge, Status::TooLarge, wakes);
            too_large(endpoint)
        }
        Error::Utf8(_) => Close::new(close_code::INVALID, "text is not UTF-8"),
        Error::Protocol(ProtocolError::UnmaskedFrameFromClient) => {
            Close::new(close_code::PROTOCOL, "frame is not masked")
        }
        Error::Protocol(_) => Close::new(close_code::PROTOCOL, "malformed frame"),
        _ => Close::new(close_code::INTERNAL, "internal error"),
    };
    SessionState::close(close, endpoint, turn.now)
}
