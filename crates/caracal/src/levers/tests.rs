//! What is told of the levers is so, and nothing is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::*;

/// Every name of operations §2.1 to §2.6.
const PUBLISHED: &[(&str, &str)] = &[
    (
        "api",
        "DB_POOL_MAX DB_STATEMENT_TIMEOUT_MS DB_IDLE_IN_TX_TIMEOUT_MS DB_CONNECTION_TIMEOUT_MS \
         DB_IDLE_TIMEOUT_MS OUTBOX_POLL_MS OUTBOX_BATCH_SIZE OUTBOX_LOCK_SEC OUTBOX_MAX_ATTEMPTS \
         OUTBOX_STREAM_MAXLEN API_V1_RATE_LIMIT_PER_MIN ADMIN_AUTH_FAIL_LIMIT_PER_MIN \
         READY_RATE_LIMIT_PER_MIN API_BODY_LIMIT_BYTES REQUEST_TIMEOUT_MS KEEP_ALIVE_TIMEOUT_MS \
         API_MAX_RESOURCES_PER_ZONE API_READY_OUTBOX_DEAD_MAX ADMIN_TOKEN_LAST_USED_DEBOUNCE_SEC \
         SHUTDOWN_GRACE_MS STS_MINT_RATE_LIMIT_PER_MIN AUDIT_RETENTION_DAYS CONTROL_RATE_CAPACITY \
         CONTROL_RATE_WINDOW_SEC CONTROL_REPLAY_TTL_SEC CONTROL_INVOKE_IP_RATE_LIMIT_PER_MIN \
         API_OPERATOR_MAX_CONCURRENT_RUNS_PER_USER API_OPERATOR_AI_MAX_OUTPUT_TOKENS \
         API_OPERATOR_AI_MAX_CALLS_PER_TURN API_OPERATOR_AUTOPILOT_WRITE_BUDGET TRUST_PROXY \
         API_OPERATOR_ENABLED API_OPERATOR_AUTOPILOT_ENABLED API_OPERATOR_ALLOWED_CAPABILITIES \
         API_OPERATOR_SYSTEM_ZONES WORKER_ID CARACAL_CONTROL_ENABLED STS_JWKS_URL STS_ISSUER_URL \
         CONTROL_AUDIENCE CONTROL_API_TOKEN CONTROL_GATE_FILE API_ENABLE_DOCS",
    ),
    (
        "sts",
        "OPA_POLL_SECONDS MAX_GRANT_TTL_SECONDS STS_MINT_RATE_LIMIT_PER_MIN \
         STS_SECRET_VERIFY_CONCURRENCY AUDIT_REPLAY_DIR DB_MAX_CONNS DB_MIN_CONNS \
         DB_CONNECT_TIMEOUT DB_MAX_CONN_LIFETIME DB_MAX_CONN_IDLE DB_HEALTH_CHECK_PERIOD \
         ISSUER_URL CARACAL_PRIVATE_EGRESS_HOSTS CARACAL_TLS_EXTRA_CA_FILE STS_ADMIN_TOKEN",
    ),
    (
        "gateway",
        "MAX_REQUEST_BYTES STS_TIMEOUT UPSTREAM_TIMEOUT READ_TIMEOUT READ_HEADER_TIMEOUT \
         IDLE_TIMEOUT WRITE_TIMEOUT STREAM_IDLE_TIMEOUT UPSTREAM_HOST_ALLOWLIST TRUST_PROXY \
         JTI_FAIL_OPEN TLS_CERT_FILE TLS_KEY_FILE REDIS_POOL_SIZE REDIS_MIN_IDLE_CONNS \
         REDIS_DIAL_TIMEOUT REDIS_READ_TIMEOUT REDIS_WRITE_TIMEOUT REDIS_POOL_TIMEOUT \
         AUDIT_REPLAY_DIR DB_MAX_CONNS DB_MIN_CONNS DB_CONNECT_TIMEOUT DB_MAX_CONN_LIFETIME \
         DB_MAX_CONN_IDLE DB_HEALTH_CHECK_PERIOD CARACAL_ADMIN_TOKEN STS_URL",
    ),
    (
        "audit",
        "AUDIT_RETENTION_DAYS AUDIT_MAX_DELIVERIES AUDIT_CLAIM_IDLE_SECS AUDIT_READY_DLQ_MAX \
         AUDIT_READY_LAG_MAX AUDIT_READY_PEL_OLDEST_SECS_MAX AUDIT_TAMPER_ROLLING_HOURS \
         AUDIT_EXPORT_S3_BUCKET AUDIT_EXPORT_S3_ENDPOINT AUDIT_EXPORT_S3_REGION \
         AUDIT_EXPORT_TMP_DIR AUDIT_ADMIN_TOKEN DB_MAX_CONNS DB_MIN_CONNS DB_CONNECT_TIMEOUT \
         DB_MAX_CONN_LIFETIME DB_MAX_CONN_IDLE DB_HEALTH_CHECK_PERIOD",
    ),
    (
        "coordinator",
        "DB_POOL_MAX DB_STATEMENT_TIMEOUT_MS DB_CONNECTION_TIMEOUT_MS DB_IDLE_TIMEOUT_MS \
         TTL_SWEEP_INTERVAL_MS SERVICE_LEASE_SWEEP_INTERVAL_MS DEADLINE_SWEEP_INTERVAL_MS \
         SWEEPER_BATCH_SIZE SERVICE_AGENT_LEASE_SECONDS OUTBOX_INTERVAL_MS OUTBOX_BATCH_SIZE \
         OUTBOX_MAX_ATTEMPTS STREAMS_MAXLEN MAX_AGENTS_PER_ZONE MAX_AGENTS_PER_APP \
         COORDINATOR_RATE_LIMIT_PER_MIN READY_RATE_LIMIT_PER_MIN VERIFY_RATE_LIMIT_PER_MIN \
         INVOCATION_RATE_LIMIT_PER_MIN RETENTION_CLEANUP_INTERVAL_MS RETENTION_CLEANUP_BATCH_SIZE \
         SESSION_RETENTION_DAYS DELEGATION_RETENTION_DAYS OUTBOX_RETENTION_DAYS \
         IDEMPOTENCY_RETENTION_SECONDS GENERATED_IDEMPOTENCY_RETENTION_SECONDS \
         IDEMPOTENCY_MAX_RECEIPTS_PER_SCOPE COORDINATOR_BODY_LIMIT_BYTES REQUEST_TIMEOUT_MS \
         KEEP_ALIVE_TIMEOUT_MS SHUTDOWN_GRACE_MS JWKS_CACHE_MAX RELAY_INTERVAL_MS \
         RELAY_CLAIM_IDLE_SEC RELAY_DEDUPE_WINDOW_SEC RELAY_CONSUMER_NAME AGENT_COORDINATOR_SCOPE",
    ),
    (
        "all",
        "POSTGRES_MAX_CONNECTIONS POSTGRES_SHARED_BUFFERS POSTGRES_EFFECTIVE_CACHE_SIZE \
         POSTGRES_WORK_MEM POSTGRES_MAINTENANCE_WORK_MEM POSTGRES_LOG_MIN_DURATION_MS \
         REDIS_MAXMEMORY LOG_LEVEL CARACAL_LOG_QUEUE_SIZE CARACAL_LOG_SAMPLE_DEBUG \
         CARACAL_LOG_MAX_FIELD_BYTES CARACAL_ENV OTEL_EXPORTER_OTLP_ENDPOINT \
         OTEL_EXPORTER_OTLP_PROTOCOL OTEL_RESOURCE_ATTRIBUTES \
         DB_POOL_MAX DB_MAX_CONNS DB_CONNECT_TIMEOUT DB_CONNECTION_TIMEOUT_MS DB_IDLE_TIMEOUT_MS \
         DB_MAX_CONN_IDLE CARACAL_MODE METRICS_BEARER DATABASE_URL REDIS_URL",
    ),
];

