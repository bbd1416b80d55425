//! Subjects: whoever authority records speak for, users and applications alike (spec: admin-api
//! §7.9, sts §20.2).
//!
//! **Forces.** Most mandates have no row, so revoking rows does not reach them all. Sessions that
//! are being started hold their record's row; one that is being ended takes Sessions before records.
//!
//! **Choice.** [`SubjectsTx::cut_off`] ends Sessions first (the order of `sessions::end`), then the
//! records, then whatever Session had been started in between; and it writes a not-before time for
//! the subject, which kills the mandates that no row stands for.

use caracal_model::{Change, Outgoing, RecordId, SessionId, Timestamp, Topic, ZoneId};

use crate::authority_records::Provenance;
use crate::error::StoreError;
use crate::row::Row;
use crate::sessions::end::{Cut, Ended, Root};
use crate::zones::Slice;
use crate::{Store, Tx, ZoneScope, params, statements};

/// `revoked_reason` of the records of a subject that was cut off.
pub const REVOKED_REASON: &str = "subject_revoked";

macro_rules! summary {
    ($filter:literal) => {
        concat!(
            "SELECT * FROM (
                SELECT r.subject_id AS subject_id,
                    CAST(MAX(CASE r.record_type WHEN 'user' THEN 1 ELSE 0 END) AS BIGINT) AS federated,
                    MAX(a.name) AS application_name,
                    COUNT(*) AS total,
                    CAST(SUM(CASE WHEN r.status = 'active' AND r.expires_at > $2 THEN 1 ELSE 0 END)
                         AS BIGINT) AS active,
                    CAST(SUM(CASE r.status WHEN 'revoked' THEN 1 ELSE 0 END) AS BIGINT) AS revoked,
                    MIN(r.created_at) AS first_seen, MAX(r.created_at) AS last_seen,
                    MAX(r.revoked_at) AS last_revoked_at, MAX(r.claims_json) AS claims_json
                FROM authority_records r
                LEFT JOIN applications a ON a.zone_id = r.zone_id AND a.id = r.subject_id
                    AND r.record_type = 'application'
                WHERE r.zone_id = $1 ",
            $filter,
            " GROUP BY r.subject_id) s "
        )
    };
}

statements! { pub(crate) mod sql {
    PAGE = concat!(summary!("AND (CAST($3 AS TEXT) IS NULL OR r.record_type = $3)
            AND (CAST($4 AS TEXT) IS NULL OR LOWER(r.subject_id) LIKE $4 ESCAPE '!'
                 OR LOWER(a.name) LIKE $4 ESCAPE '!')"),
        "WHERE (s.last_seen, s.subject_id) < ($5, $6)
         ORDER BY s.last_seen DESC, s.subject_id DESC LIMIT $7");
    GET = summary!("AND r.subject_id = $3");
    GOVERNED = "SELECT COUNT(*) AS total,
            CAST(COALESCE(SUM(CASE s.status WHEN 'active' THEN 1 ELSE 0 END), 0) AS BIGINT) AS active
        FROM sessions s JOIN authority_records r ON r.id = s.subject_record_id
        WHERE s.zone_id = $1 AND r.zone_id = $1 AND r.subject_id = $2";
    RECENT = "SELECT s.id AS id, s.application_id AS application_id, a.name AS application_name,
            s.lifecycle AS lifecycle, s.status AS status, s.started_at AS started_at
        FROM sessions s JOIN authority_records r ON r.id = s.subject_record_id
        LEFT JOIN applications a ON a.zone_id = $1 AND a.id = s.application_id
        WHERE s.zone_id = $1 AND r.zone_id = $1 AND r.subject_id = $2
        ORDER BY s.started_at DESC, s.id DESC LIMIT 5";
    /// What it asked for, what its Sessions asked for, and what it alone may decide.
    APPROVALS = "SELECT COUNT(*) AS total, CAST(COALESCE(SUM(CASE
                WHEN h.consumed_at IS NULL AND h.rejected_at IS NULL AND h.satisfied_at IS NULL
                    AND h.expires_at > $3 THEN 1 ELSE 0 END), 0) AS BIGINT) AS pending
        FROM approvals h
        WHERE h.zone_id = $1 AND (h.principal_id = $2 OR h.subject_anchor = $2
            OR h.agent_session_id IN (
                SELECT s.id FROM sessions s JOIN authority_records r ON r.id = s.subject_record_id
                WHERE s.zone_id = $1 AND r.zone_id = $1 AND r.subject_id = $2))";
    KNOWN = "SELECT 1 AS one FROM authority_records WHERE zone_id = $1 AND subject_id = $2
        UNION ALL SELECT 1 FROM subject_cutoffs WHERE zone_id = $1 AND subject_id = $2
        UNION ALL SELECT 1 FROM applications
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL LIMIT 1";
    CUT = "INSERT INTO subject_cutoffs (zone_id, subject_id, not_before) VALUES ($1, $2, $3)
        ON CONFLICT (zone_id, subject_id) DO UPDATE SET not_before =
            CASE WHEN subject_cutoffs.not_before > $3 THEN subject_cutoffs.not_before ELSE $3 END
        RETURNING not_before";
    ROOTS = "SELECT s.id AS id, s.parent_id AS parent_id FROM sessions s
        WHERE s.zone_id = $1 AND s.status IN ('active', 'suspended')
          AND ((s.subject_type = 'application' AND s.application_id = $2)
               OR s.subject_record_id IN (SELECT r.id FROM authority_records r
                                          WHERE r.zone_id = $1 AND r.subject_id = $2))
        ORDER BY s.depth, s.id";
    RECORDS = "WITH RECURSIVE line (id) AS (
            SELECT id FROM authority_records WHERE zone_id = $1 AND subject_id = $2
            UNION
            SELECT child.id FROM authority_records child JOIN line ON child.parent_id = line.id
            WHERE child.zone_id = $1)
        UPDATE authority_records SET status = 'revoked', revoked_at = $3, revoked_reason = $4
        WHERE zone_id = $1 AND status = 'active' AND id IN (SELECT id FROM line)
        RETURNING id";
    REASON = "UPDATE authority_records SET revoked_reason = $4
        WHERE zone_id = $1 AND subject_id = $2 AND revoked_at = $3";
    CUTOFF = "SELECT not_before FROM subject_cutoffs WHERE zone_id = $1 AND subject_id = $2";
} }

