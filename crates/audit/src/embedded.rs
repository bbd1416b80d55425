//! Embedded, the relay of evidence hands its batches to the ledger itself.

use async_trait::async_trait;
use caracal_evidence::{Pending, Sink, SinkError};

use crate::ingest::Ingest;

#[async_trait]
impl Sink for Ingest {
    /// Taken means committed to the ledger, or kept as an alert.
    async fn deliver(&self, batch: &[Pending]) -> Result<(), SinkError> {
        let texts = batch.iter().map(|event| event.wire.clone()).collect();
        let outcome = self.commit(texts).await.map_err(SinkError::new)?;
        for (at, why) in &outcome.rejected {
            let Some(event) = batch.get(*at) else {
                continue;
            };
            // It is ours, so this is a defect; without a dead-letter topic it stays as an alert.
            tracing::error!(event_id = event.id.as_str(), %why, "evidence cannot be stored");
            self.keep_unstorable(&event.id, &event.wire)
                .await
                .map_err(SinkError::new)?;
        }
        Ok(())
    }
}
