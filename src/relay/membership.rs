//! A joined user: sends messages while it is there, and leaves on Drop.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::router::{LeavePermit, RoutedMessage, RouterSink};
use super::shared::UserPermit;
use crate::cluster::Registration;
use crate::directory::{Client, Message, Wakes};
use crate::ledger::InHand;
use crate::protocol::{Inbound, Status, inbound_trace};
use crate::telemetry::metrics::{CloseCode, DropReason, Initiator};
use crate::telemetry::trace_context::TraceHeaders;

/// How a connection counts that ended without a close frame (RFC 6455 section 7.1.5).
const ABNORMAL: u16 = 1006;

/// A joined user. Drop leaves: queued messages are settled as dropped, the client is removed, and the
/// connection counts as closed.
pub struct Membership {
    client: Arc<Client>,
    ended: (Initiator, CloseCode),
    /// Set in a cluster. Dropped after the client has left.
    _registration: Option<Box<Registration>>,
    leave_permit: Option<LeavePermit>,
    sink: Option<Box<RouterSink>>,
    permit: UserPermit,
}

impl Membership {
    pub(super) fn new(
        client: Arc<Client>,
        permit: UserPermit,
        registration: Option<Box<Registration>>,
    ) -> Self {
        Self {
            client,
            ended: (Initiator::Client, CloseCode::Code(ABNORMAL)),
            _registration: registration,
            leave_permit: None,
            sink: None,
            permit,
        }
    }

    /// Adds the ways to the router, in the router strategy.
    pub(super) fn route_by(&mut self, leave_permit: Option<LeavePermit>, sink: RouterSink) {
        self.leave_permit = leave_permit;
        self.sink = Some(Box::new(sink));
    }

    /// The user's client.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Sets how the connection will count as closed. Without this it counts as ended by the client,
    /// with 1006.
    pub(crate) fn ended(&mut self, initiator: Initiator, code: CloseCode) {
        self.ended = (initiator, code);
    }

    /// Waits until a message can be sent, which is always in the directory strategy.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.sink {
            None => Poll::Ready(()),
            Some(sink) => sink.poll_ready(cx),
        }
    }

    /// Gives back the room that [`Membership::poll_ready`] has found and no message has used, because
    /// other senders wait for it.
    pub(crate) fn release_room(&mut self) {
        if let Some(sink) = &mut self.sink {
            sink.release();
        }
    }

    /// Sends nothing more, and so waits for no room in front of other senders.
    pub(crate) fn stop_sending(&mut self) {
        if let Some(sink) = &mut self.sink {
            sink.close();
        }
        // A replaced client tells the router at once, so that messages go to the newer one.
        if !self.client.is_open()
            && let Some(permit) = self.leave_permit.take()
        {
            permit.leave(self.client.clone());
        }
    }

    /// Sends a message that was read at `read_at`, microseconds of the app's clock. The relay settles
    /// it from here on, in every case.
    pub(crate) fn send(&mut self, inbound: Inbound<'_>, read_at: u64, wakes: &mut Wakes) {
        let Inbound {
            recipient,
            message: body,
            id,
            traced,
        } = inbound;
        let shared = self.permit.shared();
        let in_hand = InHand::receive(&*shared.metrics);
        let caller = traced
            .filter(|_| shared.traces.trusts_clients())
            .and_then(inbound_trace)
            .map_or_else(TraceHeaders::default, |trace| TraceHeaders {
                traceparent: Some(trace.traceparent),
                tracestate: trace.tracestate,
            });
        // Without the quotes of the literal.
        let body_bytes = body.len() - 2;
        let trace = shared.traces.message(caller, Some(body_bytes));
        let message = Message {
            sender: self.client.id().into(),
            body,
            read_at,
            receipt: self.client.receipt(id, trace),
        };
        if let Some(sink) = &mut self.sink {
            let in_hand = in_hand.carry(shared.metrics.clone());
            return sink.send(RoutedMessage::new(recipient, message, in_hand));
        }
        shared.deliver(recipient, message, in_hand, wakes);
    }

    /// Receives a message and drops it at once. Tells the sender the status if it asked for one.
    pub(crate) fn refuse(
        &self,
        id: Option<&str>,
        reason: DropReason,
        status: Status,
        wakes: &mut Wakes,
    ) {
        let shared = self.permit.shared();
        InHand::receive(&*shared.metrics).dropped(reason);
        let trace = shared.traces.message(TraceHeaders::default(), None);
        if let Some(receipt) = self.client.receipt(id, trace) {
            receipt.settle(status, wakes);
        }
    }

    /// Tells the user that what it sent with `id` is no message. The ledger counts none.
    pub(crate) fn reject(&self, id: &str, wakes: &mut Wakes) {
        if let Some(receipt) = self.client.receipt(Some(id), None) {
            receipt.settle(Status::Invalid, wakes);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let shared = self.permit.shared();
        let reason = DropReason::Disconnected;
        self.client
            .leave(VecDeque::new(), reason, &mut Wakes::default());
        shared.directory.leave(&self.client);
        if let Some(permit) = self.leave_permit.take() {
            permit.leave(self.client.clone());
        }
        // After the client has left, so that no scrape counts the connection as both open and closed.
        let (initiator, code) = self.ended;
        shared.metrics.connection_closed(initiator, code);
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}
