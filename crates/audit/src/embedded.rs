//! Embedded, the relay of evidence hands its batches to the ledger itself.

use async_trait::async_trait;
use caracal_evidence::{Delivered, Pending, Sink, SinkError};

use crate::dead_letters::{TAMPERED, letter};
use crate::ingest::Ingest;

/// Some of a batch could not be taken just now.
#[derive(Debug, thiserror::Error)]
#[error("{events} events of a batch that was taken apart are delayed: {why}")]
struct Delayed {
    events: usize,
    why: String,
}

#[async_trait]
impl Sink for Ingest {
    /// Taken means that each is committed to the ledger, or kept as a dead letter.
    async fn deliver(&self, batch: &[Pending]) -> Result<Delivered, SinkError> {
        let texts = batch.iter().map(|event| event.wire.clone()).collect();
        let outcome = self.commit(texts).await.map_err(SinkError::new)?;
        if let Some((_, why)) = outcome.delayed.first() {
            // What was taken of the batch is known when it comes again, and what is rejected is rejected again.
            return Err(SinkError::new(Delayed {
                events: outcome.delayed.len(),
                why: why.clone(),
            }));
        }
        let rejected = outcome
            .rejected
            .iter()
            .map(|(at, why)| (*at, why.to_string()));
        let tampered = outcome.tampered.iter().map(|at| (*at, TAMPERED.to_owned()));
        let now = self.clock().now();
        let letters: Vec<_> = rejected
            .chain(tampered)
            .filter_map(|(at, why)| Some((batch.get(at)?, why)))
            .map(|(event, why)| {
                let source = [("data".to_owned(), event.wire.clone())];
                letter(source, event.id.to_string(), &why, now)
            })
            .collect();
        // They are ours, so this is a defect; they stay where an operator can look at them.
        self.bury(&letters).await.map_err(SinkError::new)?;
        Ok(Delivered::Kept)
    }
}
