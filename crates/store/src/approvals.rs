//! Approvals: holds that wait for a human (spec: sts §11).
//!
//! **Forces.** Several replicas issue, decide and spend one hold at the same time, and time ends it
//! meanwhile. A hold that is spent twice, or after a no, is a breach.
//!
//! **Choice.** Every step is one conditional update that names all that must hold, so the store
//! orders the steps and the loser changes nothing. What comes of a step (the authority record, the
//! evidence of it, the news) is written in its transaction. Evidence goes into a log of its own
//! later, so a copy waits in the store until it is there: see [`Store::approval_evidence`].
//!
//! INVARIANT (spend once): [`ApprovalsTx::consume`] is the only statement that sets `consumed_at`,
//! and it asks for an unspent, approved, unexpired hold of the policy that is active now.

use caracal_model::{ApplicationId, ApprovalId, RecordId, SessionId, Timestamp, ZoneId};
use serde_json::Value;

use crate::error::StoreError;
use crate::row::Row;
use crate::statements;

mod read;
mod write;

pub use read::Approvals;
pub use write::ApprovalsTx;

macro_rules! columns {
    () => {
        "id, zone_id, principal_id, application_id, record_id, agent_session_id, tier, \
         approver_class, privacy_mode, subject_anchor, own_records, binding, terms, \
         policy_set_version_id, metadata_json, live, created_at, expires_at, satisfied_at, \
         rejected_at, approver, approver_record_id, decision_reason, consumed_at, issued_record_id"
    };
}

/// The state of a row at `$now` (spec: sts §11.1), for filters.
macro_rules! state {
    ($now:literal) => {
        concat!(
            "CASE WHEN consumed_at IS NOT NULL THEN 'consumed'
                  WHEN rejected_at IS NOT NULL THEN 'rejected'
                  WHEN expires_at <= ",
            $now,
            " THEN 'expired'
                  WHEN satisfied_at IS NOT NULL THEN 'approved'
                  ELSE 'pending' END"
        )
    };
}

