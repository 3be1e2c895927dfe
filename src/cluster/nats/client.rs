//! The real NATS, over the library async-nats. A link is one client of the library, which is kept from connecting
//! again by itself. Buckets are asked in the words of the JetStream API, one request a call, so that what is sent
//! and when is known: the library's own key-value store repeats calls and hides which one an answer belongs to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::client::PublishErrorKind;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use async_nats::{
    Client, HeaderMap, HeaderName, HeaderValue, Message, Request, RequestErrorKind, StatusCode,
    Subject, Subscriber,
};
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;

use super::access::{Access, LinkState};
use super::failure::{BucketFailure, ConnectFailure, LinkLost, PublishFailure, WriteFailure};
use super::{
    Bucket, BucketConfig, BucketIdentity, DELETED_MAX_AGE, Entry, Incoming, Nats, NatsLink,
    Outgoing, Revision, Subscription,
};
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
/// The header by which a write names the revision that it replaces; 0 stands for none.
const EXPECTED: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence");
/// A restart of a server keeps what is in files.
const STORAGE: &str = "file";
/// The header by which programs for key-value buckets know a deleted entry.
const OPERATION: HeaderName = HeaderName::from_static("KV-Operation");
const DELETED: &str = "DEL";
/// The header with the time to live of a message, in seconds.
const TIME_TO_LIVE: HeaderName = HeaderName::from_static("Nats-TTL");

/// A code of the JetStream API that the library has no name for: the same as `STREAM_WRONG_LAST_SEQUENCE`, without
/// the sequence number in its text.
const WRONG_LAST_SEQUENCE: ErrorCode = ErrorCode(10164);

#[allow(clippy::disallowed_types, reason = "held across a wait, by design")]
type HandOver<T> = tokio::sync::Mutex<T>;

/// The way to the servers of the settings.
pub(in crate::cluster) struct NatsClient {
    access: Access,
    inbox_prefix: String,
    highest: Highest,
}

/// The highest revision that was seen in any bucket.
type Highest = Arc<AtomicU64>;

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

/// A bucket, which is a stream to JetStream.
#[derive(Clone)]
pub(in crate::cluster) struct ClientBucket {
    client: Client,
    shared: Arc<BucketShared>,
}

struct BucketShared {
    /// What the subject of a key begins with.
    prefix: String,
    /// The subject of requests to read an entry.
    get: Subject,
    identity: BucketIdentity,
    highest: Highest,
}

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
        let stream = format!("KV_{}", config.name);
        let mut info = self.stream_info(&stream).await?;
        if info.is_none() {
            let created = self.create(config, &stream).await?;
            // Another node may have made it meanwhile.
            info = match created {
                Some(created) => Some(created),
                None => self.stream_info(&stream).await?,
            };
        }
        let info = info.ok_or(BucketFailure::Missing)?;
        info.config.compare(config)?;
        Ok(ClientBucket {
            client: self.client.clone(),
            shared: Arc::new(BucketShared {
                prefix: format!("$KV.{}.", config.name),
                get: format!("$JS.API.STREAM.MSG.GET.{stream}").into(),
                identity: BucketIdentity(info.created.into()),
                highest: self.highest.clone(),
            }),
        })
    }

    async fn last_sequence(&self, stream: &str) -> Result<Option<u64>, BucketFailure> {
        let info = self.stream_info(stream).await?;
        Ok(info.map(|info| info.state.last_seq))
    }
}

impl ClientLink {
    async fn stream_info(&self, stream: &str) -> Result<Option<StreamInfo>, BucketFailure> {
        let subject = format!("$JS.API.STREAM.INFO.{stream}").into();
        match api(&self.client, subject, Request::new()).await? {
            Response::Ok(info) => Ok(Some(info)),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Ok(None)
            }
            Response::Err { error } => Err(BucketFailure::Refused(error.to_string())),
        }
    }

    /// Makes the stream of a bucket; `None` if there is one of that name.
    async fn create(
        &self,
        config: &BucketConfig,
        stream: &str,
    ) -> Result<Option<StreamInfo>, BucketFailure> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = since_1970.unwrap_or_default().as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX);
        // The node that has made the lost bucket may have had a clock that was ahead of this one.
        let first = micros.max(self.highest.load(Ordering::Relaxed) + 1);
        let request = json!({
            "name": stream,
            "description": config.description,
            "subjects": [format!("$KV.{}.>", config.name)],
            "max_msgs_per_subject": 1,
            "max_age": nanos(config.max_age),
            "storage": STORAGE,
            "num_replicas": config.replicas,
            "discard": "new",
            "allow_msg_ttl": true,
            "deny_delete": true,
            "deny_purge": true,
            // A microsecond is less than a write takes, so revisions never overtake the clock.
            "first_seq": first,
        });
        let request = Request::new().payload(request.to_string().into());
        let subject = format!("$JS.API.STREAM.CREATE.{stream}").into();
        match api(&self.client, subject, request).await? {
            Response::Ok(info) => Ok(Some(info)),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                Ok(None)
            }
            Response::Err { error } => Err(BucketFailure::Refused(error.to_string())),
        }
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

impl Bucket for ClientBucket {
    fn identity(&self) -> &BucketIdentity {
        &self.shared.identity
    }

