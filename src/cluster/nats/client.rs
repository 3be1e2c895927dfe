//! The real NATS, over the library async-nats. A link is one client of the library, which is kept from connecting
//! again by itself.

use std::sync::Arc;

use async_nats::client::PublishErrorKind;
use async_nats::{
    Client, HeaderMap, HeaderName, HeaderValue, Message, StatusCode, Subject, Subscriber,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::watch;

use super::access::{Access, LinkState};
use super::failure::{BucketFailure, ConnectFailure, LinkLost, PublishFailure};
use super::jetstream::{ClientBucket, Highest, stream_info};
use super::{BucketConfig, Incoming, Nats, NatsLink, Outgoing, Subscription};
use crate::telemetry::trace_context::TRACEPARENT_BYTES;

/// The oldest server that this works with: the time to live of a message came with 2.11.
const SERVER_MIN: [u64; 3] = [2, 11, 0];

/// The header that carries [`Outgoing::traceparent`].
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header that carries [`Outgoing::tracestate`].
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// What it adds to the headers, beside its value.
pub(in crate::cluster) const TRACESTATE_HEADER_BYTES: usize = "tracestate: \r\n".len();
/// What headers with it take on the wire: a version line, its name and value, and the line ends.
pub(in crate::cluster) const HEADER_BYTES: usize =
    "NATS/1.0\r\ntraceparent: \r\n\r\n".len() + TRACEPARENT_BYTES;

#[allow(clippy::disallowed_types, reason = "held across a wait, by design")]
type HandOver<T> = tokio::sync::Mutex<T>;

/// The way to the servers of the settings.
pub(in crate::cluster) struct NatsClient {
    access: Access,
    inbox_prefix: String,
    highest: Highest,
}

/// One connection.
#[derive(Clone)]
pub(in crate::cluster) struct ClientLink {
    client: Client,
    state: Arc<LinkState>,
    probe: Arc<RoundTrip>,
    highest: Highest,
}

/// How a link finds out what the server has taken: it sends numbers to itself. It does not ask a subject that
/// nobody listens to, because anybody may listen to everything.
struct RoundTrip {
    subject: Subject,
    /// The last number that was sent. The lock is held while a number is handed over, so that they stay in order.
    sent: HandOver<u64>,
    /// The last number that came back.
    heard: watch::Receiver<u64>,
}

/// The messages of one subject.
pub(in crate::cluster) struct ClientSubscription(Subscriber);

impl NatsClient {
    pub(in crate::cluster) fn new(access: Access, inbox_prefix: String) -> Self {
        Self {
            access,
            inbox_prefix,
            highest: Highest::default(),
        }
    }
}

impl Nats for NatsClient {
    type Link = ClientLink;

    async fn connect(&self) -> Result<ClientLink, ConnectFailure> {
        let (client, state) = self.access.open(self.inbox_prefix.clone()).await?;
        let found = client.server_info().version;
        if !is_recent(&found) {
            let [major, minor, patch] = SERVER_MIN;
            return Err(ConnectFailure::TooOld {
                found,
                needed: format!("{major}.{minor}.{patch}"),
            });
        }
        let probe = RoundTrip::start(&client, state.clone()).await?;
        Ok(ClientLink {
            client,
            state,
            probe: Arc::new(probe),
            highest: self.highest.clone(),
        })
    }
}

/// Whether a version such as `2.11.3-RC.1` is at least [`SERVER_MIN`]. The library's own comparison panics where a part
/// is missing, and brings an engine for regular expressions into the program, half a megabyte.
fn is_recent(version: &str) -> bool {
    let mut parts = version.trim_start_matches('v').split(['.', '-', '+']);
    let mut part = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    let found: [u64; 3] = std::array::from_fn(|_| part());
    found >= SERVER_MIN
}

impl RoundTrip {
    async fn start(client: &Client, state: Arc<LinkState>) -> Result<Self, LinkLost> {
        let subject = Subject::from(client.new_inbox());
        let subscribed = client.subscribe(subject.clone()).await;
        let mut numbers = subscribed.map_err(|_ended| LinkLost)?;
        let (hear, heard) = watch::channel(0);
        #[allow(
            clippy::disallowed_methods,
            reason = "it ends with the last handle of its link"
        )]
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = numbers.next() => next,
                    () = hear.closed() => return,
                };
                let Some(message) = next else {
                    // The library's own word of it can be lost among others.
                    return state.lost.cancel();
                };
                let number = message.payload.as_ref().try_into().map(u64::from_le_bytes);
                // A stranger may write to the subject; only numbers that were sent are looked for.
                if let Ok(number) = number {
                    hear.send_if_modified(|last| {
                        let is_new = number > *last;
                        *last = number.max(*last);
                        is_new
                    });
                }
            }
        });
        Ok(Self {
            subject,
            sent: HandOver::new(0),
            heard,
        })
    }
}

