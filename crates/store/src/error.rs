//! What callers of the store need to tell apart, the same on both engines.

use caracal_model::{Refusal, Refused};

/// The error of a database driver, kept for the log.
pub type DriverError = Box<dyn std::error::Error + Send + Sync>;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row is not in this zone.
    #[error("{kind} `{id}` does not exist")]
    Absent {
        /// What was looked for.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// A unique index already holds the value; the name is the same on both engines.
    #[error("`{constraint}` already holds this value")]
    Conflict {
        /// Name of the index; `<table>_pkey` for a primary key.
        constraint: String,
    },
    /// The row refers to one that does not exist, or is still referred to.
    #[error("a reference does not hold, while {doing}")]
    Reference {
        /// The statement.
        doing: &'static str,
    },
    /// Somebody was in the way; the same transaction may succeed when it is tried again.
    #[error("store busy while {doing}")]
    Busy {
        /// The statement or transaction.
        doing: &'static str,
    },
    /// The store cannot be reached or cannot write.
    #[error("store unreachable while {doing}: {source}")]
    Unreachable {
        /// The statement or transaction.
        doing: &'static str,
        /// What the driver said.
        source: DriverError,
    },
    /// A value that cannot be stored, such as text with U+0000.
    #[error("{what} cannot be stored, while {doing}")]
    Invalid {
        /// The statement.
        doing: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// What was read is not what we write.
    #[error("stored data is not valid: {what}")]
    Corrupt {
        /// Which datum, and how.
        what: String,
    },
    /// The engine refused the statement itself: a mistake of ours, or a foreign schema.
    #[error("statement refused while {doing}: {source}")]
    Statement {
        /// The statement.
        doing: &'static str,
        /// What the driver said.
        source: DriverError,
    },
    /// What a transaction counted on when it committed no longer holds, so nothing of it was kept.
    #[error("overtaken while {doing}")]
    Overtaken {
        /// The statement or transaction.
        doing: &'static str,
    },
    /// An earlier statement of this transaction failed, so nothing of it was kept.
    #[error("transaction abandoned while {doing}")]
    Abandoned {
        /// The transaction.
        doing: &'static str,
    },
    /// The schema does not fit this program.
    #[error("migration {version}: {why}")]
    Migration {
        /// The migration.
        version: u32,
        /// What does not fit.
        why: String,
    },
}

impl StoreError {
    /// Whether the same call may succeed later, without anybody having mended anything in it.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Unreachable { .. })
    }

    /// Whether nothing else can be had from the store either, so that going on with the next of many
    /// is no use.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether the unique index of this name refused.
    pub fn is_conflict_on(&self, index: &str) -> bool {
        matches!(self, Self::Conflict { constraint } if constraint == index)
    }

    /// Whether the record of a change could not be written, so that the change was not made.
    pub fn is_unrecorded(&self) -> bool {
        let of = crate::admin_audit::sql::INTEND.name;
        matches!(self, Self::Statement { doing, .. } | Self::Invalid { doing, .. } if *doing == of)
    }

    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }

    pub(crate) fn closed(doing: &'static str) -> Self {
        Self::Unreachable {
            doing,
            source: "the store is closed".into(),
        }
    }
}

impl From<StoreError> for Refused {
    /// An outage is ours: it never reads as a wrong secret, nor feeds a lockout (spec README,
    /// decision 6).
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Absent { kind, .. } => {
                Refusal::NotFound.because(format!("{kind} not found"))
            }
            StoreError::Unreachable { .. } | StoreError::Busy { .. } => {
                Refusal::Unavailable.because("store unavailable")
            }
            _ => Refusal::Internal.because("internal error"),
        }
    }
}
