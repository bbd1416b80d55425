//! No secret leaves a process other than to whom it belongs: every secret of a deployment is a
//! canary, calls succeed and fail while everything is logged, and then all that came out is
//! searched.

mod backends;
mod kept;
mod planted;

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use xtest::http::Request;
use xtest::{Agent, Deployment, Options, Part, Stack, World, eventually};

use crate::answering::answering;
use crate::collector::{Collected, collector};
use planted::Garden;

/// Settings whose values nobody may see.
const SECRET_SETTINGS: [&str; 10] = [
    "CARACAL_ADMIN_TOKEN",
    "CARACAL_COORDINATOR_TOKEN",
    "SECRET_STORE_KEK",
    "AUDIT_HMAC_KEY",
    "STREAMS_HMAC_KEY",
    "IDEMPOTENCY_HMAC_KEY",
    "GATEWAY_STS_HMAC_KEY",
    "METRICS_BEARER",
    "AUDIT_ADMIN_TOKEN",
    "STS_ADMIN_TOKEN",
];
const UPSTREAM_KEY: &str = "canary-upstream-key-3f1c9b";
const GUESS: &str = "canary-guessed-secret-77d0";

/// Those of the export to a bucket.
const EXPORT_SETTINGS: [(&str, &str); 2] = [
    ("AWS_SECRET_ACCESS_KEY", "canary-export-key-of-s3-02cd"),
    ("AWS_SESSION_TOKEN", "canary-export-session-of-s3-13de"),
];

/// The same, of those that are set here only.
const MORE_SETTINGS: [(&str, &str); 3] = [
    ("STS_ADMIN_TOKEN", "canary-sts-admin-token-51ab"),
    (
        "SECRET_STORE_KEK_PREVIOUS",
        "91c3d0a87be2f4165d08c9e73ab1f6402ec75d9b8403fa61e2759c0bd86f1a34",
    ),
    (
        "IDEMPOTENCY_HMAC_KEY_PREVIOUS",
        "4be81f0c62d97a35e0c48b7d19f3a6520d6e94c3b7f2815a9c03de47610fb8e2",
    ),
];

fn set(options: Options, settings: &[(&str, &str)]) -> Options {
    let one = |options: Options, (name, value): &(&str, &str)| options.env(name, value);
    settings.iter().fold(options, one)
}

fn loud() -> Options {
    set(Options::default().env("LOG_LEVEL", "trace"), &MORE_SETTINGS)
}

/// What servers of others were asked for.
type Paths = Arc<Mutex<Vec<String>>>;

/// A bucket that nobody may write to, and webhooks that take nothing, at one address: it refuses
/// everything, and repeats in its answer whatever it was shown.
fn refusing() -> (Paths, String) {
    let paths = Paths::default();
    let asked_for = Arc::clone(&paths);
    let url = answering(move |asked| {
        let shown = [
            "authorization",
            "x-amz-security-token",
            "x-caracal-signature",
        ];
        let shown = shown.map(|name| asked.header(name)).join(" ");
        let said = format!("{shown} {}", String::from_utf8_lossy(&asked.body));
        asked_for.lock().push(asked.path);
        (403, said.into_bytes())
    });
    (paths, url)
}

/// Exports to a bucket, and may call webhooks on this machine.
fn exporting(url: &str) -> Options {
    let options = loud()
        .env("AWS_ACCESS_KEY_ID", "AKIACANARY24EF")
        .env("AUDIT_EXPORT_S3_BUCKET", "evidence")
        .env("AUDIT_EXPORT_S3_ENDPOINT", url)
        .env("CARACAL_PRIVATE_EGRESS_HOSTS", "127.0.0.1")
        .stepping_clock();
    set(options, &EXPORT_SETTINGS)
}

