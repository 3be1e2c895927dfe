//! How much may wait, for one user, for one node, and in all.

/// The bounds of the queue.
#[derive(Clone, Copy, Debug)]
pub(in crate::cluster) struct Bounds {
    /// The most messages for one user.
    pub(in crate::cluster) user_messages: usize,
    /// The most bytes for one user.
    pub(in crate::cluster) user_bytes: usize,
    /// The most bytes for all.
    pub(in crate::cluster) total_bytes: usize,
    /// The most bytes on their way to one node.
    pub(in crate::cluster) node_bytes: usize,
    /// The most places that are remembered.
    pub(in crate::cluster) routes: usize,
    /// How long a node may take to answer, microseconds.
    pub(in crate::cluster) patience: u64,
}