statements! { pub(crate) mod sql {
    ANYWHERE = concat!("SELECT ", columns!(), " FROM approvals WHERE id = $1");
    MANY = pg: concat!("SELECT ", columns!(), " FROM approvals WHERE id = ANY($1)"),
           lite: concat!("SELECT ", columns!(), " FROM approvals
                          WHERE id IN (SELECT value FROM json_each($1))");
    GET = concat!("SELECT ", columns!(), " FROM approvals WHERE zone_id = $1 AND id = $2");
    LIVE = concat!("SELECT ", columns!(), " FROM approvals
                    WHERE zone_id = $1 AND principal_id = $2 AND record_id = $3 AND binding = $4
                      AND live");
    /// What is over, or stands on other terms, makes room. It stays readable until it is purged.
    RETIRE = "UPDATE approvals SET live = FALSE,
                  expires_at = CASE WHEN expires_at > $5 THEN $5 ELSE expires_at END
              WHERE zone_id = $1 AND principal_id = $2 AND record_id = $3 AND binding = $4
                AND live AND (expires_at <= $5 OR terms <> $6)";
    ISSUE = "INSERT INTO approvals (id, zone_id, principal_id, application_id, record_id,
                 agent_session_id, tier, approver_class, privacy_mode, subject_anchor, own_records,
                 binding, terms, policy_set_version_id, metadata_json, live, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, TRUE, $16,
                 $17)
             ON CONFLICT (zone_id, principal_id, record_id, binding) WHERE live DO NOTHING";
    DECIDE = concat!("UPDATE approvals SET
                          satisfied_at = CASE WHEN $3 THEN CAST($4 AS BIGINT) END,
                          rejected_at = CASE WHEN $3 THEN NULL ELSE CAST($4 AS BIGINT) END,
                          approver = $5, approver_record_id = $6, decision_reason = $7
                      WHERE zone_id = $1 AND id = $2 AND satisfied_at IS NULL
                        AND rejected_at IS NULL AND consumed_at IS NULL AND expires_at > $4
                        AND approver_class IN ($8, 'any')
                      RETURNING ", columns!());
    CONSUME = "UPDATE approvals SET consumed_at = $3, live = FALSE, issued_record_id = $5
               WHERE zone_id = $1 AND id = $2 AND binding = $4 AND consumed_at IS NULL
                 AND rejected_at IS NULL AND satisfied_at IS NOT NULL AND approver IS NOT NULL
                 AND expires_at > $3
                 AND EXISTS (SELECT 1 FROM policy_bindings
                             WHERE policy_bindings.zone_id = $1
                               AND policy_bindings.version_id = approvals.policy_set_version_id)
                 AND (record_id = '' OR EXISTS (
                      SELECT 1 FROM authority_records held
                      WHERE held.zone_id = $1 AND held.id = approvals.record_id
                        AND held.status = 'active' AND held.expires_at > $3))";
    IS_CURRENT = "SELECT 1 AS one FROM policy_bindings WHERE zone_id = $1 AND version_id = $2";
    PAGE = concat!("SELECT ", columns!(), ",
            (SELECT COUNT(*) FROM approvals other WHERE other.zone_id = approvals.zone_id
                AND other.binding = approvals.binding AND other.id <> approvals.id
                AND other.satisfied_at IS NOT NULL) AS prior_approved,
            (SELECT COUNT(*) FROM approvals other WHERE other.zone_id = approvals.zone_id
                AND other.binding = approvals.binding AND other.id <> approvals.id
                AND other.rejected_at IS NOT NULL) AS prior_rejected,
            (SELECT COUNT(*) FROM authority_records held WHERE held.zone_id = approvals.zone_id
                AND held.subject_id = approvals.principal_id AND held.record_type = 'user')
                AS federated
        FROM approvals
        WHERE zone_id = $1 AND (created_at < $2 OR (created_at = $2 AND id < $3))
          AND (CAST($4 AS TEXT) IS NULL OR ", state!("$5"), " = $4)
          AND (CAST($6 AS TEXT) IS NULL OR tier = $6)
          AND (CAST($7 AS TEXT) IS NULL OR principal_id = $7)
          AND (CAST($8 AS BIGINT) IS NULL OR created_at >= $8)
          AND (CAST($9 AS BIGINT) IS NULL OR created_at <= $9)
          AND (CAST($10 AS TEXT) IS NULL OR id = $10)
        ORDER BY created_at DESC, id DESC LIMIT $11");
    COUNTS = concat!("SELECT state, COUNT(*) AS rows FROM (
                          SELECT ", state!("$2"), " AS state FROM approvals WHERE zone_id = $1
                      ) states GROUP BY state");
    /// A rejected hold answers repeated requests until it expires, so expiry is its end as well.
    PURGE = "DELETE FROM approvals WHERE id IN (
                 SELECT id FROM approvals
                 WHERE consumed_at < $1 OR (consumed_at IS NULL AND expires_at < $1) LIMIT $2)";
    ANCESTRY = pg: "WITH RECURSIVE line (start, id) AS (
                        SELECT id, id FROM authority_records WHERE zone_id = $1 AND id = ANY($2)
                        UNION
                        SELECT line.start, child.parent_id FROM line
                        JOIN authority_records child ON child.id = line.id AND child.zone_id = $1
                        WHERE child.parent_id IS NOT NULL)
                    SELECT start, id FROM line",
               lite: "WITH RECURSIVE line (start, id) AS (
                        SELECT id, id FROM authority_records WHERE zone_id = $1
                            AND id IN (SELECT value FROM json_each($2))
                        UNION
                        SELECT line.start, child.parent_id FROM line
                        JOIN authority_records child ON child.id = line.id AND child.zone_id = $1
                        WHERE child.parent_id IS NOT NULL)
                    SELECT start, id FROM line";
    WITNESS = "INSERT INTO approval_evidence (event_id, event, created_at) VALUES ($1, $2, $3)";
    WITNESSED = pg: "DELETE FROM approval_evidence WHERE event_id = ANY($1)",
                lite: "DELETE FROM approval_evidence
                       WHERE event_id IN (SELECT value FROM json_each($1))";
    LEFT_BEHIND = "SELECT event_id, event FROM approval_evidence WHERE created_at < $1
                   ORDER BY created_at LIMIT $2";
} }

/// A hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Approval {
    /// Its id, not to be guessed.
    pub id: ApprovalId,
    /// Its zone.
    pub zone: ZoneId,
    /// Who asked: an application or a workload.
    pub principal_id: String,
    /// The calling application; none for a workload.
    pub application_id: Option<ApplicationId>,
    /// The authority record that was presented.
    pub record_id: Option<RecordId>,
    /// The governed Session.
    pub agent_session_id: Option<SessionId>,
    /// Names of the tiers, joined.
    pub tier: String,
    /// `operator`, `subject` or `any`.
    pub approver_class: String,
    /// `identified`, `pseudonymous` or `anonymous`.
    pub privacy_mode: String,
    /// The only user who may decide, if there is one.
    pub subject_anchor: Option<String>,
    /// Records whose holders may not decide.
    pub own_records: Vec<RecordId>,
    /// What it is bound to.
    pub binding: String,
    /// What the binding leaves open.
    pub terms: String,
    /// The policy that asked for it.
    pub policy_set_version_id: String,
    /// What approvers are shown.
    pub metadata: Value,
    /// Whether a repeated request finds it.
    pub live: bool,
    /// When it was issued.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Timestamp,
    /// When somebody said yes.
    pub satisfied_at: Option<Timestamp>,
    /// When somebody said no.
    pub rejected_at: Option<Timestamp>,
    /// Who decided, as far as its privacy says.
    pub approver: Option<String>,
    /// The authority record of the user who decided.
    pub approver_record_id: Option<RecordId>,
    /// Why.
    pub decision_reason: Option<String>,
    /// When it was spent.
    pub consumed_at: Option<Timestamp>,
    /// The authority record that came of it.
    pub issued_record_id: Option<RecordId>,
}

