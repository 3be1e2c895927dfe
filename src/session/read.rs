//! The reading half of a turn: gulp, frame, message, relay. Reads no more than one gulp a turn, and
//! nothing while this user has to take its outcomes first.

use std::ops::ControlFlow;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_tungstenite::tungstenite::Message;
use hyper_tungstenite::tungstenite::error::{Error, ProtocolError};
use hyper_tungstenite::tungstenite::protocol::CloseFrame;
use hyper_tungstenite::tungstenite::protocol::frame::coding::{CloseCode as FrameCode, Data};
use tokio::io::{AsyncRead, AsyncWrite};

use super::frames::GULP_BYTES;
use super::{Close, Core, End, NEVER, Paused, Phase, Scratch, come_again, micros};
use crate::directory::Wakes;
use crate::protocol::{
    BadInput, Dialect, Outbound, Status, close_code, decode, push_close, push_data, push_frame,
};
use crate::telemetry::metrics::{CloseCode, DropReason, Initiator};

/// What a frame that ends no message counts as, bytes: a control frame of the largest size.
const ASIDE_BYTES: u64 = 2 + 4 + 125;

impl<S: AsyncRead + AsyncWrite + Unpin> Core<S> {
    pub(super) fn read(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        now: u64,
    ) -> Option<End> {
        if self.resting {
            return None;
        }
        match self.phase {
            Phase::Open => self.read_messages(cx, scratch, now),
            Phase::Discarding(_) => self.discard(cx, scratch),
            Phase::Leaving(..) | Phase::Ending(_) => None,
        }
    }

    fn read_messages(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        now: u64,
    ) -> Option<End> {
        let end = self.read_gulp(cx, scratch, now);
        self.membership.release_room();
        end
    }