fn all() -> Vec<Lever> {
    Role::ALL.into_iter().flat_map(of).collect()
}

/// Names of a service's levers, their other names included.
fn names(role: Role) -> BTreeSet<&'static str> {
    let levers = of(role);
    let each = levers.iter().map(|lever| lever.of);
    each.flat_map(|of| [Some(of.var.name), of.other().map(|other| other.name)])
        .flatten()
        .collect()
}

#[test]
fn every_published_name_is_a_lever_of_its_service_or_told_to_be_none() {
    let unused: BTreeSet<_> = UNUSED.iter().map(|unused| unused.name).collect();
    assert_eq!(unused.len(), UNUSED.len(), "told twice");
    let published: BTreeSet<_> = PUBLISHED
        .iter()
        .flat_map(|(_, names)| names.split_whitespace())
        .collect();
    assert_eq!(unused.difference(&published).count(), 0);
    for (service, told) in PUBLISHED {
        let roles = Role::ALL.into_iter();
        let roles = roles.filter(|role| *service == "all" || role.name() == *service);
        for role in roles {
            let levers = names(role);
            for name in told.split_whitespace() {
                assert!(
                    levers.contains(name) != unused.contains(name),
                    "{name} of {service}: it is either declared for {}, or listed in \
                     levers/unused.rs",
                    role.name()
                );
            }
        }
    }
}

