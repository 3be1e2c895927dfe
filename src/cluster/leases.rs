//! Who holds which block of ids. Blocks are numbered by a JetStream stream: whoever publishes a lease to
//! it holds the block whose number is the sequence number in the acknowledgement. JetStream can lose
//! leases that it has acknowledged, when its host loses power, so a node asks whether somebody holds a
//! block before it uses it, and asks again for its own whenever it was away.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::jetstream::stream::{self, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{RequestErrorKind, Subscriber};
use futures_util::{StreamExt, stream as streams};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::handover::Ask;
use super::inbound::take_block;
use super::link::{Link, Lost, backoff, chain};
use super::{Shared, Unready};

/// What somebody says who holds the block in question.
pub(super) const HOLDER: &[u8] = b"holder";
/// What somebody says who would like to.
const TAKER: &[u8] = b"taker";
/// Own blocks that are asked for at a time, after an absence.
const QUESTIONS: usize = 16;
/// Leases that the stream keeps: what counts is their number, not what they say.
const LEASES_KEPT: i64 = 16;
/// What the stream's description says before the size of blocks.
const SIZE: &str = "block_size=";

/// Holds this node's blocks for as long as a link lasts.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    link: Arc<Link>,
    jetstream: Context,
    stream_is_sound: bool,
    /// The blocks that are listened to, each with the order to retire.
    blocks: HashMap<u64, CancellationToken>,
    tasks: JoinSet<()>,
}

