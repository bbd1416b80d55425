//! What a Session is when it is stored, and what the calls about Sessions are given and answer.

use caracal_model::{ApplicationId, RecordId, SessionId, SubjectType, Timestamp, ZoneId};

use super::sql;
use crate::error::StoreError;
use crate::{Row, Tx, params};

/// How a Session lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Ends after its time to live.
    Task,
    /// Lives as long as its lease is renewed.
    Service,
}

impl Lifecycle {
    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Service => "service",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        match text {
            "task" => Ok(Self::Task),
            "service" => Ok(Self::Service),
            other => Err(StoreError::corrupt(format!("lifecycle {other}"))),
        }
    }
}

/// The state of a Session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStatus {
    /// At work.
    Active,
    /// Stopped for now.
    Suspended,
    /// Ended by somebody.
    Terminated,
    /// Ended by time.
    Expired,
}

impl SessionStatus {
    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Terminated => "terminated",
            Self::Expired => "expired",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        match text {
            "active" => Ok(Self::Active),
            "suspended" => Ok(Self::Suspended),
            "terminated" => Ok(Self::Terminated),
            "expired" => Ok(Self::Expired),
            other => Err(StoreError::corrupt(format!("session status {other}"))),
        }
    }
}

/// The word under which a subject type is stored.
pub const fn subject_type_text(subject_type: SubjectType) -> &'static str {
    match subject_type {
        SubjectType::Application => "application",
        SubjectType::User => "user",
    }
}

pub(super) fn subject_type(text: &str) -> Result<SubjectType, StoreError> {
    match text {
        "application" => Ok(SubjectType::Application),
        "user" => Ok(SubjectType::User),
        other => Err(StoreError::corrupt(format!("subject type {other}"))),
    }
}

/// A Session as stored.
#[derive(Clone, Debug)]
pub struct SessionRow {
    /// Its id.
    pub id: SessionId,
    /// The application that it belongs to.
    pub application_id: ApplicationId,
    /// The Session that started it.
    pub parent_id: Option<SessionId>,
    /// The authority record that it is anchored to.
    pub subject_record_id: RecordId,
    /// Of which type that record is.
    pub subject_type: SubjectType,
    /// Task or service.
    pub lifecycle: Lifecycle,
    /// Labels, as sent.
    pub labels: Vec<String>,
    /// Metadata, JSON text.
    pub metadata_json: String,
    /// Its state.
    pub status: SessionStatus,
    /// 0 for a root.
    pub depth: u32,
    /// Children that have not ended.
    pub live_children: i64,
    /// Time to live that was asked for; tasks only.
    pub ttl_seconds: Option<i64>,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ends at the latest; tasks only.
    pub ends_at: Option<Timestamp>,
    /// When its holder was last heard of.
    pub last_active_at: Timestamp,
    /// Last heartbeat; services only.
    pub last_heartbeat_at: Option<Timestamp>,
    /// When the lease lapses; services only.
    pub heartbeat_deadline_at: Option<Timestamp>,
    /// Rises with every new holder of the lease; 0 for tasks.
    pub lease_generation: i64,
    /// When it ended.
    pub terminated_at: Option<Timestamp>,
    /// Why it ended.
    pub termination_reason: Option<String>,
    /// Last change of state.
    pub updated_at: Timestamp,
}

