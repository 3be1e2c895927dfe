//! Buckets as JetStream has them: each is a stream. They are asked in the words of the JetStream API, one request a
//! call, so that what is sent and when is known: the library's own key-value store repeats calls and hides which one an
//! answer belongs to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use async_nats::{
    Client, HeaderMap, HeaderName, HeaderValue, Message, Request, RequestErrorKind, Subject,
};
use bytes::Bytes;
use data_encoding::BASE64;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::failure::{BucketFailure, WriteFailure};
use super::{Bucket, BucketConfig, BucketIdentity, DELETED_MAX_AGE, Entry, Revision};

/// The header by which a write names the revision that it replaces; 0 stands for none.
const EXPECTED: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence");
/// The header by which programs for key-value buckets know a deleted entry.
const OPERATION: HeaderName = HeaderName::from_static("KV-Operation");
const DELETED: &str = "DEL";
/// The header with the time to live of a message, in seconds.
const TIME_TO_LIVE: HeaderName = HeaderName::from_static("Nats-TTL");

/// A code of the JetStream API that the library has no name for: the same as `STREAM_WRONG_LAST_SEQUENCE`, without
/// the sequence number in its text.
const WRONG_LAST_SEQUENCE: ErrorCode = ErrorCode(10164);

/// The highest revision that was seen in any bucket.
pub(super) type Highest = Arc<AtomicU64>;

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
    /// Makes the stream of a bucket if it does not exist, and else compares it with what is wanted.
    pub(super) async fn open(
        client: &Client,
        config: &BucketConfig,
        highest: &Highest,
    ) -> Result<Self, BucketFailure> {
        let stream = format!("KV_{}", config.name);
        let mut info = stream_info(client, &stream).await?;
        if info.is_none() {
            let created = create(client, config, &stream, highest).await?;
            // Another node may have made it meanwhile.
            info = match created {
                Some(created) => Some(created),
                None => stream_info(client, &stream).await?,
            };
        }
        let info = info.ok_or(BucketFailure::Missing)?;
        compare(config, &info.config)?;
        Ok(Self {
            client: client.clone(),
            shared: Arc::new(BucketShared {
                prefix: format!("$KV.{}.", config.name),
                get: format!("$JS.API.STREAM.MSG.GET.{stream}").into(),
                identity: BucketIdentity(info.created.into()),
                highest: highest.clone(),
            }),
        })
    }

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
pub(super) struct StreamInfo {
    config: Map<String, Value>,
    created: Box<str>,
    pub(super) state: StreamState,
}

#[derive(Deserialize)]
pub(super) struct StreamState {
    pub(super) last_seq: u64,
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

/// What a stream has to be so that it is the bucket that is wanted.
fn wanted(config: &BucketConfig) -> [(&'static str, Value); 5] {
    let max_age = u64::try_from(config.max_age.as_nanos()).unwrap_or(u64::MAX);
    [
        ("subjects", json!([format!("$KV.{}.>", config.name)])),
        ("max_msgs_per_subject", json!(1)),
        ("max_age", json!(max_age)),
        // A restart of a server keeps what is in files.
        ("storage", json!("file")),
        ("allow_msg_ttl", json!(true)),
    ]
}

/// Whether a stream is the bucket that is wanted.
fn compare(config: &BucketConfig, found: &Map<String, Value>) -> Result<(), BucketFailure> {
    for (what, here) in wanted(config) {
        // The server leaves out what is false.
        let there = found.get(what).unwrap_or(&Value::Bool(false));
        if *there != here {
            let bucket = &config.name;
            let show = |value: &Value| match value.as_u64() {
                Some(nanos) if what == "max_age" => format!("{:?}", Duration::from_nanos(nanos)),
                _ => value.to_string(),
            };
            let settings = match what {
                "max_age" => " (cluster.node_timeout, cluster.entry_ttl)",
                _ => "",
            };
            return Err(BucketFailure::Refused(format!(
                "bucket {bucket} has {what} {}, and this node needs {}{settings}",
                show(there),
                show(&here)
            )));
        }
    }
    Ok(())
}

/// What the API says of a stream; `None` if there is none.
pub(super) async fn stream_info(
    client: &Client,
    stream: &str,
) -> Result<Option<StreamInfo>, BucketFailure> {
    let subject = format!("$JS.API.STREAM.INFO.{stream}").into();
    match api(client, subject, Request::new()).await? {
        Response::Ok(info) => Ok(Some(info)),
        Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
        Response::Err { error } => Err(BucketFailure::Refused(error.to_string())),
    }
}

/// Makes the stream of a bucket; `None` if there is one of that name.
async fn create(
    client: &Client,
    config: &BucketConfig,
    stream: &str,
    highest: &Highest,
) -> Result<Option<StreamInfo>, BucketFailure> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let micros = since_1970.unwrap_or_default().as_micros();
    let micros = u64::try_from(micros).unwrap_or(u64::MAX);
    // The node that has made the lost bucket may have had a clock that was ahead of this one.
    let first = micros.max(highest.load(Ordering::Relaxed) + 1);
    let mut request = json!({
        "name": stream,
        "description": config.description,
        "num_replicas": config.replicas,
        "discard": "new",
        "deny_delete": true,
        "deny_purge": true,
        // A microsecond is less than a write takes, so revisions never overtake the clock.
        "first_seq": first,
    });
    for (what, value) in wanted(config) {
        request[what] = value;
    }
    let request = Request::new().payload(request.to_string().into());
    let subject = format!("$JS.API.STREAM.CREATE.{stream}").into();
    match api(client, subject, request).await? {
        Response::Ok(info) => Ok(Some(info)),
        Response::Err { error } if error.error_code() == ErrorCode::STREAM_NAME_EXIST => Ok(None),
        Response::Err { error } => Err(BucketFailure::Refused(error.to_string())),
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
