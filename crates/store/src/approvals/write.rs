//! The steps of a hold, each one conditional update.

use caracal_model::{ApprovalId, Change, RecordId, Timestamp, ZoneId};
use serde_json::Value;

use super::{Approval, Verdict, Witness, sql};
use crate::error::StoreError;
use crate::params;
use crate::tx::ZoneTx;

/// Changes the holds of one zone, within a transaction.
#[derive(Debug)]
pub struct ApprovalsTx<'t> {
    at: ZoneTx<'t>,
    zone: &'t ZoneId,
}

impl<'t> ZoneTx<'t> {
    /// The holds of this zone.
    pub fn approvals(self) -> ApprovalsTx<'t> {
        let zone = self.id();
        ApprovalsTx { at: self, zone }
    }
}

impl ApprovalsTx<'_> {
    /// Issues a hold, unless its slot has a live one on the same terms. `true` when it was issued:
    /// then its evidence is kept with it.
    pub async fn issue(
        &mut self,
        hold: &Approval,
        witness: Witness<'_>,
    ) -> Result<bool, StoreError> {
        let (zone, slot, now) = (self.zone, hold.slot(), hold.created_at);
        let tx = self.at.tx();
        let retire = params![
            zone,
            slot.principal,
            slot.record(),
            slot.binding,
            now,
            &hold.terms
        ];
        tx.execute(&sql::RETIRE, &retire).await?;
        let own: Vec<&str> = hold.own_records.iter().map(RecordId::as_str).collect();
        let issue = params![
            &hold.id,
            zone,
            &hold.principal_id,
            hold.application_id.as_ref(),
            slot.record(),
            hold.agent_session_id.as_ref(),
            &hold.tier,
            &hold.approver_class,
            &hold.privacy_mode,
            &hold.subject_anchor,
            Value::from(own).to_string(),
            &hold.binding,
            &hold.terms,
            &hold.policy_set_version_id,
            hold.metadata.to_string(),
            now,
            hold.expires_at
        ];
        let issued = tx.execute(&sql::ISSUE, &issue).await? == 1;
        if issued {
            self.witness(witness, now).await?;
        }
        Ok(issued)
    }

    /// Decides a hold, once; `None` when it is not pending, or not for this class to decide. The
    /// evidence is kept when the caller calls [`ApprovalsTx::witness`] with it.
    pub async fn decide(
        &mut self,
        id: &ApprovalId,
        verdict: Verdict<'_>,
        now: Timestamp,
    ) -> Result<Option<Approval>, StoreError> {
        let params = params![
            self.zone,
            id,
            verdict.approved,
            now,
            verdict.approver,
            verdict.record,
            verdict.reason,
            verdict.class
        ];
        let row = self.at.tx().query_opt(&sql::DECIDE, &params).await?;
        let decided = row.as_ref().map(Approval::read).transpose()?;
        if decided.is_some() {
            let change = Change::Approval(self.zone.clone(), id.clone());
            self.at.tx().change(&change);
        }
        Ok(decided)
    }

    /// Spends a hold, once: only while it is approved, unexpired, bound to this and asked for by
    /// the policy that is active now, and the record that it was asked with is in force. `false`
    /// when it was not spent: roll back.
    pub async fn consume(
        &mut self,
        id: &ApprovalId,
        binding: &str,
        issued: Option<&RecordId>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let params = params![self.zone, id, now, binding, issued];
        Ok(self.at.tx().execute(&sql::CONSUME, &params).await? == 1)
    }

    /// Keeps evidence of this transaction until it is recorded.
    pub async fn witness(
        &mut self,
        witness: Witness<'_>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let params = params![witness.event_id, witness.event, now];
        self.at.tx().execute(&sql::WITNESS, &params).await.map(drop)
    }
}
