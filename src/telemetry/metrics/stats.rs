//! Gauges that are read from the directory and the cluster during a scrape. No variable counts them, so
//! they cannot drift from the truth.

use prometheus::proto::MetricFamily;

use super::families::gauge;

/// Connected users and the contents of their mailboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectoryStats {
    /// Connected users.
    pub connections: u64,
    /// Messages in mailboxes and write buffers, and on their way to the router and to other nodes.
    pub mailbox_messages: u64,
    /// Bytes of these messages as WebSocket frames.
    pub mailbox_bytes: u64,
    /// Bytes that mailboxes have reserved of `mailbox.total_bytes`.
    pub mailbox_reserved_bytes: u64,
    /// Segments of the user directory.
    pub segments: u64,
    /// The link to other nodes; nothing where `cluster.nats_url` is empty.
    pub link: Option<ClusterStats>,
}

/// The link to other nodes at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterStats {
    /// Whether NATS can be reached.
    pub up: bool,
    /// Whether this node takes messages of other nodes.
    pub lease: bool,
    /// Blocks of ids that this node has leased and that have ids left.
    pub blocks: u64,
    /// Free ids in these blocks.
    pub ids_left: u64,
    /// Outcomes that other nodes have not sent yet.
    pub outcomes_pending: u64,
    /// Ids that are registered on this node.
    pub registrations: u64,
    /// Users that wait for NATS to join.
    pub joins: u64,
    /// Places of users on other nodes that are remembered.
    pub routes: u64,
    /// Messages in the queue to other nodes.
    pub queue_messages: u64,
    /// Bytes of these messages.
    pub queue_bytes: u64,
}

impl DirectoryStats {
    /// The families of these numbers, with those of the cluster where there is one.
    pub(super) fn families(&self) -> impl Iterator<Item = MetricFamily> {
        let directory = [
            gauge(
                "switchboard_connections",
                "Connected users.",
                self.connections,
            ),
            gauge(
                "switchboard_mailbox_messages",
                "Messages in mailboxes and write buffers, and on their way to the router and to other nodes.",
                self.mailbox_messages,
            ),
            gauge(
                "switchboard_mailbox_bytes",
                "Bytes of the frames in mailboxes and write buffers.",
                self.mailbox_bytes,
            ),
            gauge(
                "switchboard_mailbox_reserved_bytes",
                "Bytes of mailbox.total_bytes that mailboxes have reserved.",
                self.mailbox_reserved_bytes,
            ),
            gauge(
                "switchboard_directory_segments",
                "Segments of the user directory.",
                self.segments,
            ),
        ];
        let cluster = self.link.as_ref().map(ClusterStats::families);
        directory.into_iter().chain(cluster.into_iter().flatten())
    }
}

impl ClusterStats {
    fn families(&self) -> [MetricFamily; 10] {
        [
            gauge(
                "switchboard_cluster_up",
                "1 while NATS can be reached, else 0.",
                self.up.into(),
            ),
            gauge(
                "switchboard_cluster_lease",
                "1 while the node holds its lease and takes messages of other nodes, else 0.",
                self.lease.into(),
            ),
            gauge(
                "switchboard_cluster_blocks",
                "Blocks of ids that this node has leased and that have ids left.",
                self.blocks,
            ),
            gauge(
                "switchboard_cluster_ids_left",
                "Free ids in these blocks.",
                self.ids_left,
            ),
            gauge(
                "switchboard_cluster_outcomes_pending",
                "Outcomes that other nodes have not sent yet.",
                self.outcomes_pending,
            ),
            gauge(
                "switchboard_cluster_registrations",
                "Ids that are registered on this node.",
                self.registrations,
            ),
            gauge(
                "switchboard_cluster_joins_waiting",
                "Users that wait for NATS to join.",
                self.joins,
            ),
            gauge(
                "switchboard_cluster_routes",
                "Places of users on other nodes that this node remembers.",
                self.routes,
            ),
            gauge(
                "switchboard_cluster_queue_messages",
                "Messages in the queue to other nodes, or being published.",
                self.queue_messages,
            ),
            gauge(
                "switchboard_cluster_queue_bytes",
                "Bytes of the messages in the queue to other nodes.",
                self.queue_bytes,
            ),
        ]
    }
}