impl Approval {
    /// A hold that nobody has decided: an operator's, asked for by nobody in particular.
    pub fn undecided(
        id: ApprovalId,
        zone: ZoneId,
        created_at: Timestamp,
        expires_at: Timestamp,
    ) -> Self {
        Self {
            id,
            zone,
            principal_id: String::new(),
            application_id: None,
            record_id: None,
            agent_session_id: None,
            tier: String::new(),
            approver_class: "operator".to_owned(),
            privacy_mode: "identified".to_owned(),
            subject_anchor: None,
            own_records: Vec::new(),
            binding: String::new(),
            terms: String::new(),
            policy_set_version_id: String::new(),
            metadata: Value::Null,
            live: true,
            created_at,
            expires_at,
            satisfied_at: None,
            rejected_at: None,
            approver: None,
            approver_record_id: None,
            decision_reason: None,
            consumed_at: None,
            issued_record_id: None,
        }
    }

    fn read(row: &Row) -> Result<Self, StoreError> {
        let record = row.string("record_id")?;
        let own: Vec<String> = row.json("own_records")?;
        Ok(Self {
            id: ApprovalId::trusted(row.text("id")?),
            zone: ZoneId::trusted(row.text("zone_id")?),
            principal_id: row.string("principal_id")?,
            application_id: row.opt_text("application_id")?.map(ApplicationId::trusted),
            record_id: (!record.is_empty()).then(|| RecordId::trusted(record)),
            agent_session_id: row.opt_text("agent_session_id")?.map(SessionId::trusted),
            tier: row.string("tier")?,
            approver_class: row.string("approver_class")?,
            privacy_mode: row.string("privacy_mode")?,
            subject_anchor: row.opt_string("subject_anchor")?,
            own_records: own.into_iter().map(RecordId::trusted).collect(),
            binding: row.string("binding")?,
            terms: row.string("terms")?,
            policy_set_version_id: row.string("policy_set_version_id")?,
            metadata: row.json("metadata_json")?,
            live: row.bool("live")?,
            created_at: row.time("created_at")?,
            expires_at: row.time("expires_at")?,
            satisfied_at: row.opt_time("satisfied_at")?,
            rejected_at: row.opt_time("rejected_at")?,
            approver: row.opt_string("approver")?,
            approver_record_id: row.opt_text("approver_record_id")?.map(RecordId::trusted),
            decision_reason: row.opt_string("decision_reason")?,
            consumed_at: row.opt_time("consumed_at")?,
            issued_record_id: row.opt_text("issued_record_id")?.map(RecordId::trusted),
        })
    }

    fn slot(&self) -> Slot<'_> {
        Slot {
            principal: &self.principal_id,
            record: self.record_id.as_ref(),
            binding: &self.binding,
        }
    }
}

/// What at most one live hold exists for in a zone.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// Who asks.
    pub principal: &'a str,
    /// The authority record that was presented.
    pub record: Option<&'a RecordId>,
    /// What the hold is bound to.
    pub binding: &'a str,
}

impl Slot<'_> {
    fn record(&self) -> &str {
        self.record.map_or("", RecordId::as_str)
    }
}

/// A human's decision.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'a> {
    /// Yes or no.
    pub approved: bool,
    /// Who, as it is kept.
    pub approver: &'a str,
    /// The authority record of a user.
    pub record: Option<&'a RecordId>,
    /// Why.
    pub reason: Option<&'a str>,
    /// `operator` or `subject`: the class of the hold must be it, or `any`.
    pub class: &'static str,
}

/// The text of an evidence event that is committed with what it tells of.
#[derive(Clone, Copy, Debug)]
pub struct Witness<'a> {
    /// Its id.
    pub event_id: &'a str,
    /// Its one text.
    pub event: &'a str,
}

/// Which rows of a list are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    /// In this state now.
    pub state: Option<&'a str>,
    /// Of these tiers, joined.
    pub tier: Option<&'a str>,
    /// Of this principal.
    pub principal: Option<&'a str>,
    /// Issued then or later.
    pub since: Option<Timestamp>,
    /// Issued then or earlier.
    pub until: Option<Timestamp>,
}

/// A row of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The hold.
    pub approval: Approval,
    /// Other holds with its binding that were approved.
    pub prior_approved: u64,
    /// Other holds with its binding that were rejected.
    pub prior_rejected: u64,
    /// Whether its principal is a federated user.
    pub principal_federated: bool,
}

impl Listed {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            approval: Approval::read(row)?,
            prior_approved: row.count("prior_approved")?,
            prior_rejected: row.count("prior_rejected")?,
            principal_federated: row.count("federated")? > 0,
        })
    }
}

#[cfg(test)]
mod tests;
