//! The running services: whether each answers, can serve, and is well by its own numbers
//! (operations specification §4 and §12, audit specification §14).

use std::time::Duration;

use caracal_model::{Secret, Timestamp};
use futures_util::future::join_all;
use http::StatusCode;
use serde_json::Value;

use crate::status;
use crate::web::{Answer, Call, NoAnswer};

use super::Patient;
use super::backends::skew;
use super::report::{Checks, Section};

/// How long one answer may take, and how often it is asked for when the connection fails.
const WITHIN: Duration = Duration::from_secs(5);
const TRIES: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(200);
/// `Date` has whole seconds.
const DATE_STEP: Duration = Duration::from_secs(1);
/// Entries of the outbox that wait, and evidence that is not in the ledger, before they need a look.
const MUCH_PENDING: f64 = 500.0;
const MUCH_LAG: f64 = 1_000.0;

/// Asks all of them; answers whether the API can be asked more.
pub async fn examine(patient: &Patient, checks: &mut Checks) -> bool {
    let api = patient.urls.api.clone();
    let before = patient.clock.now();
    let asked = ask(patient, Call::get(format!("{api}/health"))).await;
    let after = patient.clock.now();
    let answers = match &asked {
        Ok(answer) if answer.status.is_success() => {
            checks.ok(Section::Health, "API", "answers");
            date(answer, before, after, checks);
            true
        }
        Ok(answer) => {
            checks
                .fail(Section::Health, "API", told(answer))
                .advise("is that the API? See CARACAL_API_URL, or --api-url");
            false
        }
        Err(none) => {
            checks
                .fail(Section::Health, "API", format!("{none} at {api}"))
                .advise("start it (`caracal up`, or `caracal serve api`), or give --api-url");
            false
        }
    };
    let is_admin = answers && admin(patient, &api, checks).await;
    ready(patient, checks).await;
    numbers(patient, checks).await;
    if is_admin {
        checkpoints(patient, &api, checks).await;
        findings(patient, &api, checks).await;
    }
    is_admin
}

async fn ask(patient: &Patient, call: Call) -> Result<Answer, NoAnswer> {
    let mut tries = 1;
    loop {
        match patient.web.send(call.clone(), WITHIN).await {
            Err(NoAnswer::Unreachable) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(BETWEEN).await;
            }
            answer => return answer,
        }
    }
}

/// What is said of a token that cannot be sent.
const NO_HEADER: &str = "it holds characters that no header may hold";

/// With the token, if there is one.
fn with_token(call: Call, token: Option<&Secret<String>>) -> anyhow::Result<Call> {
    match token {
        Some(token) => call.bearer(token.expose()),
        None => Ok(call),
    }
}

fn told(answer: &Answer) -> String {
    let told = format!("{} {}", answer.status.as_u16(), answer.code());
    told.trim_end().to_owned()
}

/// The clock of the API by its `Date`, which is up to a second older than the answer.
fn date(answer: &Answer, before: Timestamp, after: Timestamp, checks: &mut Checks) {
    let name = "clock of the API";
    let said = answer.headers.get(http::header::DATE);
    let said = said.and_then(|date| date.to_str().ok());
    let read = said.and_then(|date| httpdate::parse_http_date(date).ok());
    let since = read.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
    let Some(since) = since else {
        checks.warn(Section::Health, name, "its answers have no Date");
        return;
    };
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let theirs = Timestamp::from_unix_seconds(seconds);
    skew(name, theirs, before.minus(DATE_STEP), after, checks);
}

async fn admin(patient: &Patient, api: &str, checks: &mut Checks) -> bool {
    let name = "admin token";
    let Some(token) = &patient.admin else {
        checks.fail(Section::Health, name, "there is none").advise(
            "set CARACAL_ADMIN_TOKEN or CARACAL_ADMIN_TOKEN_FILE, or give --admin-token-file",
        );
        return false;
    };
    let call = Call::get(format!("{api}/v1/zones?limit=1"));
    let Ok(call) = with_token(call, Some(token)) else {
        checks
            .fail(Section::Health, name, NO_HEADER)
            .advise("see the file that it is in: a line break, or a character that is not ASCII");
        return false;
    };
    match ask(patient, call).await {
        Ok(answer) if answer.status.is_success() => {
            checks.ok(Section::Health, name, "accepted");
            true
        }
        Ok(answer) => {
            checks
                .fail(Section::Health, name, told(&answer))
                .advise("give a token of this deployment that may read zones");
            false
        }
        Err(none) => {
            checks.fail(Section::Health, name, none.to_string());
            false
        }
    }
}