/// Why there is no new block.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("the connection has ended")]
    Lost(#[from] Lost),
    #[error("cannot have the stream {stream}")]
    Stream {
        stream: String,
        source: async_nats::Error,
    },
    #[error(
        "blocks of the stream {stream} have not {here} ids, cluster.block_size, but as its description says: {there:?}"
    )]
    BlockSize {
        stream: String,
        here: u64,
        there: Option<String>,
    },
    #[error("cannot lease a block")]
    Publish(#[source] async_nats::Error),
    #[error("cannot find out who holds block {block}")]
    Ask {
        block: u64,
        source: async_nats::Error,
    },
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, link: Arc<Link>) -> Self {
        Self {
            jetstream: jetstream::new(link.client.clone()),
            stream_is_sound: false,
            blocks: HashMap::new(),
            tasks: JoinSet::new(),
            shared,
            link,
        }
    }

    /// Listens to the blocks that are held.
    pub(super) async fn listen_again(&mut self) -> Result<(), Lost> {
        let blocks = self.shared.leases.list();
        for block in &blocks {
            let subscriber = self.subscribe(*block).await?;
            self.listen(*block, subscriber);
        }
        if !blocks.is_empty() {
            self.say_held(blocks).await?;
        }
        Ok(())
    }

    /// Whether there are blocks.
    pub(super) fn holds_any(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Lets those who have ids of these blocks say so.
    async fn say_held(&self, blocks: Vec<u64>) -> Result<(), Lost> {
        let subject = self.shared.subjects.holders();
        let holding = Ask::Holding(self.shared.node, blocks).encode();
        self.link.publish(subject, None, holding).await
    }

    /// Leases blocks ahead of need and retires those that are over, until it is time to close or the
    /// link is lost. What has come for them is taken before this ends.
    pub(super) async fn keep(mut self, closing: CancellationToken) {
        let lost = self.link.lost.clone();
        tokio::select! {
            () = closing.cancelled() => {}
            () = lost.cancelled() => {}
            Err(Lost) = self.work() => lost.cancel(),
        }
        for retired in self.blocks.values() {
            retired.cancel();
        }
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                error!(%error, "a block's task has failed");
            }
        }
    }

    async fn work(&mut self) -> Result<(), Lost> {
        self.ask_for_own().await;
        let mut failures = 0;
        loop {
            for block in self.shared.leases.take_retired() {
                if let Some(retired) = self.blocks.remove(&block) {
                    retired.cancel();
                }
                self.shared.forget_seen(block);
            }
            while self.tasks.try_join_next().is_some() {}
            let leases = &self.shared.leases;
            if leases.unspent() >= leases.blocks().size() {
                leases.changed().await;
                continue;
            }
            match self.lease().await {
                Ok(()) => {
                    self.shared.set_unready(Unready::NoId);
                    failures = 0;
                }
                Err(LeaseError::Lost(lost)) => return Err(lost),
                Err(error) => {
                    self.shared.set_unready(match error {
                        LeaseError::BlockSize { .. } => Unready::BlockSize,
                        _ => Unready::NoJetStream,
                    });
                    if failures == 0 {
                        error!(error = chain(&error), "no new block of ids");
                    }
                    failures += 1;
                    tokio::time::sleep(backoff(failures)).await;
                }
            }
        }
    }

    /// Leases a block, and gives its ids from then on.
    async fn lease(&mut self) -> Result<(), LeaseError> {
        if !self.stream_is_sound {
            self.check_stream().await?;
            self.stream_is_sound = true;
        }
        loop {
            let block = self.next_block().await?;
            let highest = self.shared.highest_block.fetch_max(block, Ordering::AcqRel);
            if block <= highest {
                // Ours, or given to somebody while ours was: the stream was set back.
                if block == 1 {
                    warn!(highest, "the stream of leases begins anew");
                }
                continue;
            }
            let subscriber = self.subscribe(block).await?;
            self.say_held(vec![block]).await?;
            let asked = self.ask(block, TAKER).await;
            if asked.map_err(|source| LeaseError::Ask { block, source })? {
                warn!(block, "a block was leased that another node holds");
                self.shared.link_metrics.block_conflict();
                continue;
            }
            self.shared.leases.add(block);
            // Whoever is a guest here with an id of it goes on taking its messages.
            self.shared.renew_own();
            self.listen(block, subscriber);
            return Ok(());
        }
    }

    async fn check_stream(&self) -> Result<(), LeaseError> {
        let here = self.shared.leases.blocks().size();
        let stream = self.shared.subjects.stream();
        let config = stream::Config {
            name: stream.clone(),
            subjects: vec![self.shared.subjects.lease().to_string()],
            description: Some(format!("blocks of Switchboard's ids, {SIZE}{here}")),
            max_messages: LEASES_KEPT,
            storage: StorageType::File,
            num_replicas: self.shared.settings.lease_replicas as usize,
            deny_delete: true,
            deny_purge: true,
            ..stream::Config::default()
        };
        let found = match self.jetstream.get_or_create_stream(config).await {
            Ok(found) => found,
            Err(source) => {
                let source = source.into();
                return Err(LeaseError::Stream { stream, source });
            }
        };
        let there = found.cached_info().config.description.clone();
        let size = there.as_ref().and_then(|text| text.rsplit(SIZE).next());
        if size.is_some_and(|size| size.parse() == Ok(here)) {
            return Ok(());
        }
        Err(LeaseError::BlockSize {
            stream,
            here,
            there,
        })
    }

    /// The number of the next block.
    async fn next_block(&self) -> Result<u64, LeaseError> {
        let lease = self.shared.subjects.lease();
        let published = self.jetstream.publish(lease, TAKER.into()).await;
        let acknowledged = match published {
            Ok(acknowledged) => acknowledged.await,
            Err(error) => Err(error),
        };
        match acknowledged {
            Ok(acknowledged) => Ok(acknowledged.sequence),
            Err(source) => Err(LeaseError::Publish(source.into())),
        }
    }

    /// Whether another node says that it holds a block, or might: only a server that knows of nobody
    /// says that nobody does.
    async fn ask(&self, block: u64, we: &'static [u8]) -> Result<bool, async_nats::Error> {
        let who = self.shared.subjects.who(block);
        match self.link.client.request(who, we.into()).await {
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(false),
            Err(error) if error.kind() == RequestErrorKind::TimedOut => Ok(true),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(true),
        }
    }

    /// Asks whether somebody has leased a block of ours while we were away; gives no more ids of such.
    async fn ask_for_own(&self) {
        let held = self.shared.leases.list();
        let asked = streams::iter(held).map(async |block| {
            let asked = self.ask(block, HOLDER).await;
            (block, asked.unwrap_or(false))
        });
        let mut asked = std::pin::pin!(asked.buffer_unordered(QUESTIONS));
        while let Some((block, is_held)) = asked.next().await {
            if is_held {
                error!(block, "a block of ours is held by another node, too");
                self.shared.link_metrics.block_conflict();
                self.shared.leases.close(block);
            }
        }
    }

    async fn subscribe(&self, block: u64) -> Result<Subscriber, Lost> {
        let subject = self.shared.subjects.block(block);
        let subscribed = self.link.client.subscribe(subject).await;
        subscribed.map_err(|_ended| Lost)
    }

    fn listen(&mut self, block: u64, subscriber: Subscriber) {
        let retired = CancellationToken::new();
        self.blocks.insert(block, retired.clone());
        let (shared, link) = (self.shared.clone(), self.link.clone());
        self.tasks
            .spawn(take_block(shared, link, block, subscriber, retired));
    }
}