    async fn get(&self, key: &str) -> Result<Entry, BucketFailure> {
        let request = json!({ "last_by_subj": self.subject(key) });
        let request = Request::new().payload(request.to_string().into());
        match api(&self.client, self.shared.get.clone(), request).await? {
            Response::Ok(Got { message }) => {
                let value = BASE64.decode(message.data.as_bytes());
                let value = value.map_err(|error| BucketFailure::Refused(error.to_string()))?;
                Ok(Entry {
                    value: (!value.is_empty()).then(|| value.into()),
                    revision: self.seen(message.seq),
                })
            }
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                Ok(Entry {
                    value: None,
                    revision: Revision::NONE,
                })
            }
            Response::Err { error } => Err(refused(&error)),
        }
    }

    async fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        over: Revision,
    ) -> Result<Revision, WriteFailure> {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED, HeaderValue::from(over.0));
        if value.is_none() {
            headers.insert(OPERATION, HeaderValue::from(DELETED));
            headers.insert(TIME_TO_LIVE, HeaderValue::from(DELETED_MAX_AGE.as_secs()));
        }
        let value = value.unwrap_or_default();
        let request = Request::new().payload(value).headers(headers);
        match self.send(self.subject(key).into(), request).await? {
            Response::Ok(Acknowledged { seq }) => Ok(self.seen(seq)),
            Response::Err { error } if is_conflict(&error) => Err(WriteFailure::Conflict),
            Response::Err { error } => Err(refused(&error).into()),
        }
    }
}

impl ClientBucket {
    fn subject(&self, key: &str) -> String {
        format!("{}{key}", self.shared.prefix)
    }

    fn seen(&self, revision: u64) -> Revision {
        self.shared.highest.fetch_max(revision, Ordering::Relaxed);
        Revision(revision)
    }

    /// Sends a write to the stream.
    async fn send(
        &self,
        subject: Subject,
        request: Request,
    ) -> Result<Response<Acknowledged>, BucketFailure> {
        match self.client.send_request(subject, request).await {
            Ok(message) => parse(&message),
            // No stream listens to the subject.
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                Err(BucketFailure::Missing)
            }
            Err(error) => Err(failure(&error)),
        }
    }
}

/// What the API says of a stream.
#[derive(Deserialize)]
struct StreamInfo {
    config: StreamConfig,
    created: Box<str>,
    state: StreamState,
}

#[derive(Deserialize)]
struct StreamConfig {
    #[serde(default)]
    subjects: Vec<String>,
    #[serde(default)]
    max_msgs_per_subject: i64,
    #[serde(default)]
    max_age: u64,
    storage: String,
    #[serde(default)]
    allow_msg_ttl: bool,
}

#[derive(Deserialize)]
struct StreamState {
    last_seq: u64,
}

#[derive(Deserialize)]
struct Got {
    message: GotMessage,
}

#[derive(Deserialize)]
struct GotMessage {
    seq: u64,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Acknowledged {
    seq: u64,
}

impl StreamConfig {
    /// Whether the stream is the bucket that is wanted.
    fn compare(&self, wanted: &BucketConfig) -> Result<(), BucketFailure> {
        let name = &wanted.name;
        let differ = |what: &str, here: String, there: String| {
            Err(BucketFailure::Refused(format!(
                "bucket {name} has {what} {there}, and this node needs {here}"
            )))
        };
        let subjects = vec![format!("$KV.{name}.>")];
        let max_age = Duration::from_nanos(self.max_age);
        if self.subjects != subjects {
            return differ(
                "subjects",
                format!("{subjects:?}"),
                format!("{:?}", self.subjects),
            );
        }
        if self.max_msgs_per_subject != 1 {
            return differ(
                "max_msgs_per_subject",
                "1".to_owned(),
                self.max_msgs_per_subject.to_string(),
            );
        }
        if max_age != wanted.max_age {
            return differ(
                "max_age",
                format!("{:?}", wanted.max_age),
                format!("{max_age:?}"),
            );
        }
        if self.storage != STORAGE {
            return differ("storage", STORAGE.to_owned(), self.storage.clone());
        }
        if !self.allow_msg_ttl {
            return differ("allow_msg_ttl", "true".to_owned(), "false".to_owned());
        }
        Ok(())
    }
}

/// Sends a request to the JetStream API.
async fn api<T: DeserializeOwned>(
    client: &Client,
    subject: Subject,
    request: Request,
) -> Result<Response<T>, BucketFailure> {
    match client.send_request(subject, request).await {
        Ok(message) => parse(&message),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => {
            Err(BucketFailure::Refused("no JetStream answers".to_owned()))
        }
        Err(error) => Err(failure(&error)),
    }
}

fn parse<T: DeserializeOwned>(message: &Message) -> Result<Response<T>, BucketFailure> {
    // An answer that cannot be read says nothing of what has happened.
    serde_json::from_slice(&message.payload).map_err(|_unreadable| BucketFailure::Unknown)
}

fn failure(error: &async_nats::RequestError) -> BucketFailure {
    match error.kind() {
        RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
            BucketFailure::Refused(error.to_string())
        }
        RequestErrorKind::NoResponders | RequestErrorKind::TimedOut | RequestErrorKind::Other => {
            BucketFailure::Unknown
        }
    }
}

fn refused(error: &async_nats::jetstream::Error) -> BucketFailure {
    if error.error_code() == ErrorCode::STREAM_NOT_FOUND {
        BucketFailure::Missing
    } else {
        BucketFailure::Refused(error.to_string())
    }
}

/// Whether an error says that the entry has another revision.
fn is_conflict(error: &async_nats::jetstream::Error) -> bool {
    [ErrorCode::STREAM_WRONG_LAST_SEQUENCE, WRONG_LAST_SEQUENCE].contains(&error.error_code())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
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