impl NatsLink for ClientLink {
    type Subscription = ClientSubscription;
    type Bucket = ClientBucket;

    fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishFailure> {
        let Outgoing {
            subject,
            reply,
            traceparent,
            tracestate,
            payload,
        } = message;
        let client = &self.client;
        let headers = traceparent.map(|traceparent| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from(traceparent));
            if let Some(tracestate) = tracestate {
                headers.insert(TRACESTATE, HeaderValue::from(tracestate));
            }
            headers
        });
        let published = match (reply, headers) {
            (None, None) => client.publish(subject, payload).await,
            (Some(reply), None) => client.publish_with_reply(subject, reply, payload).await,
            (None, Some(headers)) => client.publish_with_headers(subject, headers, payload).await,
            (Some(reply), Some(headers)) => {
                client
                    .publish_with_reply_and_headers(subject, reply, headers, payload)
                    .await
            }
        };
        published.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => PublishFailure::TooLarge,
            _ => PublishFailure::Lost(LinkLost),
        })
    }

    async fn subscribe(&self, subject: Subject) -> Result<ClientSubscription, LinkLost> {
        let subscribed = self.client.subscribe(subject).await;
        subscribed
            .map(ClientSubscription)
            .map_err(|_ended| LinkLost)
    }

    async fn round_trip(&self) -> Result<(), LinkLost> {
        let RoundTrip {
            subject,
            sent,
            heard,
        } = &*self.probe;
        let number = {
            let mut sent = sent.lock().await;
            let number = *sent + 1;
            let payload = Bytes::copy_from_slice(&number.to_le_bytes());
            let published = self.client.publish(subject.clone(), payload).await;
            published.map_err(|_ended| LinkLost)?;
            *sent = number;
            number
        };
        let mut heard = heard.clone();
        tokio::select! {
            heard = heard.wait_for(|heard| *heard >= number) => heard.map(drop).map_err(|_ended| LinkLost),
            () = self.state.lost.cancelled() => Err(LinkLost),
        }
    }

    async fn lost(&self) {
        self.state.lost.cancelled().await;
    }

    fn overruns(&self) -> u64 {
        self.state.overruns()
    }

    async fn open_bucket(&self, config: &BucketConfig) -> Result<ClientBucket, BucketFailure> {
        ClientBucket::open(&self.client, config, &self.highest).await
    }

    async fn last_sequence(&self, stream: &str) -> Result<Option<u64>, BucketFailure> {
        let info = stream_info(&self.client, stream).await?;
        Ok(info.map(|info| info.state.last_seq))
    }
}

impl Subscription for ClientSubscription {
    async fn next(&mut self) -> Option<Incoming> {
        self.0.next().await.map(incoming)
    }
}

fn incoming(message: Message) -> Incoming {
    let no_responders = message.status == Some(StatusCode::NO_RESPONDERS);
    let headers = message.headers.as_ref();
    let header = |name| {
        let value = headers.and_then(|headers| headers.get(name));
        value.map(|value| value.as_str().to_owned())
    };
    let (traceparent, tracestate) = (header(TRACEPARENT), header(TRACESTATE));
    Incoming {
        subject: message.subject,
        reply: message.reply,
        traceparent,
        tracestate,
        payload: message.payload,
        no_responders,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for recent in ["2.11.0", "2.11.3-RC.1", "v2.12", "2.100.0", "3"] {
            assert!(is_recent(recent), "{recent}");
        }
        for old in ["2.10.29", "2.9.0", "2", "", "x"] {
            assert!(!is_recent(old), "{old}");
        }
    }
}
