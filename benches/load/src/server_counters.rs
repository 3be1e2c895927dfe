//! The server's own account of messages, read from its `/metrics`, and whether it explains what this
//! run saw.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Serialize;

use super::target::Url;

/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The most that is read of an answer.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Where the books are.
#[derive(Clone, Debug)]
pub(super) struct MetricsEndpoint {
    url: Url,
}

/// Why the books cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// No answer.
    #[error("cannot be reached")]
    Unreachable(#[from] io::Error),
    /// An answer that is not 200; its first line.
    #[error("answers {0:?}")]
    Answer(String),
    /// No books in the answer.
    #[error("does not have {0}")]
    Missing(&'static str),
}

/// The server's messages since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerCounters {
    pub(super) received: u64,
    pub(super) delivered: u64,
    /// By reason, without those that did not happen.
    pub(super) dropped: BTreeMap<String, u64>,
    pub(super) mailbox: u64,
}

/// What the server says about the messages of one scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Account {
    /// Messages that it received.
    pub(super) received: u64,
    /// That it delivered.
    pub(super) delivered: u64,
    /// That it dropped, by reason.
    pub(super) dropped: BTreeMap<String, u64>,
}

impl MetricsEndpoint {
    pub(super) fn new(url: Url) -> Self {
        Self { url }
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    pub(super) fn read(&self) -> Result<ServerCounters, MetricsError> {
        let addresses = self.url.addresses()?;
        let address = addresses
            .first()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut stream = TcpStream::connect_timeout(address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        // In this version an answer ends with the connection, in no chunks.
        let Url {
            path, authority, ..
        } = &self.url;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(MetricsError::Answer(status.to_owned()));
        }
        ServerCounters::parse(body)
    }
}

impl ServerCounters {
    fn parse(text: &str) -> Result<Self, MetricsError> {
        let value = |name: &'static str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
                .ok_or(MetricsError::Missing(name))
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

    /// Whether nothing is on its way: all that was received has its end.
    pub(super) fn are_settled(&self) -> bool {
        self.mailbox == 0 && self.received == self.delivered + self.dropped.values().sum::<u64>()
    }

    /// What happened since `before`.
    pub(super) fn since(&self, before: &Self) -> Account {
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
    fn dropped_in_all(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Messages of this run that the account does not explain; `sent` were handed to the server
    /// over connections that lived, and `lost` of them did not arrive.
    ///
    /// Others may use the server at the same time, so it may have received more than we sent. Then
    /// what it dropped may have been theirs, and only the sum is a bound. Where the server is ours
    /// alone every figure has to be equal.
    pub(super) fn unexplained(&self, sent: u64, lost: u64) -> u64 {
        if self.received > sent {
            return lost.saturating_sub(self.dropped_in_all());
        }
        (sent - self.received)
            .max(lost.abs_diff(self.dropped_in_all()))
            .max((sent - lost).abs_diff(self.delivered))
    }

    /// Whether others used the server at the same time.
    pub(super) fn has_more_than(&self, sent: u64) -> bool {
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
    fn books_are_read_from_the_text_of_prometheus() {
        let books = ServerCounters::parse(TEXT).unwrap();
        let expected = ServerCounters {
            received: 9,
            delivered: 7,
            dropped: [("offline".to_owned(), 2)].into(),
            mailbox: 0,
        };
        assert_eq!(books, expected);
        assert!(books.are_settled());
        assert!(matches!(
            ServerCounters::parse("go_goroutines 9\n"),
            Err(MetricsError::Missing("switchboard_messages_received_total"))
        ));
    }

    #[test]
    fn an_account_explains_what_is_equal_and_nothing_else() {
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
            // It says that it dropped what arrived.
            (10, 0, account(10, 8, 2), 2),
            // Others use it too: 5 of their messages, or of ours, were dropped.
            (10, 3, account(40, 35, 5), 0),
            (10, 3, account(40, 38, 2), 1),
        ] {
            assert_eq!(account.unexplained(sent, lost), unexplained, "{account:?}");
        }
    }
}
