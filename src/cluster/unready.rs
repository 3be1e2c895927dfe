//! Why a node in a cluster should get no new users.

/// Why a node in a cluster should get no new users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// There is no id to give, and the next block is not leased yet.
    #[error("no id is left")]
    NoId,
    /// No server of `cluster.nats_url` answers.
    #[error("nats cannot be reached (cluster.nats_url)")]
    Unreachable,
    /// The server lacks what the cluster needs.
    #[error("nats is older than 2.11")]
    TooOld,
    /// The server does not take the node's credentials.
    #[error("nats refuses the login (cluster.user, token_file, nkey_file or creds_file)")]
    LoginRefused,
    /// JetStream does not have the table of ids, or not the one that this node needs.
    #[error(
        "jetstream leases no ids: it is off, this account may not use it, or its buckets have other settings (see the log)"
    )]
    NoJetStream,
    /// Other nodes have another `cluster.block_size`.
    #[error("the other nodes have another cluster.block_size")]
    BlockSize,
}