/// Whether anything was ever signed: an Audit without the key-encryption key signs nothing.
async fn checkpoints(patient: &Patient, api: &str, checks: &mut Checks) {
    let name = "evidence is signed for others";
    if let Some(keys) = known(patient, &format!("{api}/v1/audit-keys"), name, checks).await {
        judge_keys(name, &keys, checks);
    }
}

/// What the leading Audit found, ever: what its numbers say is gone once it was started again.
async fn findings(patient: &Patient, api: &str, checks: &mut Checks) {
    let name = "ledger was never found changed";
    let found = known(patient, &format!("{api}/v1/audit-findings"), name, checks).await;
    if let Some(found) = found {
        judge_findings(name, &found, checks);
    }
}

/// What the API answers; a token of one zone may not know.
async fn known(patient: &Patient, url: &str, name: &str, checks: &mut Checks) -> Option<Value> {
    // Whoever may not ask was told so with the token.
    let call = with_token(Call::get(url), patient.admin.as_ref()).ok()?;
    match ask(patient, call).await {
        Ok(answer) if answer.status.is_success() => {
            return Some(answer.value().unwrap_or_default());
        }
        Ok(answer) if answer.status == StatusCode::FORBIDDEN => {}
        Ok(answer) => {
            checks.warn(Section::Readiness, name, told(&answer));
        }
        Err(none) => {
            checks.warn(Section::Readiness, name, none.to_string());
        }
    }
    None
}

fn judge_findings(name: &str, found: &Value, checks: &mut Checks) {
    let Some(found) = found.pointer("/items").and_then(Value::as_array) else {
        checks.warn(Section::Readiness, name, "its answer has no items");
        return;
    };
    let Some(last) = found.last() else {
        checks.ok(Section::Readiness, name, "nothing was found");
        return;
    };
    let text = |field: &str| last.get(field).and_then(Value::as_str).unwrap_or_default();
    let seq = last.get("seq").and_then(Value::as_u64).unwrap_or_default();
    let count = found.len();
    let detail = format!(
        "{count} findings, the last of {}: log {}, {seq}: {}",
        text("found_at"),
        text("log"),
        text("flaw")
    );
    checks
        .warn(Section::Readiness, name, detail)
        .advise("run `caracal audit verify`, and see docs/operations/alerts.md");
}

fn judge_keys(name: &str, keys: &Value, checks: &mut Checks) {
    match keys.pointer("/items").and_then(Value::as_array) {
        Some(keys) if !keys.is_empty() => {
            checks.ok(Section::Readiness, name, "there is a key of checkpoints");
        }
        _ => checks
            .warn(Section::Readiness, name, "no checkpoint was ever signed")
            .advise("run the role audit with the SECRET_STORE_KEK that API and STS have"),
    }
}

async fn ready(patient: &Patient, checks: &mut Checks) {
    let urls = status::operated(patient.urls.clone(), &patient.environment);
    let services = urls.named();
    let asked = services.map(|(name, url)| async move {
        let answer = ask(patient, Call::get(format!("{url}/ready"))).await;
        (name, url, answer)
    });
    for (name, url, answer) in join_all(asked).await {
        let check = format!("{name} is ready");
        match answer {
            Ok(answer) if answer.status.is_success() => {
                checks.ok(Section::Readiness, check, "yes");
            }
            Ok(answer) => {
                let reason = answer.code();
                checks
                    .fail(Section::Readiness, check, told(&answer))
                    .advise(format!(
                        "it says why: {reason}; see docs/operations.md, and its log"
                    ));
            }
            Err(none) => {
                checks
                    .fail(Section::Readiness, check, format!("{none} at {url}"))
                    .advise(format!(
                        "start it, or set CARACAL_{}_URL to where it is",
                        name.to_uppercase()
                    ));
            }
        }
    }
}

/// A number of a service, and from when on it is bad.
struct Sign {
    check: &'static str,
    /// Where it stands in the answer, as a JSON pointer.
    at: &'static str,
    above: f64,
    is_failure: bool,
    advice: &'static str,
}

const fn fails(check: &'static str, at: &'static str, advice: &'static str) -> Sign {
    Sign {
        check,
        at,
        above: 0.0,
        is_failure: true,
        advice,
    }
}