impl SessionRow {
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: SessionId::trusted(row.text("id")?),
            application_id: ApplicationId::trusted(row.text("application_id")?),
            parent_id: row.opt_text("parent_id")?.map(SessionId::trusted),
            subject_record_id: RecordId::trusted(row.text("subject_record_id")?),
            subject_type: subject_type(row.text("subject_type")?)?,
            lifecycle: Lifecycle::parse(row.text("lifecycle")?)?,
            labels: row.json("labels")?,
            metadata_json: row.string("metadata_json")?,
            status: SessionStatus::parse(row.text("status")?)?,
            depth: u32::try_from(row.int("depth")?).unwrap_or(u32::MAX),
            live_children: row.int("live_children")?,
            ttl_seconds: row.opt_int("ttl_seconds")?,
            started_at: row.time("started_at")?,
            ends_at: row.opt_time("ends_at")?,
            last_active_at: row.time("last_active_at")?,
            last_heartbeat_at: row.opt_time("last_heartbeat_at")?,
            heartbeat_deadline_at: row.opt_time("heartbeat_deadline_at")?,
            lease_generation: row.int("lease_generation")?,
            terminated_at: row.opt_time("terminated_at")?,
            termination_reason: row.opt_string("termination_reason")?,
            updated_at: row.time("updated_at")?,
        })
    }

    /// Reads it and keeps everybody from changing it before the transaction ends.
    pub(crate) async fn hold(
        tx: &mut Tx,
        zone: &ZoneId,
        id: &SessionId,
    ) -> Result<Option<Self>, StoreError> {
        let row = tx.query_opt(&sql::HOLD, &params![zone, id]).await?;
        row.as_ref().map(Self::read).transpose()
    }

    /// As [`Self::hold`], and keeps others from holding it.
    pub(crate) async fn hold_alone(
        tx: &mut Tx,
        zone: &ZoneId,
        id: &SessionId,
    ) -> Result<Option<Self>, StoreError> {
        let row = tx.query_opt(&sql::HOLD_ALONE, &params![zone, id]).await?;
        row.as_ref().map(Self::read).transpose()
    }

    /// Whether it has neither ended nor run out: only a live Session may start, delegate or renew.
    pub fn is_live(&self, now: Timestamp) -> bool {
        let until = match self.lifecycle {
            Lifecycle::Task => self.ends_at,
            Lifecycle::Service => self.heartbeat_deadline_at,
        };
        self.status == SessionStatus::Active && until.is_some_and(|until| until > now)
    }

    /// Whether it has ended for good.
    pub fn is_over(&self) -> bool {
        matches!(
            self.status,
            SessionStatus::Terminated | SessionStatus::Expired
        )
    }
}

/// A Session to be started.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// The application that it belongs to.
    pub application_id: ApplicationId,
    /// The Session that starts it.
    pub parent_id: Option<SessionId>,
    /// The authority record that it is anchored to.
    pub subject_record_id: RecordId,
    /// Of which type that record is.
    pub subject_type: SubjectType,
    /// Task or service.
    pub lifecycle: Lifecycle,
    /// Labels.
    pub labels: Vec<String>,
    /// Metadata, JSON text.
    pub metadata_json: String,
    /// 0 for a root.
    pub depth: u32,
    /// Time to live; tasks only.
    pub ttl_seconds: Option<i64>,
    /// Now.
    pub started_at: Timestamp,
    /// When it ends at the latest; tasks only.
    pub ends_at: Option<Timestamp>,
    /// When the lease lapses; services only.
    pub heartbeat_deadline_at: Option<Timestamp>,
}

/// How many live Sessions there may be.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// In the zone.
    pub zone: i64,
    /// Of the application.
    pub application: i64,
    /// Under one parent.
    pub children: i64,
    /// Below a root.
    pub depth: i64,
}

/// How many live Sessions there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In the zone; `None` before its first Session.
    pub zone: Option<i64>,
    /// Of the application; `None` before its first Session.
    pub application: Option<i64>,
}

impl Counts {
    /// Both have had Sessions before, and it does not matter how many.
    pub const SOME: Self = Self {
        zone: Some(0),
        application: Some(0),
    };
}

/// What came of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Everything was claimed and the row written.
    Done,
    /// Somebody was faster: look again to learn what is in the way, and roll this back.
    Raced,
}

/// What a list of Sessions is narrowed to.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionFilter<'a> {
    /// Only in this state.
    pub status: Option<&'a str>,
    /// Only tasks or only services.
    pub lifecycle: Option<&'a str>,
    /// Only of this application.
    pub application: Option<&'a str>,
    /// Only with this label.
    pub label: Option<&'a str>,
    /// Only what this application may see: its own, and the children of its own.
    pub visible_to: Option<&'a ApplicationId>,
}

/// A Session that a sweeper should look at, with its zone.
#[derive(Clone, Debug)]
pub struct Due {
    /// Its zone.
    pub zone: ZoneId,
    /// Its id.
    pub id: SessionId,
    /// The Session that started it.
    pub parent: Option<SessionId>,
}

impl Due {
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            zone: ZoneId::trusted(row.text("zone_id")?),
            id: SessionId::trusted(row.text("id")?),
            parent: row.opt_text("parent_id")?.map(SessionId::trusted),
        })
    }
}
