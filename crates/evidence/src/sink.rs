//! Where evidence goes: the audit stream when distributed, Audit itself when embedded.

use async_trait::async_trait;
use caracal_bus::{Bus, BusError, Position, Progress};
use caracal_crypto::HmacKey;
use caracal_model::change::Fields;
use caracal_model::{EventId, Topic};

/// An event on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its id.
    pub id: EventId,
    /// Its one text.
    pub wire: String,
}

/// The group of the audit stream in which Audit reads it into the ledger (spec: audit-and-streams
/// §2.1).
pub const LEDGER_GROUP: &str = "audit-ingestor";

/// What a sink has done with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// Kept it for good: it is deleted here.
    Kept,
    /// Sent it on, up to this position: it is kept here until [`Sink::progress`] has passed that.
    Sent(Position),
}

/// The sink did not take the batch; it is offered again.
#[derive(Debug, thiserror::Error)]
#[error("evidence was not taken: {source}")]
pub struct SinkError {
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl SinkError {
    /// From the error of whatever is behind the sink.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            source: source.into(),
        }
    }
}

/// Takes evidence over.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Takes a batch over, in order, all of it. After an error the same events come again.
    ///
    /// # Errors
    /// [`SinkError`] when not everything is known to be taken.
    async fn deliver(&self, batch: &[Pending]) -> Result<Delivered, SinkError>;

    /// How far what was sent has got; `None` from a sink that keeps what it takes.
    ///
    /// # Errors
    /// [`SinkError`] when that is not known now.
    async fn progress(&self) -> Result<Option<Progress>, SinkError> {
        Ok(None)
    }
}

/// The audit stream (spec: audit-and-streams §1.2, §4): `id`, `data` and, with a key, `sig`. A stream
/// is no place to keep: its server may lose what it has acknowledged. Audit has it once its group is
/// done with it.
#[derive(Clone, Debug)]
pub struct BusSink {
    bus: Bus,
    key: Option<HmacKey>,
}

impl BusSink {
    /// Appends to the audit stream of this bus, signed with `AUDIT_HMAC_KEY`.
    pub fn new(bus: Bus, key: Option<HmacKey>) -> Self {
        Self { bus, key }
    }

    fn fields(&self, event: &Pending) -> Fields {
        let mut fields = Fields::new();
        fields.insert("id".to_owned(), event.id.to_string());
        fields.insert("data".to_owned(), event.wire.clone());
        if let Some(key) = &self.key {
            fields.insert("sig".to_owned(), key.sign_hex(event.wire.as_bytes()));
        }
        fields
    }
}

#[async_trait]
impl Sink for BusSink {
    async fn deliver(&self, batch: &[Pending]) -> Result<Delivered, SinkError> {
        let entries: Vec<Fields> = batch.iter().map(|event| self.fields(event)).collect();
        let appended = self.bus.append(Topic::AuditEvents.name(), &entries).await?;
        Ok(appended
            .last()
            .map_or(Delivered::Kept, |last| Delivered::Sent(*last)))
    }

    async fn progress(&self) -> Result<Option<Progress>, SinkError> {
        let topic = Topic::AuditEvents.name();
        Ok(Some(self.bus.progress(topic, LEDGER_GROUP).await?))
    }
}

impl From<BusError> for SinkError {
    fn from(error: BusError) -> Self {
        Self::new(error)
    }
}
