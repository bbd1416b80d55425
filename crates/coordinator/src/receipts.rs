//! Idempotency keys (spec: coordinator §10, §17.10).
//!
//! A fingerprint says what was asked and by whom, in terms that survive a new token: the calling
//! application, never the record of the moment. The key itself is stored as a MAC, because callers
//! put meaning into keys.

use std::time::Duration;

use caracal_crypto::digest::sha256_hex;
use caracal_crypto::mac::HmacKey;
use caracal_model::{ApplicationId, Timestamp, ZoneId};
use caracal_store::idempotency::{Receipt, ReceiptScope};
use caracal_store::{StoreError, Tx};
use http::HeaderMap;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::failure::{Code, Failure};
use crate::service::Coordinator;

/// Operation of a Session start.
pub const START: &str = "session.start.v2";
/// Operation of a Delegation.
pub const DELEGATE: &str = "delegation.create.v2";

const LABEL: &[u8] = b"caracal:coordinator:idempotency:v1\0";
const MAX_KEY_BYTES: usize = 255;
const MAX_BODY_BYTES: usize = 65_536;

/// Keys of the MAC under which idempotency keys are stored.
#[derive(Debug)]
pub struct KeyHashing {
    /// Writes and reads.
    pub current: HmacKey,
    /// Still reads, during a rotation.
    pub previous: Option<HmacKey>,
}

impl KeyHashing {
    fn hashes(&self, key: &str) -> Vec<String> {
        let labelled = [LABEL, key.as_bytes()].concat();
        let previous = self.previous.iter();
        std::iter::once(&self.current)
            .chain(previous)
            .map(|k| k.sign_hex(&labelled))
            .collect()
    }
}

/// A request under an idempotency key.
#[derive(Debug)]
pub struct Keyed<'a> {
    scope: ReceiptScope<'a>,
    zone: &'a ZoneId,
    /// Of the current key first.
    hashes: Vec<String>,
    fingerprint: String,
    retention: Duration,
}

/// The key of a request, if it has one.
///
/// # Errors
/// `idempotency_key_multiple`, `idempotency_key_invalid`.
pub fn key(headers: &HeaderMap) -> Result<Option<&str>, Failure> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let refuse = |code: Code| code.refuse().with("message", json!(code.row().2));
    if values.next().is_some() {
        return Err(refuse(Code::IdempotencyKeyMultiple));
    }
    std::str::from_utf8(value.as_bytes())
        .ok()
        .filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len()))
        .filter(|key| key.trim() == *key && !key.bytes().any(|b| b < 32 || b == 127))
        .map(Some)
        .ok_or_else(|| refuse(Code::IdempotencyKeyInvalid))
}

/// Whether the client made the key up for this one call: such keys are forgotten sooner.
pub fn is_generated(headers: &HeaderMap) -> bool {
    headers
        .get("idempotency-key-kind")
        .is_some_and(|kind| kind == "generated")
}

impl<'a> Keyed<'a> {
    /// A request with this key; `inputs` are the principal and the request after defaults.
    pub fn new(
        coordinator: &Coordinator,
        zone: &'a ZoneId,
        scope: ReceiptScope<'a>,
        key: &str,
        inputs: &Value,
        retention: Duration,
    ) -> Self {
        Self {
            scope,
            zone,
            hashes: coordinator.key_hashing.hashes(key),
            fingerprint: fingerprint(inputs),
            retention,
        }
    }

    /// The receipt of an earlier request with this key.
    ///
    /// # Errors
    /// `idempotency_key_conflict` when that was another request,
    /// `idempotency_receipt_limit_exceeded` when there is none and no room for one.
    pub async fn find(
        &self,
        coordinator: &Coordinator,
        now: Timestamp,
    ) -> Result<Option<Receipt>, Failure> {
        let zone = coordinator.store.zone(self.zone);
        let found = zone.receipts().find(&self.scope, &self.hashes, now).await?;
        let outcomes = &coordinator.metrics.idempotency;
        let Some(receipt) = found else {
            let most = coordinator.config.max_receipts;
            let room = (
                self.zone.clone(),
                self.scope.application.clone(),
                self.scope.operation,
            );
            let now_ticks = coordinator.clock.ticks();
            if !coordinator.room.is_known(&room, u64::from(most), now_ticks) {
                let live = zone.receipts().live(&self.scope, now, most).await?;
                if live >= u64::from(most) {
                    return Err(Code::IdempotencyReceiptLimit.into());
                }
                coordinator.room.learn(room, live, now_ticks);
            }
            return Ok(None);
        };
        if receipt.fingerprint != self.fingerprint {
            outcomes.conflicts();
            return Err(Code::IdempotencyKeyConflict.into());
        }
        Ok(Some(receipt))
    }

