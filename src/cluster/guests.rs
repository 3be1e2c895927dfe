//! Users here who came back with a ticket for an id of another node's block, or of nobody's. Such an id
//! has a subscription of its own, and whoever had the id before goes silent for it: the holder of its
//! block, or the node that the user was on last. While it is not known what that one has seen, what
//! comes waits; then what it had seen is skipped, so nothing is taken twice and nothing by nobody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::{Message, RequestErrorKind, Subject, Subscriber};
use futures_util::{StreamExt, stream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::claims::Own;
use super::envelope::{Node, ReplyTo, reply_to};
use super::handover::{Ask, Claimant, Cut, Grant, Refusal, Reply, is_ask};
use super::inbound::{Intake, arrived};
use super::link::{Link, Lost};
use super::{Cluster, Shared};
use crate::directory::{Order, Wakes};
use crate::identity::{Lineage, UserId};
use crate::protocol::close_code;

/// Ids that are claimed again, or blocks that are renewed, at a time.
const CLAIMS_AT_A_TIME: usize = 16;
/// Renewals within `cluster.claim_timeout`.
const RENEWALS: u32 = 4;
/// Ids that are renewed by one message: of 18 bytes each, far less than NATS takes.
const RENEWED_AT_A_TIME: usize = 1024;

/// The ids that are guests here.
#[derive(Debug, Default)]
pub(super) struct Guests {
    /// Read before the lock is taken, since mostly there are none.
    count: AtomicUsize,
    table: Mutex<HashMap<UserId, Stay>>,
    /// Told whenever a stay begins or ends.
    changed: Notify,
    numbers: AtomicU64,
}

/// One id that is a guest here.
#[derive(Debug)]
struct Stay {
    /// Tells it from another stay of the same id.
    number: u64,
    lineage: Lineage,
    /// Connections, of which all but the last have given way.
    users: u32,
    phase: Phase,
    /// From its arrival until its link is lost.
    task: Option<Task>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The id is being claimed.
    Arriving,
    Here,
    /// The last user has left, and the id is given back; or another node has it.
    Leaving,
}

/// The task that takes a guest's messages, as others see it.
#[derive(Clone, Debug)]
struct Task {
    /// The number of its link.
    link: u32,
    /// Whoever asks for the id, and is told what was seen.
    takers: mpsc::Sender<oneshot::Sender<Cut>>,
    leave: CancellationToken,
    /// The number of the node that holds the block; 0 for nobody.
    holder: Arc<AtomicU64>,
}

/// One who is here, as others are told of it.
#[derive(Clone, Copy, Debug)]
struct Staying {
    id: UserId,
    lineage: Lineage,
    /// That of its stay.
    number: u64,
}

type Takers = mpsc::Receiver<oneshot::Sender<Cut>>;

/// A guest's connection. Dropping it leaves.
pub(crate) struct Guest {
    shared: Arc<Shared>,
    id: UserId,
    number: u64,
}

/// How somebody has an id that it has come back with.
#[derive(Debug)]
pub(crate) enum Tenure {
    /// It is of a block of this node.
    Home,
    Guest(Box<Guest>),
}

/// What comes of asking for an id here.
enum Admission {
    Home,
    Stays(Guest),
    Refused(Refusal),
    /// It is on its way in or out.
    Wait,
    /// It is to be claimed, for the stay of this number; where it is of a block of this node, from that
    /// other node.
    Arrives(u64, Option<Node>),
}

/// What comes for an id while it is asked who has it, at most `cluster.inbound_messages`.
struct Early {
    messages: Vec<Message>,
    max: usize,
}

/// A guest whose id was granted.
struct Arrival {
    subscriber: Subscriber,
    /// What has come while it was claimed.
    early: Early,
    holder: Option<Node>,
    cut: Cut,
    /// A node that has given way, whose own claim may be still to come.
    withdrawn: Option<Node>,
}

impl Stay {
    /// It is to be given back. Whether there is no task to do so.
    fn leave(&mut self) -> bool {
        self.phase = Phase::Leaving;
        let Some(task) = &self.task else { return true };
        task.leave.cancel();
        false
    }

    fn is_served_by(&self, link: u32) -> bool {
        self.task.as_ref().is_some_and(|task| task.link == link)
    }
}

impl Early {
    fn new(max: u32) -> Self {
        Self {
            messages: Vec::new(),
            max: max as usize,
        }
    }

    /// Keeps a message. Whether there was room; else it is lost, as where NATS brings more than is taken.
    fn push(&mut self, message: Message) -> bool {
        let has_room = self.messages.len() < self.max;
        if has_room {
            self.messages.push(message);
        }
        has_room
    }
}

impl Guests {
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether the id is a guest here.
    pub(super) fn has(&self, id: UserId) -> bool {
        self.len() > 0 && self.table().contains_key(&id)
    }

    fn table(&self) -> MutexGuard<'_, HashMap<UserId, Stay>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on a stay; nothing where it is over.
    fn with<R>(&self, id: UserId, number: u64, f: impl FnOnce(&mut Stay) -> R) -> Option<R> {
        let mut table = self.table();
        let stay = table.get_mut(&id).filter(|stay| stay.number == number)?;
        Some(f(stay))
    }

    /// Ends a stay. Whether it was there.
    fn remove(&self, id: UserId, number: u64) -> bool {
        let mut table = self.table();
        let is_there = table.get(&id).is_some_and(|stay| stay.number == number);
        if is_there {
            table.remove(&id);
            self.count.store(table.len(), Ordering::Release);
        }
        drop(table);
        self.changed.notify_waiters();
        is_there
    }

    /// Those who are here, of whom this holds.
    fn staying(&self, is_meant: impl Fn(&Stay) -> bool) -> Vec<Staying> {
        if self.len() == 0 {
            return Vec::new();
        }
        let table = self.table();
        let here = table
            .iter()
            .filter(|(_, stay)| stay.phase == Phase::Here && is_meant(stay));
        let staying = here.map(|(id, stay)| Staying {
            id: *id,
            lineage: stay.lineage,
            number: stay.number,
        });
        staying.collect()
    }

    /// The block of this one is held by that node from now on, or by nobody.
    fn note_holder(&self, staying: Staying, holder: Option<Node>) {
        self.with(staying.id, staying.number, |stay| {
            if let Some(task) = &stay.task {
                let number = holder.map_or(0, |node| node.0);
                task.holder.store(number, Ordering::Relaxed);
            }
        });
    }

    /// Waits until the last one has left.
    pub(super) async fn all_left(&self) {
        loop {
            let changed = self.changed.notified();
            if self.len() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn begin(&self, table: &mut HashMap<UserId, Stay>, id: UserId, lineage: Lineage) -> u64 {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let stay = Stay {
            number,
            lineage,
            users: 0,
            phase: Phase::Arriving,
            task: None,
        };
        table.insert(id, stay);
        self.count.store(table.len(), Ordering::Release);
        number
    }
}

impl Cluster {
    /// Takes an id that somebody comes back with, wherever it was.
    pub(crate) async fn take_back(&self, id: UserId, lineage: Lineage) -> Result<Tenure, Refusal> {
        let shared = &self.shared;
        let taken = timeout(shared.settings.link_timeout, shared.take_back(id, lineage)).await;
        taken.unwrap_or(Err(Refusal::Unavailable))
    }

    /// Whether an id of a block of this node is on another by now.
    pub(crate) fn is_claimed(&self, id: UserId) -> bool {
        self.shared.claims.of(id).is_some()
    }
}

impl Guest {
    /// Whether nobody has taken the id meanwhile.
    pub(crate) fn is_current(&self) -> bool {
        let phase = self
            .shared
            .guests
            .with(self.id, self.number, |stay| stay.phase);
        phase == Some(Phase::Here)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let is_over = self.shared.guests.with(self.id, self.number, |stay| {
            stay.users = stay.users.saturating_sub(1);
            stay.users == 0 && stay.leave()
        });
        if is_over == Some(true) {
            self.shared.forget_guest(self.id, self.number);
        }
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Shared {
    async fn take_back(self: &Arc<Self>, id: UserId, lineage: Lineage) -> Result<Tenure, Refusal> {
        loop {
            let changed = self.guests.changed.notified();
            match self.admit(id, lineage) {
                Admission::Home => return Ok(Tenure::Home),
                Admission::Stays(guest) => return Ok(Tenure::Guest(Box::new(guest))),
                Admission::Refused(refusal) => return Err(refusal),
                Admission::Wait => changed.await,
                Admission::Arrives(number, previous) => {
                    // A task of its own, since whoever waits here may leave at any time.
                    let (tell, told) = oneshot::channel();
                    let staying = Staying {
                        id,
                        lineage,
                        number,
                    };
                    let arriving = arrive(self.clone(), staying, previous);
                    self.tracker.spawn(async move {
                        // Whoever has left has left: the guest goes with the answer.
                        let _left = tell.send(arriving.await).is_err();
                    });
                    let arrived = told.await.unwrap_or(Err(Refusal::Unavailable));
                    return arrived.map(|guest| Tenure::Guest(Box::new(guest)));
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, id: UserId, lineage: Lineage) -> Admission {
        let mut table = self.guests.table();
        if let Some(stay) = table.get_mut(&id) {
            if stay.phase != Phase::Here {
                return Admission::Wait;
            }
            if stay.lineage != lineage {
                return Admission::Refused(Refusal::InUse);
            }
            stay.users += 1;
            return Admission::Stays(Guest {
                shared: self.clone(),
                id,
                number: stay.number,
            });
        }
        let previous = match self.come_home(id, lineage) {
            Some(Own::Home) => return Admission::Home,
            Some(Own::InUse) => return Admission::Refused(Refusal::InUse),
            Some(Own::From(previous)) => Some(previous),
            None if table.len() >= self.settings.claims as usize => {
                return Admission::Refused(Refusal::Unavailable);
            }
            None => None,
        };
        Admission::Arrives(self.guests.begin(&mut table, id, lineage), previous)
    }

    /// Gives a guest to whoever asks for it by name, once it is settled whether it is here; what was
    /// seen of its messages.
    pub(super) async fn give(&self, id: UserId, lineage: Lineage) -> Reply {
        let asked = async {
            loop {
                let changed = self.guests.changed.notified();
                let (phase, task) = match self.guests.table().get(&id) {
                    None => return Reply::Granted(Grant::default()),
                    Some(stay) if stay.lineage != lineage => {
                        return Reply::Refused(Refusal::InUse);
                    }
                    Some(stay) => (stay.phase, stay.task.clone()),
                };
                let Some(task) = task.filter(|_| phase != Phase::Arriving) else {
                    changed.await;
                    continue;
                };
                let (tell, told) = oneshot::channel();
                if task.takers.send(tell).await.is_ok()
                    && let Ok(cut) = told.await
                {
                    return Reply::Granted(Grant {
                        cut,
                        ..Grant::default()
                    });
                }
                // The task has ended otherwise.
                changed.await;
            }
        };
        let given = timeout(self.settings.link_timeout, asked).await;
        given.unwrap_or(Reply::Refused(Refusal::Unavailable))
    }

    /// A guest is here no more: another node has it.
    fn evict(&self, id: UserId, number: u64, lineage: Lineage) {
        // Who has no seat yet sees that; and nobody comes anew before this is over.
        let leaving = |stay: &mut Stay| stay.phase = Phase::Leaving;
        if self.guests.with(id, number, leaving).is_some() {
            self.directory.evict(id, lineage);
            self.guests.remove(id, number);
        }
    }

    /// A guest has left without a link. Nobody can be told: its claim lapses, where it is not this node's.
    fn forget_guest(&self, id: UserId, number: u64) {
        self.release(self.node, id, None, &Cut::default());
        self.guests.remove(id, number);
    }

    /// A guest can have its id no longer. The user is told to end, and the guest leaves at once and in
    /// order: where another node has claimed the id, that may be about to ask what was seen.
    fn turn_out(&self, staying: Staying, refusal: Refusal) {
        let Staying {
            id,
            lineage,
            number,
        } = staying;
        let leaving = |stay: &mut Stay| stay.phase = Phase::Leaving;
        if self.guests.with(id, number, leaving).is_none() {
            return;
        }
        if refusal == Refusal::Unavailable {
            // Nobody else is known to have it: the client may come back with it.
            self.directory.with(id, |seat| {
                if let Some(seat) = seat.filter(|seat| seat.lineage() == lineage) {
                    seat.order(Order::Close {
                        code: close_code::TRY_AGAIN,
                        reason: "the id cannot be had",
                    });
                }
            });
        }
        self.directory.evict(id, lineage);
        if self.guests.with(id, number, Stay::leave) == Some(true) {
            self.forget_guest(id, number);
        }
    }

    /// The guests who are here, by the block of their ids, so many at a time.
    fn guests_by_block(&self) -> Vec<(u64, Vec<Staying>)> {
        let blocks = self.leases.blocks();
        let mut by_block = HashMap::<_, Vec<_>>::new();
        for staying in self.guests.staying(|_| true) {
            let of_block = by_block.entry(blocks.block_of(staying.id)).or_default();
            of_block.push(staying);
        }
        let mut parts = Vec::new();
        for (block, guests) in by_block {
            for some in guests.chunks(RENEWED_AT_A_TIME) {
                parts.push((block, some.to_vec()));
            }
        }
        parts
    }

    /// This node's own claims on ids of its blocks last as long as their guests are here.
    pub(super) fn renew_own(&self) {
        let mut guests = self.guests.staying(|_| true);
        guests.retain(|staying| self.leases.holds(staying.id));
        for staying in guests {
            if self.keeps(staying) == Some(false) {
                self.turn_out(staying, Refusal::InUse);
            }
        }
    }

    /// Whether an id of a block of this node is still had by a guest who is here; nothing where that one
    /// has left.
    fn keeps(&self, staying: Staying) -> Option<bool> {
        let Staying {
            id,
            lineage,
            number,
        } = staying;
        // Under the lock, so that no claim is renewed that is being released.
        let keep = |stay: &mut Stay| {
            let is_here = stay.phase == Phase::Here;
            is_here.then(|| self.keep_own(id, lineage))
        };
        self.guests.with(id, number, keep).flatten()
    }

    /// Tells a node that holds blocks, from now on or again, which ids of them are here.
    pub(super) async fn tell_holder(&self, link: &Link, holder: Node, blocks: &[u64]) {
        for (block, guests) in self.guests_by_block() {
            if !blocks.contains(&block) {
                continue;
            }
            for staying in &guests {
                self.guests.note_holder(*staying, Some(holder));
            }
            let renewal = Ask::Renew(self.node, named(&guests)).encode();
            let to = self.subjects.claims(holder);
            // Fails where the connection has ended, and then they are claimed again by the next.
            let _ended = link.publish(to, None, renewal).await.is_err();
        }
    }
}

/// As messages name them.
fn named(guests: &[Staying]) -> Vec<(UserId, Lineage)> {
    let named = guests.iter().map(|staying| (staying.id, staying.lineage));
    named.collect()
}

/// Claims an id for a new connection; of a block of this node, from the node that has it.
async fn arrive(
    shared: Arc<Shared>,
    staying: Staying,
    previous: Option<Node>,
) -> Result<Guest, Refusal> {
    let Staying {
        id,
        lineage,
        number,
    } = staying;
    let claimant = Claimant {
        node: shared.node,
        id,
        lineage,
        again: false,
    };
    let link = shared.link();
    let bid = async {
        let link = link.as_ref().ok_or(Refusal::Unavailable)?;
        let subscriber = subscribe(&shared, link, id).await;
        let subscriber = subscriber.map_err(|Lost| Refusal::Unavailable)?;
        bid(&shared, link, claimant, previous, subscriber).await
    };
    match (bid.await, link) {
        (Ok(arrival), Some(link)) => {
            let guest = Guest {
                shared: shared.clone(),
                id,
                number,
            };
            shared.guests.with(id, number, |stay| stay.users += 1);
            settle(&shared, link, claimant, number, arrival);
            Ok(guest)
        }
        (refused, _) => {
            if previous.is_some() {
                shared.release(shared.node, id, previous, &Cut::default());
            }
            shared.guests.remove(id, number);
            Err(refused.err().unwrap_or(Refusal::Unavailable))
        }
    }
}

async fn subscribe(shared: &Shared, link: &Link, id: UserId) -> Result<Subscriber, Lost> {
    let subject = shared.subjects.user(id);
    link.client.subscribe(subject).await.map_err(|_ended| Lost)
}

/// Asks whoever has the id for it; where it is of a block of this `own` node, that other node.
async fn bid(
    shared: &Shared,
    link: &Link,
    claimant: Claimant,
    own: Option<Node>,
    subscriber: Subscriber,
) -> Result<Arrival, Refusal> {
    let block = shared.leases.blocks().block_of(claimant.id);
    let claim = Ask::Claim(claimant).encode();
    let asked = match own {
        Some(_) => Asked::Said(Reply::Granted(Grant {
            holder: Some(shared.node),
            previous: own,
            cut: Cut::default(),
        })),
        None => ask(link, shared.subjects.claim(block), claim).await,
    };
    let grant = match asked {
        Asked::Said(Reply::Granted(grant)) => grant,
        Asked::Said(Reply::Refused(refusal)) => return Err(refusal),
        // Nobody holds the block. Another node may have the id, or want it at the same time.
        Asked::Nobody => return bid_alone(shared, link, claimant, subscriber).await,
        Asked::Said(Reply::Lost(_)) | Asked::Silence => {
            hand_back(shared, link, claimant, None).await;
            return Err(Refusal::Unavailable);
        }
    };
    let mut cut = grant.cut;
    if let Some(previous) = grant.previous.filter(|node| *node != shared.node) {
        let give = Ask::Give(claimant.id, claimant.lineage).encode();
        match ask(link, shared.subjects.give(previous), give).await {
            Asked::Said(Reply::Granted(given)) => cut.join(&given.cut),
            // It is gone, and has seen nothing since.
            Asked::Nobody => {}
            // It may take messages still.
            Asked::Said(_) | Asked::Silence => {
                hand_back(shared, link, claimant, Some(previous)).await;
                return Err(Refusal::Unavailable);
            }
        }
    }
    Ok(Arrival {
        subscriber,
        // That waits in the subscription.
        early: Early::new(0),
        holder: grant.holder,
        cut,
        withdrawn: None,
    })
}

/// The same where nobody holds the block: whoever has the id, or wants it too, listens to it.
async fn bid_alone(
    shared: &Shared,
    link: &Link,
    claimant: Claimant,
    mut subscriber: Subscriber,
) -> Result<Arrival, Refusal> {
    let claim = Ask::Claim(claimant).encode();
    let mut asking = std::pin::pin!(ask(link, shared.subjects.user(claimant.id), claim));
    let mut early = Early::new(shared.settings.inbound_messages);
    let mut refused = None;
    let asked = loop {
        tokio::select! {
            biased;
            asked = &mut asking => break asked,
            Some(message) = subscriber.next() => {
                if !is_ask(&message.payload) {
                    if !early.push(message) {
                        shared.link_metrics.overrun();
                    }
                    continue;
                }
                match meet(link, claimant, &message, false).await {
                    Met::Yielded => return Err(Refusal::InUse),
                    Met::Refused(node) => refused = Some(node),
                    Met::Nobody => {}
                }
            }
        }
    };
    let mut grant = match asked {
        Asked::Said(Reply::Granted(grant)) => grant,
        Asked::Nobody => Grant::default(),
        Asked::Said(Reply::Refused(refusal)) => {
            // Whoever has refused may wait for an answer of its own.
            while let Some(message) = arrived(&mut subscriber).await {
                if is_ask(&message.payload) {
                    meet(link, claimant, &message, true).await;
                }
            }
            return Err(refusal);
        }
        Asked::Said(Reply::Lost(_)) | Asked::Silence => return Err(Refusal::Unavailable),
    };
    let withdrawn = grant.previous.take();
    Ok(Arrival {
        subscriber,
        early,
        holder: None,
        cut: grant.cut,
        withdrawn: withdrawn.filter(|node| refused != Some(*node)),
    })
}

/// Tells the holder of a block that nothing came of a claim.
async fn hand_back(shared: &Shared, link: &Link, claimant: Claimant, previous: Option<Node>) {
    let block = shared.leases.blocks().block_of(claimant.id);
    let release = Ask::Release(claimant.node, claimant.id, previous, Cut::default()).encode();
    let to = shared.subjects.claim(block);
    // Fails where the connection has ended, and then the claim lapses.
    let _ended = link.publish(to, None, release).await.is_err();
}

/// What came of meeting another claim.
enum Met {
    Yielded,
    Refused(Node),
    /// It was no claim.
    Nobody,
}

/// Of two nodes that claim an id at the same time while nobody holds its block, the one of the higher
/// number has it; or the other, where this one has been refused.
async fn meet(link: &Link, claimant: Claimant, message: &Message, is_refused: bool) -> Met {
    let Some(Ask::Claim(other)) = Ask::decode(&message.payload) else {
        return Met::Nobody;
    };
    let is_first = other.lineage == claimant.lineage && other.node.0 > claimant.node.0;
    let (met, reply) = if is_first || is_refused {
        let grant = Grant {
            previous: Some(claimant.node),
            ..Grant::default()
        };
        (Met::Yielded, Reply::Granted(grant))
    } else {
        (Met::Refused(other.node), Reply::Refused(Refusal::InUse))
    };
    if let Some(to) = message.reply.clone() {
        // Fails where the connection has ended, and with it both claims.
        let _ended = link.publish(to, None, reply.encode()).await.is_err();
    }
    met
}

/// What came of a question.
enum Asked {
    Said(Reply),
    /// NATS knows of nobody who could answer.
    Nobody,
    /// No answer, or none that is understood.
    Silence,
}

async fn ask(link: &Link, subject: Subject, question: bytes::Bytes) -> Asked {
    let asked = tokio::select! {
        asked = link.client.request(subject, question) => asked,
        () = link.lost.cancelled() => return Asked::Silence,
    };
    match asked {
        Ok(answer) => Reply::decode(&answer.payload).map_or(Asked::Silence, Asked::Said),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Asked::Nobody,
        Err(_) => Asked::Silence,
    }
}

/// Lets a guest stay whose id was granted; its messages are taken from now on.
fn settle(
    shared: &Arc<Shared>,
    link: Arc<Link>,
    claimant: Claimant,
    number: u64,
    arrival: Arrival,
) {
    let Arrival {
        subscriber,
        early,
        holder,
        cut,
        withdrawn,
    } = arrival;
    let (takers, asks) = mpsc::channel(1);
    let task = Task {
        link: link.number,
        takers,
        leave: CancellationToken::new(),
        holder: Arc::new(AtomicU64::new(holder.map_or(0, |node| node.0))),
    };
    let host = Host {
        intake: Intake::new(shared.clone()),
        shared: shared.clone(),
        link,
        id: claimant.id,
        lineage: claimant.lineage,
        number,
        cut,
        limit: None,
        withdrawn,
        task: task.clone(),
        is_over: false,
    };
    let begun = shared.guests.with(claimant.id, number, |stay| {
        stay.phase = Phase::Here;
        stay.task = Some(task);
    });
    shared.guests.changed.notify_waiters();
    // Else it has given way while it was claimed again.
    if begun.is_some() {
        shared.tracker.spawn(host.stay(subscriber, early, asks));
    }
}

/// Takes the messages of one guest for as long as a link lasts.
struct Host {
    shared: Arc<Shared>,
    link: Arc<Link>,
    id: UserId,
    lineage: Lineage,
    number: u64,
    intake: Intake,
    /// What was seen, here or by whoever had the id before.
    cut: Cut,
    /// Beyond this it is the holder's again.
    limit: Option<Cut>,
    /// A node that has given way, whose own claim may be still to come.
    withdrawn: Option<Node>,
    task: Task,
    /// Another node has the id.
    is_over: bool,
}

impl Host {
    async fn stay(mut self, mut subscriber: Subscriber, early: Early, mut takers: Takers) {
        let mut wakes = Wakes::default();
        for message in early.messages {
            self.on_message(&message, &mut wakes).await;
        }
        // Nothing else may come for long.
        wakes.wake();
        let leave = self.task.leave.clone();
        while !self.is_over {
            tokio::select! {
                biased;
                () = self.link.lost.cancelled() => return self.cut_off(),
                Some(taker) = takers.recv() => {
                    // All that has come is behind what is handed over.
                    self.take_what_is_there(&mut subscriber, &mut wakes).await;
                    self.shared.evict(self.id, self.number, self.lineage);
                    // Whoever asked may be gone; the id is its.
                    let _gone = taker.send(self.cut).is_err();
                    return;
                }
                () = leave.cancelled() => {
                    return self.leave((subscriber, takers), &mut wakes).await;
                }
                next = subscriber.next() => {
                    let Some(message) = next else {
                        self.link.lost.cancel();
                        continue;
                    };
                    self.on_message(&message, &mut wakes).await;
                    self.take_what_is_there(&mut subscriber, &mut wakes).await;
                }
            }
        }
    }

    async fn take_what_is_there(&mut self, subscriber: &mut Subscriber, wakes: &mut Wakes) {
        while let Some(message) = arrived(subscriber).await {
            self.on_message(&message, wakes).await;
        }
        wakes.wake();
    }

    /// The link is lost. Who is here stays, and the id is claimed again by the next.
    fn cut_off(self) {
        let is_over = self.shared.guests.with(self.id, self.number, |stay| {
            // Else it was claimed again meanwhile.
            let is_own = stay.is_served_by(self.link.number);
            if is_own {
                stay.task = None;
            }
            is_own && stay.phase == Phase::Leaving
        });
        if is_over == Some(true) {
            self.shared.forget_guest(self.id, self.number);
        }
    }

    /// Gives the id back to the holder of its block, up to what that has seen by then; or, where another
    /// node has claimed it meanwhile, to that one.
    async fn leave(
        mut self,
        (mut subscriber, mut takers): (Subscriber, Takers),
        wakes: &mut Wakes,
    ) {
        let given_back = self.release().await;
        let taker = match &given_back {
            Some(grant) if grant.previous.is_some() => {
                self.is_asked(&mut subscriber, &mut takers, wakes).await
            }
            _ => None,
        };
        if taker.is_some() {
            self.take_what_is_there(&mut subscriber, wakes).await;
        } else {
            self.limit = given_back.map(|grant| grant.cut);
            self.drain(&mut subscriber, wakes).await;
        }
        self.shared.guests.remove(self.id, self.number);
        takers.close();
        let more = std::iter::from_fn(|| takers.try_recv().ok());
        for taker in taker.into_iter().chain(more) {
            // Whoever asked may be gone; the id is its.
            let _gone = taker.send(self.cut.clone()).is_err();
        }
    }

    /// What the holder of the block says to a release. What comes meanwhile waits: one of the two has seen
    /// it already, and is told or tells so.
    async fn release(&mut self) -> Option<Grant> {
        if self.shared.leases.holds(self.id) {
            return Some(self.shared.release_own(self.id, &self.cut));
        }
        let block = self.shared.leases.blocks().block_of(self.id);
        let release = Ask::Release(self.shared.node, self.id, None, self.cut.clone()).encode();
        match ask(&self.link, self.shared.subjects.claim(block), release).await {
            Asked::Said(Reply::Granted(grant)) => Some(grant),
            _ => None,
        }
    }

    /// Waits for another node to ask for the id, since it has claimed it.
    async fn is_asked(
        &mut self,
        subscriber: &mut Subscriber,
        takers: &mut Takers,
        wakes: &mut Wakes,
    ) -> Option<oneshot::Sender<Cut>> {
        let patience = sleep(self.shared.settings.link_timeout);
        let mut patience = std::pin::pin!(patience);
        let link = self.link.clone();
        loop {
            tokio::select! {
                biased;
                () = link.lost.cancelled() => return None,
                taker = takers.recv() => return taker,
                () = &mut patience => return None,
                Some(message) = subscriber.next() => {
                    self.on_message(&message, wakes).await;
                    wakes.wake();
                }
            }
        }
    }

    async fn drain(&mut self, subscriber: &mut Subscriber, wakes: &mut Wakes) {
        // Fails where the connection has ended, and then nothing comes.
        let _ended = subscriber.drain().await.is_err();
        loop {
            let next = tokio::select! {
                biased;
                next = subscriber.next() => next,
                () = self.link.lost.cancelled() => None,
            };
            let Some(message) = next else { break };
            self.on_message(&message, wakes).await;
        }
        if let Some(limit) = &self.limit {
            self.cut.join(limit);
        }
        wakes.wake();
    }

    async fn on_message(&mut self, message: &Message, wakes: &mut Wakes) {
        if is_ask(&message.payload) {
            return self.on_ask(message).await;
        }
        let now = self.shared.now();
        let reply = message.reply.as_deref().and_then(reply_to);
        if let Some(reply) = reply {
            if self.is_over || self.cut.covers(reply) || self.is_holders(reply) {
                return;
            }
            self.cut.note(reply);
            if self.is_to_say_what_was_seen(reply) {
                self.intake.note_seen(reply, wakes);
            }
        }
        self.shared
            .link_metrics
            .bytes_received(message.payload.len());
        self.intake.on_letter(message, reply, (self.id, now), wakes);
    }

    /// Whether it is beyond what the holder had seen when it took the id back.
    fn is_holders(&self, reply: ReplyTo) -> bool {
        let limit = self.limit.as_ref();
        limit.is_some_and(|limit| !limit.covers(reply))
    }

    /// The holder of the block says it, to all but itself.
    fn is_to_say_what_was_seen(&self, reply: ReplyTo) -> bool {
        let holder = self.task.holder.load(Ordering::Relaxed);
        holder == 0 || holder == reply.node.0
    }

    /// Another node claims the id, and nobody holds its block.
    async fn on_ask(&mut self, message: &Message) {
        let Some(Ask::Claim(claimant)) = Ask::decode(&message.payload) else {
            debug!(subject = %message.subject, "unknown question");
            return self.shared.link_metrics.malformed();
        };
        let is_leaving = self.task.leave.is_cancelled();
        let has_withdrawn = self
            .withdrawn
            .take_if(|node| *node == claimant.node)
            .is_some();
        let may = claimant.lineage == self.lineage && !claimant.again && !has_withdrawn;
        let reply = if self.is_over {
            return;
        } else if may || is_leaving {
            self.shared.evict(self.id, self.number, self.lineage);
            self.is_over = true;
            Reply::Granted(Grant {
                cut: self.cut.clone(),
                ..Grant::default()
            })
        } else {
            Reply::Refused(Refusal::InUse)
        };
        if let Some(to) = message.reply.clone() {
            // Fails where the connection has ended, and then nobody is there to hear it.
            let _ended = self.link.publish(to, None, reply.encode()).await.is_err();
        }
    }
}

/// A guest who is to be claimed again by a new link.
pub(super) struct Returning {
    staying: Staying,
    subscriber: Subscriber,
}

/// Listens again to what is for the guests who are here and are not served by this link.
pub(super) async fn listen_again(shared: &Shared, link: &Link) -> Result<Vec<Returning>, Lost> {
    let mut returning = Vec::new();
    let is_meant = |stay: &Stay| !stay.is_served_by(link.number);
    for staying in shared.guests.staying(is_meant) {
        let subscriber = subscribe(shared, link, staying.id).await?;
        returning.push(Returning {
            staying,
            subscriber,
        });
    }
    Ok(returning)
}

/// Claims again who was here, and then renews all claims for as long as the link lasts.
pub(super) async fn keep(shared: Arc<Shared>, link: Arc<Link>, mut returning: Vec<Returning>) {
    let mut ticks = interval(shared.settings.claim_timeout / RENEWALS);
    loop {
        stream::iter(returning)
            .for_each_concurrent(CLAIMS_AT_A_TIME, |one| claim_again(&shared, &link, one))
            .await;
        tokio::select! {
            () = link.lost.cancelled() => return,
            _ = ticks.tick() => {}
        }
        stream::iter(shared.guests_by_block())
            .for_each_concurrent(CLAIMS_AT_A_TIME, |(block, guests)| {
                renew(&shared, &link, block, guests)
            })
            .await;
        // Whose id was granted just when the link before was lost.
        returning = match listen_again(&shared, &link).await {
            Ok(returning) => returning,
            Err(Lost) => return link.lost.cancel(),
        };
    }
}

async fn claim_again(shared: &Arc<Shared>, link: &Arc<Link>, returning: Returning) {
    let Returning {
        staying,
        subscriber,
    } = returning;
    let Staying {
        id,
        lineage,
        number,
    } = staying;
    let mut own = None;
    if shared.leases.holds(id) {
        match shared.keeps(staying) {
            Some(true) => own = Some(shared.node),
            Some(false) => return shared.turn_out(staying, Refusal::InUse),
            None => return,
        }
    }
    let claimant = Claimant {
        node: shared.node,
        id,
        lineage,
        again: true,
    };
    match bid(shared, link, claimant, own, subscriber).await {
        Ok(arrival) => settle(shared, link.clone(), claimant, number, arrival),
        Err(_) if link.lost.is_cancelled() => {}
        Err(refusal) => {
            debug!(%id, ?refusal, "a guest cannot stay");
            shared.turn_out(staying, refusal);
        }
    }
}

async fn renew(shared: &Shared, link: &Link, block: u64, guests: Vec<Staying>) {
    if shared.leases.list().contains(&block) {
        // Nobody else has to be told.
        return;
    }
    let renewal = Ask::Renew(shared.node, named(&guests)).encode();
    match ask(link, shared.subjects.claim(block), renewal).await {
        Asked::Said(Reply::Lost(lost)) => {
            for staying in guests {
                if lost.contains(&staying.id) {
                    shared.turn_out(staying, Refusal::InUse);
                }
            }
        }
        Asked::Nobody => {
            for staying in guests {
                shared.guests.note_holder(staying, None);
            }
        }
        Asked::Said(_) | Asked::Silence => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{node, seat};
    use super::*;
    use crate::directory::Flushed;

    /// An id of a block of another node, as long as a node holds the first block.
    const ELSEWHERE: u64 = 1025;

    fn user(id: u64) -> UserId {
        UserId::new(id).unwrap()
    }

    fn lineage() -> Lineage {
        Lineage::from(1)
    }

    /// A guest of a node, and its connection; where it is served by a link, what the task of it hears.
    fn guest(shared: &Arc<Shared>, id: u64, link: Option<u32>) -> (Staying, Guest, Option<Takers>) {
        let (id, lineage) = (user(id), lineage());
        let number = shared.guests.begin(&mut shared.guests.table(), id, lineage);
        let (takers, asks) = mpsc::channel(1);
        shared.guests.with(id, number, |stay| {
            stay.users = 1;
            stay.phase = Phase::Here;
            stay.task = link.map(|link| Task {
                link,
                takers,
                leave: CancellationToken::new(),
                holder: Arc::default(),
            });
        });
        let guest = Guest {
            shared: shared.clone(),
            id,
            number,
        };
        let staying = Staying {
            id,
            lineage,
            number,
        };
        (staying, guest, link.map(|_| asks))
    }

    fn phase(shared: &Shared, staying: Staying) -> Option<Phase> {
        let Staying { id, number, .. } = staying;
        shared.guests.with(id, number, |stay| stay.phase)
    }

    fn is_refused(admission: &Admission, expected: Refusal) -> bool {
        matches!(admission, Admission::Refused(refusal) if *refusal == expected)
    }

    #[test]
    fn who_is_turned_out_has_no_seat_and_nobody_is_let_in_before_the_id_is_given_back() {
        let refusals = [
            (Refusal::InUse, close_code::TAKEN_OVER),
            (Refusal::Unavailable, close_code::TRY_AGAIN),
        ];
        for (refusal, expected) in refusals {
            let shared = node(|_| {});
            let (staying, guest, takers) = guest(&shared, ELSEWHERE, Some(1));
            let seated = seat(&shared, staying.id, staying.lineage);
            assert!(guest.is_current());
            shared.turn_out(staying, refusal);
            assert!(!seated.is_open());
            let (order, _) = seated.settle(Flushed::default());
            assert!(matches!(order, Some(Order::Close { code, .. }) if code == expected));
            assert!(!guest.is_current(), "nor has one who is seated only now");
            let admission = shared.admit(staying.id, staying.lineage);
            assert!(matches!(admission, Admission::Wait));
            drop(guest);
            assert_eq!(phase(&shared, staying), Some(Phase::Leaving));
            // Its task has ended.
            drop(takers);
            shared.guests.remove(staying.id, staying.number);
            let admission = shared.admit(staying.id, staying.lineage);
            assert!(matches!(admission, Admission::Arrives(_, None)));
        }
    }

    #[test]
    fn who_leaves_without_a_link_leaves_at_once() {
        let shared = node(|_| {});
        for id in [1, ELSEWHERE] {
            let (staying, guest, _) = guest(&shared, id, None);
            shared.renew_own();
            assert_eq!(shared.claims.len(), usize::from(id == 1));
            drop(guest);
            assert_eq!(phase(&shared, staying), None);
            assert_eq!(shared.claims.len(), 0);
        }
        for id in [2, ELSEWHERE] {
            let (staying, guest, _) = guest(&shared, id, None);
            shared.renew_own();
            shared.turn_out(staying, Refusal::Unavailable);
            assert_eq!(phase(&shared, staying), None);
            assert!(!guest.is_current());
            // What is over stays so.
            let (next, _newer, _) = self::guest(&shared, id, None);
            shared.turn_out(staying, Refusal::InUse);
            drop(guest);
            assert_eq!(phase(&shared, next), Some(Phase::Here));
        }
    }

    #[test]
    fn the_last_of_several_connections_leaves() {
        let shared = node(|_| {});
        let (staying, first, _takers) = guest(&shared, ELSEWHERE, Some(1));
        let Admission::Stays(second) = shared.admit(staying.id, staying.lineage) else {
            panic!("it is here");
        };
        let stranger = shared.admit(staying.id, Lineage::from(2));
        assert!(is_refused(&stranger, Refusal::InUse));
        drop(first);
        assert_eq!(phase(&shared, staying), Some(Phase::Here));
        drop(second);
        assert_eq!(phase(&shared, staying), Some(Phase::Leaving));
    }

    #[test]
    fn no_more_guests_come_than_may() {
        let shared = node(|settings| settings.claims = 2);
        let bring = |id| shared.admit(user(id), lineage());
        for id in [ELSEWHERE, ELSEWHERE + 1] {
            assert!(matches!(bring(id), Admission::Arrives(_, None)));
        }
        assert!(is_refused(&bring(ELSEWHERE + 2), Refusal::Unavailable));
        assert!(matches!(bring(ELSEWHERE), Admission::Wait));
        assert!(matches!(bring(1), Admission::Home), "that one is none");
        assert_eq!(shared.guests.len(), 2);
    }

    #[test]
    fn a_guest_stays_when_its_block_becomes_this_nodes() {
        let shared = node(|_| {});
        let (staying, guest, _takers) = guest(&shared, ELSEWHERE, Some(1));
        shared.renew_own();
        assert_eq!(shared.claims.len(), 0);
        shared.leases.add(2);
        shared.renew_own();
        assert_eq!(shared.claims.of(staying.id), Some(shared.node));
        assert!(guest.is_current());
        // Until another node claims the id.
        let claimant = Claimant {
            node: Node(1 << 50),
            id: staying.id,
            lineage: staying.lineage,
            again: false,
        };
        let Reply::Granted(grant) = shared.grant(claimant, &Cut::default()) else {
            panic!("it may");
        };
        assert_eq!(grant.previous, Some(shared.node));
        shared.renew_own();
        assert!(!guest.is_current());
        assert_eq!(shared.claims.of(staying.id), Some(claimant.node));
    }

    #[test]
    fn those_whom_the_present_link_does_not_serve_are_claimed_again() {
        let shared = node(|_| {});
        let _guests = [None, Some(1), Some(2)].map(|link| {
            let id = ELSEWHERE + u64::from(link.unwrap_or(0));
            guest(&shared, id, link)
        });
        let (leaving, _guest, _takers) = guest(&shared, ELSEWHERE + 3, Some(1));
        shared.turn_out(leaving, Refusal::InUse);
        let meant = shared.guests.staying(|stay| !stay.is_served_by(2));
        let mut meant: Vec<_> = meant.iter().map(|staying| staying.id.get()).collect();
        meant.sort_unstable();
        assert_eq!(meant, [ELSEWHERE, ELSEWHERE + 1]);
    }

    #[test]
    fn renewals_are_of_one_block_and_of_a_bounded_size() {
        let size = u32::try_from(2 * RENEWED_AT_A_TIME).unwrap();
        let shared = node(|settings| settings.block_size = size.try_into().unwrap());
        let ids = u64::from(size) / 2..u64::from(size) * 2;
        let _guests: Vec<_> = ids.clone().map(|id| guest(&shared, id, Some(1))).collect();
        let blocks = shared.leases.blocks();
        let parts = shared.guests_by_block();
        let mut named = Vec::new();
        for (block, guests) in parts {
            assert!(guests.len() <= RENEWED_AT_A_TIME);
            assert!(guests.iter().all(|one| blocks.block_of(one.id) == block));
            named.extend(guests.iter().map(|one| one.id));
        }
        named.sort_unstable();
        assert!(named.into_iter().map(UserId::get).eq(ids));
    }

    fn message(text: &'static str) -> Message {
        Message {
            subject: "chat.b.1.1".into(),
            reply: None,
            payload: text.into(),
            headers: None,
            status: None,
            description: None,
            length: text.len(),
        }
    }

    #[test]
    fn what_comes_early_is_kept_up_to_a_bound() {
        let mut early = Early::new(2);
        assert!(early.push(message("one")) && early.push(message("two")));
        assert!(!early.push(message("three")));
        let kept = early.messages.iter().map(|message| &message.payload[..]);
        assert_eq!(kept.collect::<Vec<_>>(), [b"one", b"two"]);
    }
}