/// One subject, summed up over its authority records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// `sub` of its mandates.
    pub id: String,
    /// Whether an issuer vouches for it: it is a user.
    pub federated: bool,
    /// Its name, when it is an application.
    pub application_name: Option<String>,
    /// Its authority records.
    pub total: u64,
    /// Those in force.
    pub active: u64,
    /// Those that were revoked.
    pub revoked: u64,
    /// When its first record was made.
    pub first_seen: Timestamp,
    /// When its last record was made.
    pub last_seen: Timestamp,
    /// When one was revoked last.
    pub last_revoked_at: Option<Timestamp>,
    /// Who vouches for it.
    pub issuer: Option<String>,
}

impl Subject {
    fn read(row: &Row) -> Result<Self, StoreError> {
        let claims: Option<Provenance> = row.opt_json("claims_json")?;
        Ok(Self {
            id: row.string("subject_id")?,
            federated: row.int("federated")? > 0,
            application_name: row.opt_string("application_name")?,
            total: row.count("total")?,
            active: row.count("active")?,
            revoked: row.count("revoked")?,
            first_seen: row.time("first_seen")?,
            last_seen: row.time("last_seen")?,
            last_revoked_at: row.opt_time("last_revoked_at")?,
            issuer: claims.map(|claims| claims.iss),
        })
    }
}

/// The governed Sessions that hang on a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Governed {
    /// All of them.
    pub total: u64,
    /// Those that are active.
    pub active: u64,
    /// The latest five.
    pub recent: Vec<GovernedSession>,
}

/// One Session that hangs on a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GovernedSession {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub application_id: String,
    /// The name of that application.
    pub application_name: Option<String>,
    /// `task` or `service`.
    pub lifecycle: String,
    /// Its state.
    pub status: String,
    /// When it started.
    pub started_at: Timestamp,
}

/// Which subjects to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'w> {
    /// `user` or `application`.
    pub kind: Option<&'w str>,
    /// Part of the id, or of an application's name, in any letter case.
    pub search: Option<&'w str>,
}

/// The subjects of one zone.
#[derive(Debug)]
pub struct Subjects<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The subjects of this zone.
    pub fn subjects(self) -> Subjects<'s> {
        Subjects(self)
    }
}

impl Subjects<'_> {
    /// A page, those with the latest record first. The slice is a place in that order.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(
        &self,
        wanted: Wanted<'_>,
        slice: Slice<'_>,
        now: Timestamp,
    ) -> Result<Vec<Subject>, StoreError> {
        let pattern = wanted.search.map(like);
        let params = params![
            self.0.id(),
            now,
            wanted.kind,
            &pattern,
            slice.before,
            slice.before_id,
            slice.limit
        ];
        let rows = self.0.query(&sql::PAGE, &params).await?;
        rows.iter().map(Subject::read).collect()
    }

    /// One subject; `None` when it never had a record.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, subject: &str, now: Timestamp) -> Result<Option<Subject>, StoreError> {
        let params = params![self.0.id(), now, subject];
        let row = self.0.query_opt(&sql::GET, &params).await?;
        row.as_ref().map(Subject::read).transpose()
    }

    /// The approvals that concern it: how many wait for a decision at `now`, and how many there are.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn approvals(&self, subject: &str, now: Timestamp) -> Result<Concerns, StoreError> {
        let params = params![self.0.id(), subject, now];
        let counts = self.0.query_opt(&sql::APPROVALS, &params).await?;
        let count = |name| counts.as_ref().map_or(Ok(0), |row| row.count(name));
        Ok(Concerns {
            pending: count("pending")?,
            total: count("total")?,
        })
    }

    /// The Sessions that hang on it.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn governed(&self, subject: &str) -> Result<Governed, StoreError> {
        let params = params![self.0.id(), subject];
        let counts = self.0.query_opt(&sql::GOVERNED, &params).await?;
        let count = |name| counts.as_ref().map_or(Ok(0), |row| row.count(name));
        let rows = self.0.query(&sql::RECENT, &params).await?;
        let recent = rows.iter().map(|row| {
            Ok(GovernedSession {
                id: SessionId::trusted(row.text("id")?),
                application_id: row.string("application_id")?,
                application_name: row.opt_string("application_name")?,
                lifecycle: row.string("lifecycle")?,
                status: row.string("status")?,
                started_at: row.time("started_at")?,
            })
        });
        Ok(Governed {
            total: count("total")?,
            active: count("active")?,
            recent: recent.collect::<Result<_, StoreError>>()?,
        })
    }
}

