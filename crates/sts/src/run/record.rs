//! Evidence of launches (spec: sts §17): durable before the answer leaves, also of a refusal.

use caracal_ledger::Event;
use caracal_model::{EventId, Refused, RequestId};
use caracal_store::workloads::Workload;
use serde_json::{Map, Value};

use crate::Sts;
use crate::exchange::record;

/// What the events of one request share.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    /// Where they are written.
    pub sts: &'a Sts,
    /// Who launches.
    pub workload: &'a Workload,
    /// The launch.
    pub launch_id: Option<&'a str>,
    /// The request.
    pub request_id: &'a RequestId,
}

impl Attempt<'_> {
    /// Records that a launch begins.
    ///
    /// # Errors
    /// 503 when it cannot be recorded: then it must not begin.
    pub async fn allow_launch(self) -> Result<(), Refused> {
        let mut metadata = self.metadata();
        metadata.insert(
            "binding_count".to_owned(),
            self.workload.bindings.len().into(),
        );
        let event = self.event("run_launch", "allow", "complete");
        record(self.sts, vec![event.metadata(metadata)]).await
    }

    /// Records that no launch begins; answers with what the caller is told.
    pub async fn refuse_launch(self, status: &'static str, refused: Refused) -> Refused {
        let mut metadata = self.metadata();
        metadata.insert("reason".to_owned(), (*refused.description).into());
        let event = self.event("run_launch", "deny", status);
        match record(self.sts, vec![event.metadata(metadata)]).await {
            Ok(()) => refused,
            Err(unrecorded) => unrecorded,
        }
    }

    /// An event without metadata.
    pub fn event(
        self,
        event_type: &'static str,
        decision: &'static str,
        status: &'static str,
    ) -> Event {
        Event::new(
            EventId::trusted(self.sts.ids.uuid()),
            self.workload.zone.clone(),
            event_type,
            self.request_id.as_str(),
            decision,
            status,
            self.sts.clock.now(),
        )
    }

    /// What every event says.
    pub fn metadata(self) -> Map<String, Value> {
        let mut metadata = Map::new();
        metadata.insert("workload_id".to_owned(), self.workload.id.as_str().into());
        metadata.insert(
            "workload_name".to_owned(),
            self.workload.name.as_str().into(),
        );
        if let Some(launch) = self.launch_id {
            metadata.insert("launch_id".to_owned(), launch.into());
        }
        metadata
    }
}