    /// The answer of the earlier request, once more.
    ///
    /// # Errors
    /// `idempotency_result_inactive` when what it created has ended.
    pub fn replay(
        coordinator: &Coordinator,
        receipt: Receipt,
        is_live: bool,
    ) -> Result<Answer, Failure> {
        if !is_live {
            coordinator.metrics.idempotency.expired();
            return Err(Code::IdempotencyResultInactive.into());
        }
        coordinator.metrics.idempotency.replayed();
        Ok(Answer::replayed(receipt.status, receipt.body_json))
    }

    /// Writes the receipt in the transaction of its result. `false`: somebody was faster.
    ///
    /// # Errors
    /// The store's.
    pub async fn write(
        &self,
        tx: &mut Tx,
        result_id: &str,
        answer: &Answer,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let body_json = answer.body_text();
        if body_json.len() > MAX_BODY_BYTES {
            return Err(StoreError::Invalid {
                doing: "write an idempotency receipt",
                what: "an answer of more than 64 KiB",
            });
        }
        let receipt = Receipt {
            fingerprint: self.fingerprint.clone(),
            result_id: result_id.to_owned(),
            status: i64::from(answer.status().as_u16()),
            body_json,
        };
        let Some(hash) = self.hashes.first() else {
            return Ok(false);
        };
        let until = now.plus(self.retention);
        tx.zone(self.zone)
            .receipts()
            .write(&self.scope, hash, &receipt, now, until)
            .await
    }
}

/// The application part of a scope is what the key belongs to.
pub const fn scope<'a>(
    operation: &'static str,
    application: &'a ApplicationId,
) -> ReceiptScope<'a> {
    ReceiptScope {
        operation,
        application,
    }
}

fn fingerprint(inputs: &Value) -> String {
    let mut text = String::new();
    canonical(inputs, &mut text);
    sha256_hex(text.as_bytes())
}

/// JSON text with members in byte order at every level, whatever the map keeps.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut names: Vec<&String> = members.keys().collect();
            names.sort_unstable();
            out.push('{');
            for (at, name) in names.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(name.clone()).to_string());
                out.push(':');
                canonical(members.get(name).unwrap_or(&Value::Null), out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn keys_have_one_form_and_stand_once() {
        let mut table = String::new();
        let long = "k".repeat(256);
        for (case, values) in [
            ("none", &[][..]),
            ("plain", &["order-7"]),
            ("twice", &["a", "a"]),
            ("empty", &[""]),
            ("padded", &[" a"]),
            ("long", &[long.as_str()]),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(
                    "idempotency-key",
                    HeaderValue::from_bytes(value.as_bytes()).unwrap(),
                );
            }
            let answer = match key(&headers) {
                Ok(key) => format!("{key:?}"),
                Err(failure) => format!("{} {}", failure.status().as_u16(), failure.error()),
            };
            table += &format!("{case:<7} | {answer}\n");
        }
        insta::assert_snapshot!(table, @r#"
        none    | None
        plain   | Some("order-7")
        twice   | 400 idempotency_key_multiple
        empty   | 400 idempotency_key_invalid
        padded  | 400 idempotency_key_invalid
        long    | 400 idempotency_key_invalid
        "#);
    }

    #[test]
    fn a_fingerprint_does_not_depend_on_the_order_of_members_but_on_that_of_items() {
        let one: Value = serde_json::from_str(r#"{"a":{"x":1,"y":[1,2]},"b":"\""}"#).unwrap();
        let two: Value = serde_json::from_str(r#"{"b":"\"","a":{"y":[1,2],"x":1}}"#).unwrap();
        let three: Value = serde_json::from_str(r#"{"b":"\"","a":{"y":[2,1],"x":1}}"#).unwrap();
        assert_eq!(fingerprint(&one), fingerprint(&two));
        assert_ne!(fingerprint(&one), fingerprint(&three));
    }
}