/// Approvals that concern a subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concerns {
    /// Those that nobody has decided, and that have not expired.
    pub pending: u64,
    /// All of them that are kept.
    pub total: u64,
}

/// A pattern of what contains this text, letter case aside.
fn like(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for letter in text.to_lowercase().chars() {
        if matches!(letter, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(letter);
    }
    pattern.push('%');
    pattern
}

impl Store {
    /// Up to when the mandates of a subject are dead, if it was ever cut off.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn subject_cutoff(
        &self,
        zone: &ZoneId,
        subject: &str,
    ) -> Result<Option<Timestamp>, StoreError> {
        let row = self
            .query_opt(&sql::CUTOFF, &params![zone, subject])
            .await?;
        row.map(|row| row.time("not_before")).transpose()
    }
}

/// What a cut-off took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutOff {
    /// Authority records that were in force.
    pub records: usize,
    /// Sessions that were live.
    pub sessions: usize,
    /// Delegations that were active.
    pub delegations: usize,
}

/// Changes of the subjects of one zone.
#[derive(Debug)]
pub struct SubjectsTx<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The subjects of this zone.
    pub fn subjects<'t>(&'t mut self, zone: &'t ZoneId) -> SubjectsTx<'t> {
        SubjectsTx { tx: self, zone }
    }
}

impl SubjectsTx<'_> {
    /// Takes everything from a subject that it holds now; `None` when nobody knows it. Mandates
    /// issued up to `not_before` are dead from now on. `reason` is what consumers are told.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn cut_off(
        &mut self,
        subject: &str,
        reason: &str,
        not_before: Timestamp,
        now: Timestamp,
    ) -> Result<Option<CutOff>, StoreError> {
        let who = params![self.zone, subject];
        if self.tx.query_opt(&sql::KNOWN, &who).await?.is_none() {
            return Ok(None);
        }
        let params = params![self.zone, subject, not_before];
        let row = self.tx.query_opt(&sql::CUT, &params).await?;
        let not_before = row.map_or(Ok(not_before), |row| row.time("not_before"))?;
        let (zone, name) = (self.zone.clone(), subject.to_owned());
        self.tx.change(&Change::Subject(zone, name, not_before));

        let mut off = CutOff::default();
        let ended = self.end_sessions(subject, reason, now).await?;
        off.add(&ended);
        // Those that went with their last Session say why in the words of the caller.
        let why = params![self.zone, subject, now, REVOKED_REASON];
        self.tx.execute(&sql::REASON, &why).await?;
        for row in self.tx.query(&sql::RECORDS, &why).await? {
            self.tell(&RecordId::trusted(row.text("id")?), reason);
            off.records += 1;
        }
        off.add(&self.end_sessions(subject, reason, now).await?);
        Ok(Some(off))
    }

    async fn end_sessions(
        &mut self,
        subject: &str,
        reason: &str,
        now: Timestamp,
    ) -> Result<Ended, StoreError> {
        let rows = self
            .tx
            .query(&sql::ROOTS, &params![self.zone, subject])
            .await?;
        let roots = rows.iter().map(|row| {
            Ok(Root {
                id: SessionId::trusted(row.text("id")?),
                parent: row.opt_text("parent_id")?.map(SessionId::trusted),
            })
        });
        let roots: Vec<Root> = roots.collect::<Result<_, StoreError>>()?;
        let cut = Cut {
            cut_off: true,
            ..Cut::of(&roots, reason, now)
        };
        self.tx.zone(self.zone).sessions().end(&cut).await
    }

    fn tell(&mut self, record: &RecordId, reason: &str) {
        let fields = [
            ("dedupe_key", Some(format!("subject:{record}"))),
            ("session_id", Some(record.to_string())),
            ("reason", Some(reason.to_owned())),
        ];
        let entry = Outgoing::new(Topic::SessionsRevoke, self.zone, fields);
        self.tx.announce(entry);
        let change = Change::Record(self.zone.clone(), record.clone());
        self.tx.change(&change);
    }
}

impl CutOff {
    fn add(&mut self, ended: &Ended) {
        self.sessions += ended.sessions.len();
        self.delegations += ended.edges.len();
        self.records += ended.revoked_records.len();
    }
}