/// What came out, and where.
#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Seen {
    fn note(&mut self, place: impl Into<String>, text: impl AsRef<[u8]>) {
        let text = String::from_utf8_lossy(text.as_ref()).into_owned();
        self.0.push((place.into(), text));
    }

    /// Which secret is where, as it is or in hex.
    fn leaks(&self, secrets: &[(&'static str, String)]) -> Vec<String> {
        let mut leaks = Vec::new();
        for (name, secret) in secrets {
            assert!(secret.len() > 16, "{name} is not set");
            let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
            let holds = |text: &String| text.contains(&**secret) || text.contains(&hex);
            let places = self.0.iter().filter(|(_, text)| holds(text));
            leaks.extend(places.map(|(place, _)| format!("{name} is in {place}")));
        }
        leaks
    }
}

#[test]
fn embedded_tells_no_secret() {
    on(Deployment::Embedded);
}

#[test]
fn distributed_tells_no_secret() {
    on(Deployment::Distributed);
}

fn on(deployment: Deployment) {
    let (collected, url) = collector();
    let (asked_for, refusing) = refusing();
    let options = exporting(&refusing).env("OTEL_EXPORTER_OTLP_ENDPOINT", &url);
    xtest::on(deployment, options, async |stack: Arc<Stack>| {
        no_secret_is_in_anything_that_leaves_a_process(&stack, &collected, &refusing).await;
        // Else nothing was shown that could have leaked.
        let exported = stack.has_stepping_clock().then_some("/evidence/");
        for place in exported.into_iter().chain(["/hook"]) {
            eventually(&format!("{place} was asked for"), async || {
                asked_for.lock().iter().any(|path| path.starts_with(place))
            })
            .await;
        }
    });
}

async fn no_secret_is_in_anything_that_leaves_a_process(
    stack: &Arc<Stack>,
    traces: &Collected,
    refusing: &str,
) {
    let world = World::new(Arc::clone(stack)).await;
    let mut seen = Seen::default();
    // What succeeds: secrets are stored, a call is made.
    let mut garden = Garden {
        stack,
        world: &world,
        seen: &mut seen,
        planted: Vec::new(),
    };
    let provider = garden.providers().await;
    garden.connection(&provider).await;
    garden.workload().await;
    garden.sink(refusing).await;
    garden.token().await;
    let agent = world.agent().await;
    garden.users(&agent).await;
    let mut secrets = garden.planted;
    let spent = world.mandate(&agent).await;
    let called = world.call(&spent).await.unwrap().expect(200);
    seen.note("the upstream's answer", &called.body);

    let (denied, fresh) = refusals(&world, &agent, &spent, &mut seen).await;
    keys(stack, &world, &mut seen).await;

    // What is on record, once it has arrived, and everything that was logged, traced and kept.
    world.is_recorded(&denied, xtest::DENIED).await;
    let events = format!("/v1/zones/{}/audit?limit=500", world.zone);
    seen.note("evidence", &stack.read(&events).await.expect(200).body);
    for line in ["audit export --zone", "audit verify --zone"] {
        let told = stack.caracal(&format!("{line} {}", world.zone)).await;
        seen.note(line, [told.stdout, told.stderr].concat());
    }
    for line in ["doctor", "config explain"] {
        let told = stack.caracal(line).await;
        seen.note(line, [told.stdout, told.stderr].concat());
    }
    eventually("calls are traced", async || !traces.lock().is_empty()).await;
    seen.note("traces", traces.lock().concat());
    an_hour_later_the_ledger_is_exported(stack).await;
    let logs = stack.logs();
    assert!(
        logs.to_lowercase().contains("\"trace\""),
        "nothing was logged"
    );
    seen.note("the logs", logs);
    kept::everything(stack, &mut seen).await;

    let settings = SECRET_SETTINGS
        .into_iter()
        .chain(MORE_SETTINGS.map(|(name, _)| name))
        .chain(EXPORT_SETTINGS.map(|(name, _)| name));
    secrets.extend(settings.map(|name| (name, stack.setting(name).to_owned())));
    if stack.deployment == Deployment::Distributed {
        for name in ["DATABASE_URL", "REDIS_URL"] {
            let url = stack.setting(name);
            let password = url
                .split('@')
                .next()
                .and_then(|user| user.rsplit(':').next());
            secrets.push((name, password.unwrap().to_owned()));
        }
    }
    secrets.extend([
        ("the client secret", world.secret.clone()),
        ("the lifecycle token", agent.lifecycle.clone()),
        ("a spent mandate", spent),
        ("a mandate", fresh),
        ("a key in a body that is none", UPSTREAM_KEY.to_owned()),
        ("a guess", GUESS.to_owned()),
    ]);
    let leaks = seen.leaks(&secrets);
    assert!(leaks.is_empty(), "{leaks:#?}");
}

/// Only whole hours are exported, so the hour of what was recorded is made to be over.
async fn an_hour_later_the_ledger_is_exported(stack: &Stack) {
    if !stack.has_stepping_clock() {
        xtest::visibly("skipped the export of the canaries: no libfaketime");
        return;
    }
    stack.kill9(&[Part::Audit]);
    if stack.deployment == Deployment::Distributed {
        // Whoever was killed would lead for two minutes more.
        stack.redis("DEL caracal:audit:export").await;
    }
    stack.step_clocks(3_700);
    stack.restart().await;
    eventually("a bucket was asked, and refused", async || {
        stack.logs().contains("the ledger was not exported")
    })
    .await;
}

/// What fails, each with a secret in hand: the request that was denied, and a mandate that was not
/// used up.
async fn refusals(world: &World, agent: &Agent, spent: &str, seen: &mut Seen) -> (String, String) {
    let stack = &world.stack;
    let z = format!("/v1/zones/{}", world.zone);
    let replayed = world.call(spent).await.unwrap().expect(401);
    seen.note("a replay", &replayed.body);
    let fresh = world.mandate(agent).await;
    let refused = world.calls("POST", "/nowhere", &fresh).await.unwrap();
    seen.note("an undeclared operation", &refused.body);
    let denied = world.exchange(&[("scope", "desk:write")]).await.unwrap();
    seen.note("a denial", &denied.body);
    let sts = &stack.urls.sts;
    let twice = world.exchange(&[("client_secret", GUESS)]).await.unwrap();
    seen.note("a repeated field", &twice.body);
    let form = [("client_secret", &*world.secret), ("zone_id", &*world.zone)];
    let url = format!("{sts}/oauth/2/token?client_secret={}", world.secret);
    let query = stack.http.form(url, &form).await.unwrap();
    seen.note("a secret in the query", &query.body);
    let guessed = [
        (
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ),
        ("zone_id", &*world.zone),
        ("application_id", &*world.app),
        ("client_secret", GUESS),
        ("resource", &*world.resource),
    ];
    let guessed = stack
        .http
        .form(format!("{sts}/oauth/2/token"), &guessed)
        .await
        .unwrap();
    seen.note("a guess", &guessed.expect(401).body);
    for part in Part::ALL {
        let base = stack.urls.of(part);
        for path in ["/metrics", "/v1/zones", "/zones/z/agents", "/api/audit"] {
            let answer = stack.http.get(format!("{base}{path}"), Some(GUESS)).await;
            seen.note(format!("{}{path} with a guess", part.name()), &answer.body);
        }
        for path in ["/metrics", "/metrics.json"] {
            let bearer = Some(stack.setting("METRICS_BEARER"));
            let answer = stack.http.get(format!("{base}{path}"), bearer).await;
            seen.note(format!("{}{path}", part.name()), &answer.body);
        }
    }
    let malformed = stack
        .http
        .send(Request {
            method: "POST",
            url: format!("{}{z}/providers", stack.urls.api),
            bearer: Some(&stack.admin_token),
            headers: vec![("content-type", "application/json".to_owned())],
            body: Bytes::from(format!("{{\"config\": {{\"token\": \"{UPSTREAM_KEY}\"}},")),
        })
        .await;
    seen.note("malformed JSON", &malformed.body);
    (denied.request_id(), fresh)
}

/// Keys of the zone are made and listed.
async fn keys(stack: &Stack, world: &World, seen: &mut Seen) {
    let rotated = stack
        .caracal(&format!("keys rotate --zone {}", world.zone))
        .await;
    assert!(rotated.status.success(), "{rotated:?}");
    seen.note("keys rotate", &rotated.stdout);
    let listed = stack
        .caracal(&format!("keys list --zone {}", world.zone))
        .await;
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout)
            .matches("next")
            .count(),
        1
    );
    seen.note("keys list", [listed.stdout, listed.stderr].concat());
}
