//! The server's own counters of messages, read from its `/metrics`, and whether they explain the messages that
//! did not arrive.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_tungstenite::hyper::header::{AUTHORIZATION, CONNECTION, HeaderValue};
use hyper_tungstenite::hyper::{Request, StatusCode, Uri};
use serde::Serialize;
use switchboard::config::Secret;
use switchboard::net::http_client::{HttpClient, HttpError, Limits};
use tokio::runtime::{self, Runtime};

use crate::url::Url;

/// How long the server may take to respond, and the largest response that is read.
const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(5),
    body_bytes_max: 4 * 1024 * 1024,
};

/// Where the server's metrics are.
#[derive(Debug)]
pub(crate) struct MetricsEndpoint {
    url: Uri,
    token: Option<Secret>,
    client: HttpClient,
    runtime: Runtime,
}

/// Why the metrics cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The client cannot start.
    #[error("cannot start a client")]
    Runtime(#[from] io::Error),
    /// The client cannot ask such a URL.
    #[error("{0} is not a URL")]
    Url(String),
    /// The server does not respond, or not with the status 200.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A metric is missing in the response.
    #[error("{url} does not have {name}")]
    Missing {
        /// The URL that was read.
        url: Uri,
        /// The metric.
        name: &'static str,
    },
}

/// The server's counters of messages since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerCounters {
    pub(crate) received: u64,
    pub(crate) delivered: u64,
    /// By reason, without the reasons that are 0.
    pub(crate) dropped: BTreeMap<String, u64>,
    pub(crate) mailbox: u64,
}

/// What the server's counters grew by in one scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Account {
    /// Messages that the server received.
    pub(crate) received: u64,
    /// Messages that it delivered.
    pub(crate) delivered: u64,
    /// Messages that it dropped, by reason.
    pub(crate) dropped: BTreeMap<String, u64>,
}

impl MetricsEndpoint {
    pub(crate) fn new(url: &Url, token: Option<Secret>) -> Result<Self, MetricsError> {
        let url = url.http(&url.path).to_string();
        Ok(Self {
            url: url.parse().map_err(|_| MetricsError::Url(url))?,
            token,
            client: HttpClient::plain(LIMITS),
            runtime: runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        })
    }

    pub(crate) fn read(&self) -> Result<ServerCounters, MetricsError> {
        let body = self.runtime.block_on(self.ask())?;
        let counters = ServerCounters::parse(&String::from_utf8_lossy(&body));
        counters.map_err(|name| MetricsError::Missing {
            url: self.url.clone(),
            name,
        })
    }
}

impl MetricsEndpoint {
    async fn ask(&self) -> Result<Bytes, HttpError> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Some(token) = &self.token {
            let token = [b"Bearer ", token.expose()].concat();
            let token = HeaderValue::from_bytes(&token).expect("checked when it was read");
            headers.insert(AUTHORIZATION, token);
        }
        let (response, _) = self.client.ask(request).await?;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let (url, status) = (self.url.clone(), response.status());
        Err(HttpError::Status { url, status })
    }
}

impl MetricsError {
    /// The status of the server, or what is wrong instead.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Http(HttpError::Status { status, .. }) => status.as_u16().to_string(),
            error => error.to_string(),
        }
    }
}

impl ServerCounters {
    /// The counters in a text of Prometheus, or the name of the first that is missing.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let value = |name: &'static str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
                .ok_or(name)
        };
        let dropped = text.lines().filter_map(|line| {
            let rest = line.strip_prefix("switchboard_messages_dropped_total{reason=\"")?;
            let (reason, count) = rest.split_once("\"} ")?;
            Some((reason.to_owned(), count.parse().ok()?))
        });
        Ok(Self {
            received: value("switchboard_messages_received_total")?,
            delivered: value("switchboard_messages_delivered_total")?,
            dropped: dropped.filter(|(_, count)| *count > 0).collect(),
            mailbox: value("switchboard_mailbox_messages")?,
        })
    }

    /// Whether the server holds no message: each one that it received is delivered or dropped.
    pub(crate) fn are_settled(&self) -> bool {
        self.mailbox == 0 && self.received == self.delivered + self.dropped.values().sum::<u64>()
    }

    /// The growth since `before`.
    pub(crate) fn since(&self, before: &Self) -> Account {
        let dropped = self.dropped.iter().map(|(reason, count)| {
            let earlier = before.dropped.get(reason).copied().unwrap_or(0);
            (reason.clone(), count.saturating_sub(earlier))
        });
        Account {
            received: self.received.saturating_sub(before.received),
            delivered: self.delivered.saturating_sub(before.delivered),
            dropped: dropped.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

impl Account {
    fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Messages of this run that the account does not explain. `sent` of them were written to the server, and
    /// `lost` of these did not arrive.
    ///
    /// Other clients may use the server at the same time: then it has received more messages than this run
    /// has sent. The dropped ones may be theirs, so their sum is only an upper bound. Where this run is the
    /// only client, every figure has to be equal.
    pub(crate) fn unexplained(&self, sent: u64, lost: u64) -> u64 {
        if self.received > sent {
            return lost.saturating_sub(self.dropped_total());
        }
        (sent - self.received)
            .max(lost.abs_diff(self.dropped_total()))
            .max((sent - lost).abs_diff(self.delivered))
    }

    /// Whether other clients used the server at the same time.
    pub(crate) fn has_more_than(&self, sent: u64) -> bool {
        self.received > sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP switchboard_mailbox_messages Messages in mailboxes and write buffers.
switchboard_mailbox_messages 0
switchboard_messages_delivered_total 7
switchboard_messages_dropped_total{reason=\"offline\"} 2
switchboard_messages_dropped_total{reason=\"queue_full\"} 0
switchboard_messages_received_total 9
";

    #[test]
    fn counters_are_read_from_the_text_of_prometheus() {
        let counters = ServerCounters::parse(TEXT).unwrap();
        let expected = ServerCounters {
            received: 9,
            delivered: 7,
            dropped: [("offline".to_owned(), 2)].into(),
            mailbox: 0,
        };
        assert_eq!(counters, expected);
        assert!(counters.are_settled());
        assert_eq!(
            ServerCounters::parse("go_goroutines 9\n"),
            Err("switchboard_messages_received_total")
        );
    }

    #[test]
    fn an_account_explains_only_equal_figures() {
        let account = |received, delivered, dropped| Account {
            received,
            delivered,
            dropped: [("queue_full".to_owned(), dropped)].into(),
        };
        for (sent, lost, account, unexplained) in [
            (10, 0, account(10, 10, 0), 0),
            (10, 3, account(10, 7, 3), 0),
            // Lost on the way to the server.
            (10, 3, account(7, 7, 0), 3),
            // Lost on the way from it.
            (10, 3, account(10, 10, 0), 3),
            (10, 3, account(10, 9, 1), 2),
            // The server counts messages as dropped that arrived.
            (10, 0, account(10, 8, 2), 2),
            // Other clients use the server, too: the 5 dropped messages may be theirs.
            (10, 3, account(40, 35, 5), 0),
            (10, 3, account(40, 38, 2), 1),
        ] {
            assert_eq!(account.unexplained(sent, lost), unexplained, "{account:?}");
        }
    }
}
