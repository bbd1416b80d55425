//! What is known about the Session, the record and the Delegation that were presented (spec: sts
//! §9), gathered from memory for the kernel to judge.

use std::sync::Arc;

use caracal_authority::{EdgeFacts, Known, RecordFacts, SessionFacts};
use caracal_model::{
    DelegationId, RecordId, Refusal, Refused, SessionId, SubjectType, Timestamp, ZoneId,
};
use caracal_view::ViewError;

use crate::Sts;
use crate::authenticate::unavailable;

/// Facts of one request. The kernel borrows from it.
#[derive(Default)]
pub struct Gathered {
    /// The Delegation that was presented and its ancestors, from root to leaf.
    pub lineage: Vec<Arc<EdgeFacts>>,
    /// The zone's graph epoch.
    pub epoch: u64,
    sessions: Vec<Arc<SessionFacts>>,
    records: Vec<Arc<RecordFacts>>,
}

/// A Delegation whose constraints are not understood bounds nothing that we could rely on: it is
/// refused (spec: sts §9 row 5), and asking again does not help.
fn unreadable(error: ViewError) -> Refused {
    let ViewError::Corrupt(why) = error else {
        return unavailable(&error);
    };
    tracing::warn!(%why, "denied: a delegation cannot be read");
    Refusal::AccessDenied.because("the delegation's constraints are not understood")
}

/// What was presented.
#[derive(Clone, Copy, Default)]
pub struct Presented<'a> {
    /// Authority record; not that of a gateway mandate, which has no row.
    pub record: Option<&'a RecordId>,
    /// Authority record of whoever acts.
    pub actor: Option<&'a RecordId>,
    /// Governed Session.
    pub session: Option<&'a SessionId>,
    /// Delegation.
    pub delegation: Option<&'a DelegationId>,
}

impl Gathered {
    /// Gathers. What does not exist is left out, and the kernel refuses for want of it.
    ///
    /// # Errors
    /// 503 when state cannot be read.
    pub async fn gather(
        sts: &Sts,
        zone: &ZoneId,
        presented: Presented<'_>,
    ) -> Result<Self, Refused> {
        let since = sts.clock.ticks();
        let gathered = Self::load(sts, zone, presented).await;
        let stages = &sts.metrics.stages;
        stages.view.took(sts.clock.ticks().since(since));
        gathered
    }

    async fn load(sts: &Sts, zone: &ZoneId, presented: Presented<'_>) -> Result<Self, Refused> {
        let mut gathered = Self::default();
        for record in presented.record.into_iter().chain(presented.actor) {
            gathered.load_record(sts, zone, record).await?;
        }
        if let Some(session) = presented.session {
            gathered.load_session(sts, zone, session).await?;
        }
        if let Some(delegation) = presented.delegation {
            sts.metrics.graph_traversals.inc();
            let lineage = sts.views.lineage(zone, delegation).await;
            gathered.lineage = lineage.map_err(|error| {
                sts.metrics.graph_traversal_errors.inc();
                unreadable(error)
            })?;
            gathered.epoch = sts
                .views
                .epoch(zone)
                .await
                .map_err(|error| unavailable(&error))?;
            for at in 0..gathered.lineage.len() {
                let Some(edge) = gathered.lineage.get(at).map(Arc::clone) else {
                    break;
                };
                gathered
                    .load_session(sts, zone, &edge.source_session_id)
                    .await?;
                gathered
                    .load_session(sts, zone, &edge.target_session_id)
                    .await?;
            }
        }
        Ok(gathered)
    }

    /// Whether both know the same, but for the epoch, which is stamped and decides nothing.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        self.lineage == other.lineage
            && self.sessions == other.sessions
            && self.records == other.records
    }

    /// As the kernel takes it.
    pub fn known(&self) -> Known<'_> {
        Known {
            sessions: &self.sessions,
            records: &self.records,
        }
    }

    /// The Session with this id, if it exists.
    pub fn session(&self, id: Option<&SessionId>) -> Option<&SessionFacts> {
        let found = self.sessions.iter().find(|session| Some(&session.id) == id);
        found.map(AsRef::as_ref)
    }

    /// The user for whom a Session was started, while the record of the user is in force.
    pub fn user_of(&self, session: &SessionId, now: Timestamp) -> Option<&str> {
        let session = self.session(Some(session))?;
        let known = self.known();
        let record = known.live_record(&session.subject_record_id, now)?;
        let is_user = [session.subject_type, record.record_type] == [SubjectType::User; 2];
        is_user.then_some(&*record.subject_id)
    }

    async fn load_session(
        &mut self,
        sts: &Sts,
        zone: &ZoneId,
        id: &SessionId,
    ) -> Result<(), Refused> {
        if self.sessions.iter().any(|session| session.id == *id) {
            return Ok(());
        }
        let found = sts
            .views
            .session(zone, id)
            .await
            .map_err(|error| unavailable(&error))?;
        if let Some(session) = found {
            if session.subject_type == SubjectType::User {
                self.load_record(sts, zone, &session.subject_record_id)
                    .await?;
            }
            self.sessions.push(session);
        }
        Ok(())
    }

    async fn load_record(
        &mut self,
        sts: &Sts,
        zone: &ZoneId,
        id: &RecordId,
    ) -> Result<(), Refused> {
        let found = sts
            .views
            .record(zone, id)
            .await
            .map_err(|error| unavailable(&error))?;
        self.records.extend(found);
        Ok(())
    }
}
