//! Events as Parquet, in the published columns (spec: audit-and-streams §9).
//!
//! The same events give the same bytes: nothing of the writer's time or place is in the file, so an
//! upload that was cut short can be repeated and compared.

use std::io::Write;
use std::sync::Arc;

use caracal_store::audit_events::AuditEvent;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde::Deserialize;
use serde_json::value::RawValue;

const SCHEMA: &str = "message audit_event {
    REQUIRED INT32 class_uid;
    REQUIRED INT32 type_uid;
    REQUIRED INT32 severity_id;
    REQUIRED INT32 activity_id;
    REQUIRED INT64 time;
    REQUIRED INT64 chain_seq;
    REQUIRED BYTE_ARRAY zone_id (STRING);
    REQUIRED BYTE_ARRAY request_id (STRING);
    REQUIRED BYTE_ARRAY policy_set_version_id (STRING);
    REQUIRED BYTE_ARRAY decision (STRING);
    REQUIRED BYTE_ARRAY metadata_version (STRING);
    REQUIRED BYTE_ARRAY product_name (STRING);
    REQUIRED BYTE_ARRAY event_id (STRING);
    REQUIRED BYTE_ARRAY event_type (STRING);
    REQUIRED BYTE_ARRAY policy_set_id (STRING);
    REQUIRED BYTE_ARRAY manifest_sha (STRING);
    REQUIRED BYTE_ARRAY evaluation_status (STRING);
    REQUIRED BYTE_ARRAY determining_policies_json (STRING);
    REQUIRED BYTE_ARRAY diagnostics_json (STRING);
    REQUIRED BYTE_ARRAY metadata_json (STRING);
    REQUIRED BYTE_ARRAY content_sha256 (STRING);
    REQUIRED BYTE_ARRAY chain_hmac (STRING);
}";

/// OCSF 1.7.0: class and type of an API activity.
const CLASS_UID: i32 = 6003;
const TYPE_UID: i32 = 600_301;
/// The version of OCSF that the columns follow.
pub(crate) const OCSF_VERSION: &str = "1.7.0";
const PRODUCT: &str = "caracal";
/// Events that are held in memory until they become a row group, and their bytes.
const GROUP: usize = 20_000;
const GROUP_BYTES: usize = 16 * 1024 * 1024;

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("parquet: {0}")]
pub struct TableError(#[from] ParquetError);

/// A Parquet file that is being written.
pub struct Table<W: Write + Send> {
    file: SerializedFileWriter<W>,
    group: Group,
}

impl<W: Write + Send> std::fmt::Debug for Table<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table(..)")
    }
}

/// The columns of a row group, in the order of the schema within their type.
#[derive(Default)]
struct Group {
    int32: [Vec<i32>; 4],
    int64: [Vec<i64>; 2],
    text: [Vec<ByteArray>; 16],
    rows: usize,
    bytes: usize,
}

/// What is only in the text of an event. A text that was changed into something else has none of it;
/// its chain is broken, which whoever reads the chain tells.
#[derive(Default, Deserialize)]
struct Text<'t> {
    evaluation_status: Option<String>,
    policy_set_id: Option<String>,
    policy_set_version_id: Option<String>,
    manifest_sha: Option<String>,
    #[serde(borrow)]
    determining_policies_json: Option<&'t RawValue>,
    #[serde(borrow)]
    diagnostics_json: Option<&'t RawValue>,
    #[serde(borrow)]
    metadata_json: Option<&'t RawValue>,
}

impl<W: Write + Send> Table<W> {
    /// A file without events yet.
    ///
    /// # Errors
    /// When `out` does not take its head.
    pub fn new(out: W) -> Result<Self, TableError> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let properties = WriterProperties::builder()
            .set_created_by(PRODUCT.to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .build();
        Ok(Self {
            file: SerializedFileWriter::new(out, schema, Arc::new(properties))?,
            group: Group::default(),
        })
    }