const fn warns(check: &'static str, at: &'static str, above: f64, advice: &'static str) -> Sign {
    Sign {
        check,
        at,
        above,
        is_failure: false,
        advice,
    }
}

const TAMPERED: &str =
    "evidence was changed: run `caracal audit verify`, and keep the disk as it is";

#[rustfmt::skip] // one line a sign
const STS: [Sign; 5] = [
    fails("policy compiles", "/opa/compile_errors", "a zone's policy does not compile, so that zone is denied everything; see the log of the STS"),
    warns("policy evaluates", "/opa/eval_errors", 0.0, "questions that policy could not answer were denied; `caracal audit tail --decision deny` shows them"),
    warns("policy is fresh", "/opa/max_policy_age_seconds", 300.0, "the change feed does not reach the STS; see its log"),
    fails("evidence of the STS is kept", "/audit_dropped", "evidence was lost; see the disk of AUDIT_REPLAY_DIR"),
    warns("evidence of the STS is delivered", "/sts/audit_replay_oldest_age_seconds", 300.0, "Redis does not take evidence; see its memory and log"),
];
#[rustfmt::skip] // one line a sign
const AUDIT: [Sign; 8] = [
    fails("ledger is unchanged", "/tamper_mismatch_total", TAMPERED),
    fails("ledger is whole", "/tamper_chain_breaks", TAMPERED),
    fails("ledger has its key", "/tamper_hmac_failures", "links were made without AUDIT_HMAC_KEY: is it the same in every process?"),
    fails("no event came twice, changed", "/tamper_replay_total", TAMPERED),
    warns("evidence is signed", "/hmac_failures_total", 0.0, "a producer has another AUDIT_HMAC_KEY, or somebody else writes to the stream"),
    warns("no dead letters", "/dlq_size", 0.0, "look at caracal.audit.events.dlq, mend the cause, replay"),
    warns("evidence is exported", "/export_backlog_hours", 2.0, "complete hours wait: the log of Audit says why, AUDIT_EXPORT_… where to"),
    warns("evidence is ingested", "/consumer_lag", MUCH_LAG, "Audit does not keep up: see its store, or add a replica"),
];
#[rustfmt::skip] // one line a sign
const COORDINATOR: [Sign; 2] = [
    warns("no dead outbox entries", "/outbox/dead", 0.0, "revocations may not have been told; see OUTBOX_MAX_ATTEMPTS, and why Redis refused them"),
    warns("outbox drains", "/outbox/pending", MUCH_PENDING, "Redis does not take changes; see its memory and log"),
];

async fn numbers(patient: &Patient, checks: &mut Checks) {
    let (urls, metrics) = (&patient.urls, "METRICS_BEARER");
    for (service, url, token, signs) in [
        (
            "sts",
            format!("{}/metrics.json", urls.sts),
            metrics,
            STS.as_slice(),
        ),
        (
            "audit",
            format!("{}/metrics.json", urls.audit),
            metrics,
            AUDIT.as_slice(),
        ),
        (
            "coordinator",
            format!("{}/stats", urls.coordinator),
            "CARACAL_COORDINATOR_TOKEN",
            COORDINATOR.as_slice(),
        ),
    ] {
        let check = format!("numbers of {service}");
        let secret = patient.secret(token);
        // Not asked without: the service would refuse for another reason than the one to mend.
        let Ok(call) = with_token(Call::get(url), secret.as_ref()) else {
            checks
                .fail(Section::Readiness, check, format!("{token}: {NO_HEADER}"))
                .advise(
                    "see the file that it is in: a line break, or a character that is not ASCII",
                );
            continue;
        };
        match ask(patient, call).await {
            Ok(answer) if answer.status.is_success() => {
                judge(signs, &answer.value().unwrap_or_default(), checks);
            }
            Ok(answer)
                if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&answer.status) =>
            {
                checks
                    .warn(
                        Section::Readiness,
                        check,
                        format!("{}: not shown to us", told(&answer)),
                    )
                    .advise(format!(
                        "set {token} (or {token}_FILE) as the service has it"
                    ));
            }
            Ok(answer) => {
                checks.warn(Section::Readiness, check, told(&answer));
            }
            // That it does not answer was said above.
            Err(_) => {}
        }
    }
}

