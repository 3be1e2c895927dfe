//! The reading half of a turn: from the socket to a message. Reads about one chunk a turn, and nothing
//! while this user has to take its outcomes first.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::task::{Context, Poll};

use hyper_tungstenite::tungstenite::Message;
use hyper_tungstenite::tungstenite::error::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::context::SessionContext;
use super::endpoint::Endpoint;
use super::machine::Machine;
use super::receive::OpenTurn;
use super::state::{Close, SessionState, Step};
use super::turn::{Turn, yield_turn};
use crate::net::Transport;
use crate::protocol::close_code;

impl<S: Transport> Machine<S> {
    pub(super) fn read(&mut self, turn: &mut Turn, cx: &mut Context<'_>) {
        let endpoint = &mut self.endpoint;
        if endpoint.io.is_throttled {
            return;
        }
        let step = match &mut self.state {
            SessionState::Open(open) => OpenTurn {
                open,
                endpoint,
                turn,
            }
            .read(cx),
            SessionState::AwaitingOutcomes { deadline, .. } => {
                let step = endpoint.discard(turn, cx);
                if endpoint.io.has_peer_closed() {
                    // The earliest of these times counts, which is that of the turn that found the close frame.
                    *deadline = endpoint.close_deadline(turn.now).min(*deadline);
                }
                step
            }
            SessionState::Flushing { .. } | SessionState::Discarding { .. } => {
                endpoint.discard(turn, cx)
            }
            SessionState::Lingering { .. } | SessionState::Ended { .. } => return,
        };
        if let ControlFlow::Break(next) = step {
            self.state = *next;
        }
    }
}

impl<S: Transport> OpenTurn<'_, S> {
    fn read(&mut self, cx: &mut Context<'_>) -> Step {
        self.endpoint.io.begin_turn();
        let step = self.read_messages(cx);
        self.endpoint.membership.release_room();
        step
    }

    /// Reads messages as long as there are any and the turn may go on.
    fn read_messages(&mut self, cx: &mut Context<'_>) -> Step {
        loop {
            let is_input_used = self.endpoint.io.is_input_used();
            let may_bring_a_message = self.open.websocket.is_some() || !is_input_used;
            if may_bring_a_message && !self.may_read(cx) {
                return ControlFlow::Continue(());
            }
            if self.open.websocket.is_none() && is_input_used {
                // Nothing is half read: tungstenite's side is needed only if something comes. What
                // comes may be a message, so the loop asks again whether it may be read.
                if !self.read_chunk(cx)? {
                    return ControlFlow::Continue(());
                }
                continue;
            }
            let Self {
                open,
                endpoint,
                turn,
            } = self;
            let websocket = open.websocket.get_or_insert_with(|| {
                let dialect = endpoint.membership.client().dialect();
                turn.take_websocket(&endpoint.context.config, dialect)
            });
            match websocket.read(&mut endpoint.io) {
                Ok(message) => {
                    let is_data = matches!(message, Message::Text(_) | Message::Binary(_));
                    if is_data && endpoint.io.brought_one_message() {
                        turn.websocket = open.websocket.take();
                    }
                    self.on_message(&message)?;
                }
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    if !endpoint.io.is_input_used() {
                        // The budget for small frames is spent.
                        endpoint.io.is_throttled = true;
                        return ControlFlow::Continue(());
                    }
                    if endpoint.io.is_idle() {
                        turn.websocket = open.websocket.take();
                    }
                    if !self.read_chunk(cx)? {
                        return ControlFlow::Continue(());
                    }
                }
                Err(error) => return self.on_error(&error),
            }
        }
    }

    /// Reads the next chunk. Returns false where none can be had in this turn.
    fn read_chunk(&mut self, cx: &mut Context<'_>) -> Step<bool> {
        let Self {
            open,
            endpoint,
            turn,
        } = self;
        if endpoint.io.is_violated() {
            return self.close(Close::new(close_code::PROTOCOL, "malformed frame header"));
        }
        if endpoint.io.is_budget_spent() {
            endpoint.io.is_throttled = true;
            return ControlFlow::Continue(false);
        }
        // A turn reads one chunk's bytes. TLS brings them in several pieces.
        if turn.has_read_crumbs() {
            endpoint.io.is_throttled = true;
            return ControlFlow::Continue(false);
        }
        if turn.has_read_enough() {
            yield_turn(cx);
            return ControlFlow::Continue(false);
        }
        match endpoint.io.poll_read_chunk(cx, &mut turn.chunk) {
            Poll::Pending => {
                if endpoint.io.take_activity().read {
                    let config = &endpoint.context.config;
                    open.heartbeat.on_sign_of_life(config, turn.now);
                }
                ControlFlow::Continue(false)
            }
            Poll::Ready(Ok(0)) => SessionState::lose_stream(endpoint, turn.now).into_step(),
            Poll::Ready(Ok(count)) => {
                // A chunk that is not full may have emptied the socket. It is read once more all the
                // same, because only a read that finds nothing registers this task to be woken.
                turn.on_read(count);
                turn.is_late = true;
                let SessionContext {
                    config, metrics, ..
                } = &*endpoint.context;
                open.heartbeat.on_sign_of_life(config, turn.now);
                metrics.bytes_read(count);
                self.meter_non_message_frames()?;
                ControlFlow::Continue(true)
            }
            Poll::Ready(Err(error)) => SessionState::fail(&error, endpoint).into_step(),
        }
    }

    /// Whether there is room for the outcome of a message, and for the message in the router. While there
    /// is none, the pong clock stands still, because the pong may be behind what is not read.
    fn may_read(&mut self, cx: &mut Context<'_>) -> bool {
        let Self {
            open,
            endpoint,
            turn,
        } = self;
        let SessionContext {
            config, metrics, ..
        } = &*endpoint.context;
        let may_read = endpoint.replies.have_room(config, metrics)
            && endpoint.membership.poll_ready(cx).is_ready();
        if may_read {
            open.heartbeat.resume(turn.now);
        } else {
            open.heartbeat.pause(turn.now);
        }
        may_read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Endpoint<S> {
    /// Reads and discards what the peer sends while the connection closes, up to its close frame. A peer may write
    /// all that it has before it reads, and unread bytes would reset the connection, which can overtake what was
    /// flushed.
    fn discard(&mut self, turn: &mut Turn, cx: &mut Context<'_>) -> Step {
        while !self.io.has_peer_closed() {
            if turn.has_read_enough() {
                yield_turn(cx);
                break;
            }
            match self.io.poll_discard(cx, &mut turn.chunk) {
                Poll::Pending => break,
                Poll::Ready(Ok(count)) => turn.on_read(count),
                Poll::Ready(Err(_)) => return SessionState::end().into_step(),
            }
            if self.io.is_flooded() {
                // Small frames cost by their number, so that they are read slowly, as in an open session.
                self.io.is_throttled = true;
                break;
            }
        }
        ControlFlow::Continue(())
    }
}
