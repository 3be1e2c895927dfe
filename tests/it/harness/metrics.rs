//! Parses the part of the Prometheus text format that the relay writes.

use std::collections::BTreeMap;

/// One response of /metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scrape {
    series: Vec<Series>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    value: String,
}

/// The counters that must add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) received: u64,
    pub(crate) delivered: u64,
    pub(crate) dropped: u64,
    pub(crate) mailbox: u64,
    pub(crate) cluster_received: u64,
    pub(crate) cluster_sent: u64,
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    pub(crate) connections: u64,
    faults: u64,
}

impl Ledger {
    /// Received messages that are not delivered, dropped, in a mailbox or sent to another node.
    pub(crate) fn gap(&self) -> i64 {
        (self.received + self.cluster_received).cast_signed()
            - (self.delivered + self.dropped + self.mailbox + self.cluster_sent).cast_signed()
    }

    pub(crate) fn balances(&self) -> bool {
        assert_eq!(
            self.faults, 0,
            "the relay counted an internal fault: {self:?}"
        );
        self.gap() == 0 && self.opened == self.closed + self.connections
    }
}

impl Scrape {
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self {
            series: lines.map(Series::parse).collect(),
        }
    }

    /// The value of a metric, summed over the series that have at least these labels; 0 without such a series.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let labelled = |series: &&Series| {
            labels
                .iter()
                .all(|(name, value)| series.labels.get(*name).is_some_and(|has| has == value))
        };
        self.series
            .iter()
            .filter(|series| series.name == name)
            .filter(labelled)
            .map(|series| series.value.parse::<u64>().expect("a whole number"))
            .sum()
    }

    pub(crate) fn series(&self) -> &[Series] {
        &self.series
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.series.iter().any(|series| series.name == name)
    }

    pub(crate) fn ledger(&self) -> Ledger {
        let total = |name: &str| self.value(name, &[]);
        let internal = [("reason", "internal")];
        let ours = [("initiator", "server"), ("code", "1011")];
        Ledger {
            received: total("switchboard_messages_received_total"),
            delivered: total("switchboard_messages_delivered_total"),
            dropped: total("switchboard_messages_dropped_total"),
            mailbox: total("switchboard_mailbox_messages"),
            cluster_received: total("switchboard_cluster_received_total"),
            cluster_sent: total("switchboard_cluster_sent_total"),
            opened: total("switchboard_connections_opened_total"),
            closed: total("switchboard_connections_closed_total"),
            connections: total("switchboard_connections"),
            faults: self.value("switchboard_connections_closed_total", &ours)
                + self.value("switchboard_messages_dropped_total", &internal)
                + total("switchboard_session_panics_total"),
        }
    }

    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        self.value("switchboard_messages_dropped_total", &[("reason", reason)])
    }
}

impl Series {
    /// `name{label="value",…} value`. No label of the relay has an escape in it.
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').expect("a name and a value");
        let (name, labels) = match series.split_once('{') {
            None => (series, ""),
            Some((name, labels)) => (name, labels.strip_suffix('}').expect("a closing brace")),
        };
        let labels = labels.split(',').filter(|label| !label.is_empty());
        let label = |label: &str| {
            let (name, value) = label.split_once('=').expect("a label has a value");
            (name.to_owned(), value.trim_matches('"').to_owned())
        };
        Self {
            name: name.to_owned(),
            labels: labels.map(label).collect(),
            value: value.to_owned(),
        }
    }
}