#[test]
fn every_lever_is_typed_bounded_and_told() {
    for lever in all() {
        let (of, name) = (lever.of, lever.of.var.name);
        let bounded = matches!(of.kind, "integer" | "duration");
        assert_eq!(lever.bounds().is_some(), bounded, "{name}: {}", of.kind);
        assert!(
            of.help.ends_with('.') && of.help.len() > 5,
            "{name}: {}",
            of.help
        );
        assert!(!of.help.contains("  "), "{name}: {}", of.help);
        assert!(of.kind != "hex key" || of.var.secret, "{name}");
        let secret = ["_TOKEN", "_SECRET", "_KEY", "_BEARER", "_KEK"];
        if secret.iter().any(|end| name.ends_with(end)) {
            assert!(!of.var.is_shown(), "{name} is a secret");
        }
    }
}

#[test]
fn pools_are_small_and_have_both_families_of_names() {
    for (role, most) in [
        (Role::Sts, "8"),
        (Role::Gateway, "2"),
        (Role::Audit, "4"),
        (Role::Api, "10"),
        (Role::Coordinator, "10"),
    ] {
        let levers = of(role);
        let pool = levers
            .iter()
            .find(|lever| lever.of.var.name == "DB_MAX_CONNS");
        let pool = pool.unwrap();
        assert_eq!(pool.default.as_deref(), Some(most));
        assert_eq!(pool.of.other().unwrap().name, "DB_POOL_MAX");
    }
}

#[test]
fn the_reference_page_is_that_of_the_tables() {
    let place = workspace().join("docs/reference/configuration.md");
    let kept = std::fs::read_to_string(&place).unwrap_or_default();
    assert!(
        kept == page::page(&all()),
        "docs/reference/configuration.md is stale; renew it with\n  cargo run -p caracal -- config \
         explain --markdown > docs/reference/configuration.md"
    );
}

#[test]
fn tools_read_one_object_a_name() {
    let levers = of(Role::Coordinator);
    let export = serde_json::to_value(json::Export::new(&levers)).unwrap();
    let named = |name: &str| {
        let settings = export["settings"].as_array().unwrap().iter();
        let mut found = settings.filter(|one| one["name"] == name);
        let one = found.next().unwrap().clone();
        assert!(found.next().is_none(), "{name} is there once");
        one
    };
    assert_eq!(
        named("SERVICE_AGENT_LEASE_SECONDS"),
        serde_json::json!({
            "service": "coordinator", "group": "Of its own", "name": "SERVICE_AGENT_LEASE_SECONDS",
            "type": "integer", "default": "120", "min": "5", "max": "86400", "unit": "s",
            "choices": [], "secret": false, "file": false, "required": false,
            "required_when": null, "alias_of": null, "example": "120",
            "help": "Lease of a service."
        })
    );
    let wait = named("DB_CONNECTION_TIMEOUT_MS");
    assert_eq!(wait["alias_of"], "DB_CONNECT_TIMEOUT");
    assert_eq!(
        (&wait["type"], &wait["unit"]),
        (&"integer".into(), &"ms".into())
    );
    let key = named("IDEMPOTENCY_HMAC_KEY");
    assert_eq!((&key["secret"], &key["file"]), (&true.into(), &true.into()));
    let unused = export["unused"].as_array().unwrap();
    assert!(unused.iter().any(|one| one["name"] == "JWKS_CACHE_MAX"));
}

#[test]
fn a_template_has_every_setting_once_and_sets_none() {
    let file = template::template(&all());
    let lines = file.lines();
    let named: Vec<_> = lines
        .filter(|line| line.starts_with('#') && !line.starts_with("# ") && line.contains('='))
        .filter_map(|line| line.trim_start_matches('#').split('=').next())
        .collect();
    let each: BTreeSet<_> = named.iter().collect();
    let every: BTreeSet<_> = all().iter().map(|lever| lever.of.var.name).collect();
    assert_eq!((named.len(), each.len()), (every.len(), every.len()));
    assert!(
        file.lines()
            .all(|line| line.is_empty() || line.starts_with('#'))
    );
}