    /// Adds an event.
    ///
    /// # Errors
    /// When the file does not take it.
    pub fn push(&mut self, event: &AuditEvent) -> Result<(), TableError> {
        self.group.push(event);
        if self.group.rows >= GROUP || self.group.bytes >= GROUP_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When it does not take the rest.
    pub fn finish(mut self) -> Result<W, TableError> {
        self.flush()?;
        Ok(self.file.into_inner()?)
    }

    fn flush(&mut self) -> Result<(), TableError> {
        let group = std::mem::take(&mut self.group);
        if group.rows == 0 {
            return Ok(());
        }
        let mut writer = self.file.next_row_group()?;
        let (mut int32, mut int64, mut text) =
            (group.int32.iter(), group.int64.iter(), group.text.iter());
        while let Some(mut column) = writer.next_column()? {
            match column.untyped() {
                ColumnWriter::Int32ColumnWriter(column) => {
                    column.write_batch(next(&mut int32), None, None)?
                }
                ColumnWriter::Int64ColumnWriter(column) => {
                    column.write_batch(next(&mut int64), None, None)?
                }
                ColumnWriter::ByteArrayColumnWriter(column) => {
                    column.write_batch(next(&mut text), None, None)?
                }
                _ => {
                    let odd = "a column of a type that the schema does not have";
                    return Err(ParquetError::General(odd.to_owned()).into());
                }
            };
            column.close()?;
        }
        writer.close()?;
        Ok(())
    }
}

/// The next column; the schema has as many as the group.
fn next<'g, T>(columns: &mut impl Iterator<Item = &'g Vec<T>>) -> &'g [T] {
    columns.next().map_or(&[], Vec::as_slice)
}

impl Group {
    fn push(&mut self, event: &AuditEvent) {
        let text: Text<'_> = serde_json::from_str(&event.event).unwrap_or_default();
        let severity = if event.decision.eq_ignore_ascii_case("deny") {
            2
        } else {
            1
        };
        let int32 = [CLASS_UID, TYPE_UID, severity, severity];
        let seq = i64::try_from(event.chain_seq).unwrap_or(i64::MAX);
        let int64 = [event.occurred_at.unix_millis(), seq];
        let json =
            |value: Option<&RawValue>| value.map_or(String::new(), |raw| raw.get().to_owned());
        let texts = [
            event.zone.to_string(),
            event.request_id.clone(),
            text.policy_set_version_id.unwrap_or_default(),
            event.decision.clone(),
            OCSF_VERSION.to_owned(),
            PRODUCT.to_owned(),
            event.id.clone(),
            event.event_type.clone(),
            text.policy_set_id.unwrap_or_default(),
            text.manifest_sha.unwrap_or_default(),
            text.evaluation_status.unwrap_or_default(),
            json(text.determining_policies_json),
            json(text.diagnostics_json),
            json(text.metadata_json),
            event.content_sha256.clone(),
            event.chain_hmac.clone(),
        ];
        for (column, value) in self.int32.iter_mut().zip(int32) {
            column.push(value);
        }
        for (column, value) in self.int64.iter_mut().zip(int64) {
            column.push(value);
        }
        for (column, value) in self.text.iter_mut().zip(texts) {
            self.bytes += value.len();
            column.push(ByteArray::from(value.into_bytes()));
        }
        self.rows += 1;
    }
}

