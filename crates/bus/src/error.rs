//! What callers of the bus need to tell apart.

/// The bus could not do it.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No answer: not connected, cut off, or too late. What was asked may have happened.
    #[error("bus unreachable while {doing}: {source}")]
    Unreachable {
        /// What was being done.
        doing: &'static str,
        /// As the driver put it; holds no address and no password.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The bus answered, and said no.
    #[error("bus refused {doing}: {detail}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// The answer.
        detail: String,
    },
    /// Entries after the given position are no longer there: whoever followed must start again
    /// from a snapshot.
    #[error("entries of `{topic}` are missing after the position that was asked for")]
    Gap {
        /// Where they are missing.
        topic: String,
    },
    /// The group does not exist; create it again.
    #[error("`{topic}` has no group `{group}`")]
    NoGroup {
        /// The topic.
        topic: String,
        /// The group.
        group: String,
    },
    /// A bound of the memory backend is reached; nothing was written.
    #[error("{what} is full")]
    Full {
        /// What is full.
        what: String,
    },
    /// The setting is not an address of a bus.
    #[error("the bus address is not valid: {detail}")]
    Address {
        /// Why, without the address itself: it may hold a password.
        detail: String,
    },
}

impl BusError {
    /// Whether the connection is in doubt, rather than the request.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