#[test]
fn a_check_tells_every_mistake_at_once_and_shows_no_secret() {
    let environment = Environment::of_pairs(&[
        ("STS_MINT_RATE_LIMIT_PER_MIN", "0"),
        ("DB_POOL_MAX", "many"),
        ("REDIS_DIAL_TIMEOUT", "5"),
        ("OUTBOX_POLL_MS", "1"),
        ("LOG_LEVEL", "verbose"),
        ("AUDIT_HMAC_KEY", "hunter2"),
        ("SECRET_STORE_KEK", "hunter3"),
        ("PORT", "8000"),
    ]);
    let mistakes = check::distributed(&environment, &[Role::Sts]);
    let told = crate::config::complaint(&mistakes);
    for line in [
        "AUDIT_HMAC_KEY: the key is not hexadecimal, for example 64 hex digits or more\n",
        "DATABASE_URL: is required, for example postgres://",
        "DB_POOL_MAX: many is not a whole number in range (within 1 and 10000), for example 8\n",
        "ISSUER_URL: is required, for example https://sts.example\n",
        "LOG_LEVEL: is one of error, warn, info, debug and trace, for example info\n",
        "OUTBOX_POLL_MS: 1 is not within 10 and 60000, for example 250\n",
        "PORT: 8000 is not 8080, the port of sts. ",
        "REDIS_DIAL_TIMEOUT: 5 is not a duration above zero (within 10ms and 1m), for example 2s\n",
        "REDIS_URL: is required, for example redis://redis:6379\n",
        "STS_MINT_RATE_LIMIT_PER_MIN: 0 is not within 1 and 1000000000, for example 1000",
    ] {
        assert!(told.contains(line), "no `{line}` in\n{told}");
    }
    assert!(!told.contains("hunter"), "{told}");
}

#[test]
fn what_moves_nothing_is_told_at_the_start() {
    let environment = Environment::of_pairs(&[
        ("JWKS_CACHE_MAX", "1"),
        ("SWEEPER_BATCHSIZE", "1"),
        ("STS_ADMIN_TOKEN", "t"),
        ("PATH", "/bin"),
    ]);
    let warnings = check::warnings(&environment);
    let told: Vec<_> = warnings
        .iter()
        .map(|one| format!("{}: {}", one.name, one.why))
        .collect();
    assert_eq!(
        told,
        [
            "JWKS_CACHE_MAX: moves nothing: keys of zones are read from memory that the feed keeps \
             current; nothing is fetched or cached apart",
            "SWEEPER_BATCHSIZE: is no setting; SWEEPER_BATCH_SIZE is",
        ]
    );
}

fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap().to_owned()
}

/// The sources below a directory, without tests.
fn sources(directory: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("tests") || name == "testing.rs" {
            continue;
        }
        if path.is_dir() {
            sources(&path, into);
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next();
            let code = code.unwrap_or_default();
            into.push(code.to_owned());
        }
    }
}

/// Fields of the tables in this source.
fn fields(source: &str) -> Vec<&str> {
    let tables = source.split("settings! {").skip(1);
    let tables = tables.map(|rest| rest.split("\n}\n").next().unwrap_or_default());
    let declared = tables
        .flat_map(str::lines)
        .map(str::trim)
        .filter(|line| !line.starts_with("//") && line.contains(": "));
    let fields = declared.filter_map(|line| line.split(": ").next());
    fields
        .map(|field| field.trim_start_matches("pub "))
        .filter(|field| field.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .collect()
}

fn uses(source: &str, field: &str) -> bool {
    let dotted = format!(".{field}");
    source.match_indices(&dotted).any(|(at, _)| {
        let next = source[at + dotted.len()..].chars().next();
        next.is_none_or(|next| !next.is_ascii_alphanumeric() && next != '_' && next != '(')
    })
}

/// A field of a table that no code reads is a lever that moves nothing. Fields of the binary are
/// watched by the compiler; those of a library are public, and looked at here.
#[test]
fn every_field_of_a_table_is_used() {
    let crates = workspace().join("crates");
    let mut by_crate: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in std::fs::read_dir(&crates).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut texts = Vec::new();
        sources(&path.join("src"), &mut texts);
        // There tables are explained, and none stands.
        if name != "net" {
            by_crate.insert(name, texts);
        }
    }
    let mut count = 0;
    for (name, texts) in &by_crate {
        for field in texts.iter().flat_map(|text| fields(text)) {
            count += 1;
            let readers = texts.iter().chain(&by_crate["caracal"]);
            let used = readers.into_iter().any(|text| uses(text, field));
            assert!(
                used,
                "{field} of a settings table in crates/{name} moves nothing"
            );
        }
        let mut tables = texts.iter().filter(|text| text.contains("settings! {"));
        let hidden = tables.any(|text| text.contains("(dead_code"));
        assert!(!hidden, "crates/{name} hides dead code");
    }
    assert!(count > 150, "only {count} fields were found");
}