/// Whether two files hold the same events in the same order, however they are encoded.
pub(crate) fn hold_the_same(one: bytes::Bytes, other: bytes::Bytes) -> Result<bool, TableError> {
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    let (one, other) = (
        SerializedFileReader::new(one)?,
        SerializedFileReader::new(other)?,
    );
    let (mut one, mut other) = (one.get_row_iter(None)?, other.get_row_iter(None)?);
    loop {
        match (one.next().transpose()?, other.next().transpose()?) {
            (None, None) => return Ok(true),
            (Some(one), Some(other)) if one == other => {}
            _ => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use caracal_model::{Timestamp, ZoneId};
    use parquet::file::reader::{FileReader as _, SerializedFileReader};

    use super::*;

    fn event(seq: u64, decision: &str, text: &str) -> AuditEvent {
        AuditEvent {
            zone: ZoneId::trusted("z1"),
            chain_seq: seq,
            id: format!("e{seq}"),
            event_type: "token_exchange".into(),
            request_id: "r1".into(),
            decision: decision.into(),
            application_id: None,
            agent_session_id: None,
            authority_record_id: None,
            labels: Vec::new(),
            occurred_at: Timestamp::from_unix_micros(1_779_364_800_123_456),
            ingested_at: Timestamp::from_unix_micros(1_779_364_800_200_000),
            event: text.into(),
            content_sha256: "aa".into(),
            chain_hash: "bb".into(),
            chain_hmac: "cc".into(),
        }
    }

    fn file(events: &[AuditEvent]) -> Bytes {
        let mut table = Table::new(Vec::new()).unwrap();
        for event in events {
            table.push(event).unwrap();
        }
        table.finish().unwrap().into()
    }

    #[test]
    fn an_event_has_the_published_columns() {
        let text = r#"{"policy_set_version_id":"psv","evaluation_status":"complete","metadata_json":{"a": 1},"diagnostics_json":null}"#;
        let bytes = file(&[event(7, "DENY", text)]);
        let reader = SerializedFileReader::new(bytes).unwrap();
        let row = reader.get_row_iter(None).unwrap().next().unwrap().unwrap();
        let columns: Vec<String> = row
            .get_column_iter()
            .map(|(name, field)| format!("{name}={field}"))
            .collect();
        let expected = "class_uid=6003 type_uid=600301 severity_id=2 activity_id=2 \
             time=1779364800123 chain_seq=7 zone_id=\"z1\" request_id=\"r1\" \
             policy_set_version_id=\"psv\" decision=\"DENY\" metadata_version=\"1.7.0\" \
             product_name=\"caracal\" event_id=\"e7\" event_type=\"token_exchange\" \
             policy_set_id=\"\" manifest_sha=\"\" evaluation_status=\"complete\" \
             determining_policies_json=\"\" diagnostics_json=\"\" metadata_json=\"{\"a\": 1}\" \
             content_sha256=\"aa\" chain_hmac=\"cc\"";
        assert_eq!(columns.join(" "), expected);
        assert!(
            reader
                .metadata()
                .file_metadata()
                .schema_descr()
                .columns()
                .iter()
                .all(|column| column.max_def_level() == 0),
            "every column is required"
        );
    }

    #[test]
    fn the_same_events_give_the_same_bytes() {
        let events: Vec<_> = (1..=50).map(|seq| event(seq, "allow", "{}")).collect();
        assert_eq!(file(&events), file(&events));
        let (one, other) = (file(&events), file(&events[1..]));
        assert!(hold_the_same(one.clone(), one.clone()).unwrap());
        assert!(!hold_the_same(one.clone(), other).unwrap());
        assert!(hold_the_same(one, Bytes::from_static(b"no parquet")).is_err());
    }

    #[test]
    fn more_events_than_a_group_holds_make_several() {
        let events: Vec<_> = (1..=GROUP as u64 + 1)
            .map(|seq| event(seq, "allow", "{}"))
            .collect();
        let reader = SerializedFileReader::new(file(&events)).unwrap();
        assert_eq!(reader.num_row_groups(), 2);
        assert_eq!(reader.get_row_iter(None).unwrap().count(), GROUP + 1);
    }

    #[test]
    fn a_text_that_is_no_json_has_a_row_all_the_same() {
        let reader = SerializedFileReader::new(file(&[event(3, "allow", "{")])).unwrap();
        assert_eq!(reader.get_row_iter(None).unwrap().count(), 1);
    }
}
