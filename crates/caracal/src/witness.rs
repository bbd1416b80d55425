//! Changes of Sessions, Delegations and policy are evidence: what the relay sends is also written
//! into the evidence log of the process.

use async_trait::async_trait;
use caracal_evidence::{EvidenceLog, lifecycle};
use caracal_store::outbox::Entry;
use caracal_view::Witness;

/// Writes down what the relay tells it.
pub struct IntoEvidence(pub EvidenceLog);

#[async_trait]
impl Witness for IntoEvidence {
    fn minds(&self, topic: &str) -> bool {
        lifecycle::is_evidence(topic)
    }

    async fn saw(
        &self,
        entries: Vec<Entry>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let events = entries.iter().filter_map(|entry| {
            let request = entry.request_id.as_deref();
            lifecycle::lifecycle(
                &entry.topic,
                &entry.id,
                request,
                &entry.zone,
                &entry.fields,
                entry.created_at,
            )
        });
        Ok(self.0.record(&events.collect::<Vec<_>>()).await?)
    }
}