    fn read_gulp(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch, now: u64) -> Option<End> {
        let mut ws = self.ws.take();
        let mut gulped = 0;
        self.wire.begin_turn();
        loop {
            let may_bring_a_message = ws.is_some() || !self.wire.is_drained();
            if may_bring_a_message && !self.may_read(cx, now) {
                self.ws = ws;
                return None;
            }
            if self.wire.is_drained() && ws.is_none() {
                // Nothing is half read: this connection needs a side of tungstenite's only if
                // something comes.
                match self.fill(cx, scratch, &mut gulped, now) {
                    // Now there may be a message: is there room for what it brings?
                    ControlFlow::Continue(()) => continue,
                    ControlFlow::Break(end) => return end,
                }
            }
            let dialect = self.membership.client().dialect();
            let side = ws.get_or_insert_with(|| scratch.websocket(&self.context.config, dialect));
            match side.read(&mut self.wire) {
                Ok(message) => {
                    self.on_message(&message, &mut scratch.wakes, now);
                    if (message.is_text() || message.is_binary()) && self.wire.brought_one_message()
                    {
                        scratch.ws = ws.take();
                    }
                }
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if !self.wire.is_drained() {
                        // A turn's worth of small frames.
                        self.resting = true;
                        self.ws = ws;
                        return None;
                    }
                    if self.wire.is_quiet() {
                        scratch.ws = ws.take();
                    }
                    match self.fill(cx, scratch, &mut gulped, now) {
                        ControlFlow::Continue(()) => {}
                        ControlFlow::Break(end) => {
                            self.ws = ws;
                            return end;
                        }
                    }
                }
                Err(error) => self.on_error(&error, &mut scratch.wakes, now),
            }
            if !matches!(self.phase, Phase::Open) {
                return None;
            }
        }
    }

    /// Reads the next gulp; breaks where there is none to be had now.
    fn fill(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        gulped: &mut usize,
        now: u64,
    ) -> ControlFlow<Option<End>> {
        if self.wire.tracker().violated() {
            let close = Close::server(close_code::PROTOCOL, "malformed frame header");
            self.leave(close, now);
            return ControlFlow::Break(None);
        }
        if self.wire.is_sated() {
            self.resting = true;
            return ControlFlow::Break(None);
        }
        // A gulp is a turn, in one piece or, by TLS, in several.
        if *gulped >= GULP_BYTES {
            come_again(cx);
            return ControlFlow::Break(None);
        }
        match self.wire.poll_fill(cx, &mut scratch.room) {
            Poll::Pending => ControlFlow::Break(None),
            Poll::Ready(Ok(0)) => {
                ControlFlow::Break(Some(End(Initiator::Client, CloseCode::Code(1006))))
            }
            Poll::Ready(Ok(count)) => {
                // Behind a lesser one the socket may be empty, and has to be asked once more so that
                // it wakes this task.
                *gulped += count;
                scratch.is_late = true;
                self.context.metrics.bytes_read(count);
                self.meter_asides(now);
                match self.phase {
                    Phase::Open => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(None),
                }
            }
            Poll::Ready(Err(error)) => ControlFlow::Break(Some(io_end(&error))),
        }
    }

    /// Whether there is room for what a message may bring. While there is none the user's pong clock
    /// stands still: the pong may be behind what is not read.
    fn may_read(&mut self, cx: &mut Context<'_>, now: u64) -> bool {
        let may = self.promised < self.context.config.outcomes_pending
            && self.membership.poll_ready(cx).is_ready();
        match (may, self.paused) {
            (false, None) => {
                let pong = std::mem::replace(&mut self.due.pong, NEVER);
                self.paused = Some(if pong == NEVER {
                    Paused::AwaitingNothing
                } else {
                    Paused::AwaitingPong(pong.saturating_sub(now))
                });
            }
            (true, Some(paused)) => {
                self.paused = None;
                if let Paused::AwaitingPong(left) = paused {
                    self.due.pong = now + left;
                }
            }
            (true, None) | (false, Some(_)) => {}
        }
        may
    }

    fn on_message(&mut self, message: &Message, wakes: &mut Wakes, now: u64) {
        if self.context.config.echo && self.echo(message) {
            return;
        }
        match message {
            Message::Text(text) => self.on_text(text, wakes, now),
            Message::Binary(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => self.on_text(text, wakes, now),
                Err(_) => self.on_bad_input(BadInput::NotJson, now),
            },
            Message::Pong(_) => self.due.pong = NEVER,
            Message::Close(close) => self.on_close(close.as_ref(), now),
            // tungstenite answers a ping by itself, and never gives out a raw frame.
            Message::Ping(_) | Message::Frame(_) => {}
        }
    }

    /// Sends a message back, as an error is sent: bounded by what its user does not read. Whether it
    /// was one.
    fn echo(&mut self, message: &Message) -> bool {
        let (kind, payload) = match message {
            Message::Text(text) => (Data::Text, text.as_bytes()),
            Message::Binary(bytes) => (Data::Binary, &bytes[..]),
            _ => return false,
        };
        push_data(&mut self.wire.out, kind, payload);
        self.promised += 1;
        self.leaving += 1;
        true
    }

    /// Takes a message off this user's rates; whether it is within them.
    fn meter(&mut self, bytes: usize, now: u64) -> bool {
        let config = &self.context.config;
        let now = Duration::from_micros(now);
        let messages = |rate| self.messages.take(rate, 1, now);
        let bytes = |rate| self.bytes.take(rate, bytes as u64, now);
        config.message_rate.is_none_or(messages) && config.byte_rate.is_none_or(bytes)
    }

    /// Takes what has come besides messages off the rates. It is not refused: it comes in the middle
    /// of them, and a ping has its answer. Whoever goes on is closed.
    fn meter_asides(&mut self, now: u64) {
        let asides = u64::from(self.wire.tracker_mut().take_asides());
        if asides == 0 {
            return;
        }
        let config = &self.context.config;
        let at = Duration::from_micros(now);
        let messages = |rate| self.messages.owe(rate, asides, at);
        let bytes = |rate| self.bytes.owe(rate, asides * ASIDE_BYTES, at);
        let within = config.message_rate.is_none_or(messages) & config.byte_rate.is_none_or(bytes);
        if !within {
            self.leave(Close::server(close_code::POLICY, "too many frames"), now);
        }
    }

    fn on_text(&mut self, text: &str, wakes: &mut Wakes, now: u64) {
        let dialect = self.membership.client().dialect();
        let within = self.meter(text.len(), now);
        if !within && dialect == Dialect::Bare {
            return self.on_rate_limited(None, wakes);
        }
        let decoded = decode(text, dialect);
        if !within {
            return self.on_rate_limited(decoded.ok().and_then(|inbound| inbound.id), wakes);
        }
        if text.len() > self.context.config.message_bytes {
            return self.on_too_large(decoded.ok().and_then(|inbound| inbound.id), wakes, now);
        }
        match decoded {
            Ok(inbound) => {
                self.promised += u32::from(inbound.id.is_some());
                self.flushed.received += 1;
                self.membership.send(inbound, now, wakes);
            }
            Err(bad) => self.on_bad_input(bad, now),
        }
    }

    /// Receives a message and drops it at once, telling the sender where it asked.
    fn refuse(&mut self, id: Option<&str>, reason: DropReason, status: Status, wakes: &mut Wakes) {
        self.flushed.received += 1;
        self.membership.refuse(id, reason, status, wakes);
    }

    fn on_rate_limited(&mut self, id: Option<&str>, wakes: &mut Wakes) {
        self.refuse(id, DropReason::RateLimited, Status::RateLimited, wakes);
        if id.is_some() {
            self.promised += 1;
        } else if self.membership.client().dialect() == Dialect::V1 {
            self.push_error("rate_limited", "too many messages, or bytes of them");
        }
    }

    fn on_too_large(&mut self, id: Option<&str>, wakes: &mut Wakes, now: u64) {
        self.refuse(id, DropReason::TooLarge, Status::TooLarge, wakes);
        if id.is_some() {
            self.promised += 1;
        } else if self.membership.client().dialect() == Dialect::V1 {
            let detail = format!(
                "the message is over {} bytes",
                self.context.config.message_bytes
            );
            self.push_error("too_large", &detail);
            self.count_bad(now);
        } else {
            self.leave(self.too_large(), now);
        }
    }

    fn too_large(&self) -> Close {
        Close::server(
            close_code::SIZE,
            format!(
                "a message has at most {} bytes",
                self.context.config.message_bytes
            ),
        )
    }

    fn on_bad_input(&mut self, bad: BadInput, now: u64) {
        self.context.metrics.bad_message();
        match self.membership.client().dialect() {
            Dialect::Bare => self.leave(Close::server(close_code::INVALID, bad.to_string()), now),
            Dialect::V1 => {
                self.push_error(bad.code(), &bad.to_string());
                self.count_bad(now);
            }
        }
    }

    fn push_error(&mut self, code: &str, detail: &str) {
        push_frame(
            &mut self.wire.out,
            Dialect::V1,
            Outbound::Error { code, detail },
        );
        self.promised += 1;
        self.leaving += 1;
    }

    fn count_bad(&mut self, now: u64) {
        self.bad_messages += 1;
        if self.bad_messages >= self.context.config.bad_messages {
            self.leave(
                Close::server(close_code::POLICY, "too many bad messages"),
                now,
            );
        }
    }

    /// The peer closes: its code comes back (RFC 6455 section 5.5.1), and that is all.
    fn on_close(&mut self, close: Option<&CloseFrame>, now: u64) {
        let (code, answer) = match close {
            // What may not be sent was turned into a protocol error by tungstenite.
            Some(CloseFrame { code, .. }) => (u16::from(*code), Some((u16::from(*code), ""))),
            None => (1005, None),
        };
        let initiator = match close {
            Some(CloseFrame {
                code: FrameCode::Protocol,
                reason,
            }) if reason.as_str() == "Protocol violation" => Initiator::Server,
            _ => Initiator::Client,
        };
        push_close(&mut self.wire.out, answer);
        self.membership.client().shut();
        self.membership.ended(initiator, CloseCode::Code(code));
        self.stop_heartbeat();
        self.phase = Phase::Ending(now + micros(self.context.config.close_timeout));
    }

    /// What tungstenite could not read. It is not asked again: after some of these it would panic,
    /// or go on in the middle of a message.
    fn on_error(&mut self, error: &Error, wakes: &mut Wakes, now: u64) {
        let close = match error {
            Error::Capacity(_) => {
                self.refuse(None, DropReason::TooLarge, Status::TooLarge, wakes);
                self.too_large()
            }
            Error::Utf8(_) => Close::server(close_code::INVALID, "text is not UTF-8"),
            Error::Protocol(ProtocolError::UnmaskedFrameFromClient) => {
                Close::server(close_code::PROTOCOL, "frame is not masked")
            }
            Error::Protocol(_) => Close::server(close_code::PROTOCOL, "malformed frame"),
            _ => Close::server(close_code::INTERNAL, "internal error"),
        };
        self.leave(close, now);
    }

    /// Behind our close frame: reads on, so that the peer gets what was flushed and no reset, until
    /// its close frame or the end of the stream.
    fn discard(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Option<End> {
        if self.wire.tracker().closed() {
            return Some(self.ending());
        }
        match self.wire.poll_discard(cx, &mut scratch.room) {
            Poll::Pending => None,
            Poll::Ready(Ok(0) | Err(_)) => Some(self.ending()),
            Poll::Ready(Ok(_)) if self.wire.tracker().closed() => Some(self.ending()),
            // A little at a time: whoever talks on is not to hold up others by it.
            Poll::Ready(Ok(_)) => {
                self.resting = true;
                None
            }
        }
    }
}

/// How a connection counts that failed in the socket.
pub(super) fn io_end(error: &std::io::Error) -> End {
    let code = match error.kind() {
        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => CloseCode::Reset,
        _ => CloseCode::Code(1006),
    };
    End(Initiator::Client, code)
}