fn judge(signs: &[Sign], numbers: &Value, checks: &mut Checks) {
    for sign in signs {
        let number = numbers.pointer(sign.at);
        // A status that nothing has yet is left out: that is none.
        let number = number.map_or(Some(0.0), Value::as_f64);
        let Some(number) = number else {
            checks.warn(Section::Readiness, sign.check, "the service does not know");
            continue;
        };
        if number <= sign.above {
            checks.ok(Section::Readiness, sign.check, format!("{number}"));
            continue;
        }
        let detail = format!("{number} (more than {})", sign.above);
        let check = if sign.is_failure {
            checks.fail(Section::Readiness, sign.check, detail)
        } else {
            checks.warn(Section::Readiness, sign.check, detail)
        };
        check.advise(sign.advice);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::report::Status;

    #[test]
    fn a_token_goes_along_unless_no_header_may_hold_it() {
        let call = |token: Option<&str>| {
            let token = token.map(|token| Secret::new(token.to_owned()));
            with_token(Call::get("http://api"), token.as_ref())
        };
        assert!(call(None).unwrap().headers.is_empty());
        let headers = call(Some("t-1")).unwrap().headers;
        assert_eq!(headers["authorization"], "Bearer t-1");
        assert!(headers["authorization"].is_sensitive());
        for odd in ["two\nlines", "two\u{7f}", "two\u{0}"] {
            let refused = call(Some(odd)).err().map(|error| error.to_string());
            let told = refused.is_some_and(|refused| !refused.contains("two"));
            assert!(told, "{odd:?} is refused and not told");
        }
    }

    #[test]
    fn a_deployment_that_signs_nothing_needs_a_look() {
        for (keys, status) in [
            (json!({"items": []}), Status::Warn),
            (json!({"items": [{"id": "1"}]}), Status::Ok),
            (json!({}), Status::Warn),
        ] {
            let mut checks = Checks::default();
            judge_keys("signed", &keys, &mut checks);
            let told: Vec<_> = checks
                .outcomes()
                .into_iter()
                .map(|(_, status)| status)
                .collect();
            assert_eq!(told, [status], "{keys}");
        }
    }

    #[test]
    fn what_was_found_once_stays_told() {
        let told = |found: Value| {
            let mut checks = Checks::default();
            judge_findings("unchanged", &found, &mut checks);
            checks
                .outcomes()
                .into_iter()
                .map(|(_, status)| status)
                .collect::<Vec<_>>()
        };
        let finding = json!({"log": "z1", "seq": 7, "flaw": "the event was changed", "found_at": "2026-05-21"});
        assert_eq!(told(json!({"items": []})), [Status::Ok]);
        assert_eq!(told(json!({"items": [finding]})), [Status::Warn]);
    }

    #[test]
    fn each_number_is_judged_by_its_own_bound() {
        let status = |signs: &[Sign], numbers: Value| {
            let mut checks = Checks::default();
            judge(signs, &numbers, &mut checks);
            let outcomes = checks.outcomes().into_iter();
            outcomes.map(|(_, status)| status).collect::<Vec<_>>()
        };
        use Status::{Fail, Ok, Warn};
        assert_eq!(
            status(
                &STS,
                json!({
                    "opa": {"compile_errors": 1, "eval_errors": 2, "max_policy_age_seconds": 301.5},
                    "sts": {"audit_replay_oldest_age_seconds": 300}, "audit_dropped": 3,
                })
            ),
            [Fail, Warn, Warn, Fail, Ok]
        );
        assert_eq!(
            status(
                &AUDIT,
                json!({
                    "tamper_mismatch_total": 1, "tamper_chain_breaks": 1, "tamper_hmac_failures": 1,
                    "tamper_replay_total": 0, "hmac_failures_total": 1, "dlq_size": 1,
                    "export_backlog_hours": 3, "consumer_lag": 1001,
                })
            ),
            [Fail, Fail, Fail, Ok, Warn, Warn, Warn, Warn]
        );
        let outbox =
            |dead: u64, pending: u64| json!({"outbox": {"dead": dead, "pending": pending}});
        assert_eq!(status(&COORDINATOR, outbox(0, 500)), [Ok, Ok]);
        assert_eq!(status(&COORDINATOR, outbox(1, 501)), [Warn, Warn]);
        assert_eq!(status(&COORDINATOR, json!({"outbox": {}})), [Ok, Ok]);
        assert_eq!(
            status(&COORDINATOR, json!({"outbox": {"dead": null}})),
            [Warn, Ok]
        );
    }
}
