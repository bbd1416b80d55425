//! No secret leaves a process other than to whom it belongs: every secret of a deployment is a
//! canary, calls succeed and fail while everything is logged, and then all that came out is
//! searched.

mod planted;

use std::sync::Arc;

use bytes::Bytes;
use xtest::http::Request;
use xtest::{Options, Part, Stack, World, on_both_stacks};

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

fn loud() -> Options {
    Options::default()
        .env("LOG_LEVEL", "trace")
        .env("STS_ADMIN_TOKEN", "canary-sts-admin-token-51ab")
}

/// What came out, and where.
#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Seen {
    fn note(&mut self, place: impl Into<String>, text: impl AsRef<[u8]>) {
        let text = String::from_utf8_lossy(text.as_ref()).into_owned();
        self.0.push((place.into(), text));
    }
}

on_both_stacks! {
    options: loud();

    async fn no_secret_is_in_anything_that_leaves_a_process(stack: Arc<Stack>) {
        let world = World::new(Arc::clone(&stack)).await;
        let mut seen = Seen::default();
        let z = format!("/v1/zones/{}", world.zone);

        // What succeeds: secrets are stored, a call is made.
        let mut garden = Garden { stack: &stack, world: &world, seen: &mut seen, planted: Vec::new() };
        let provider = garden.providers().await;
        garden.connection(&provider).await;
        garden.workload().await;
        garden.sink().await;
        garden.token().await;
        let planted = garden.planted;
        let agent = world.agent().await;
        let spent = world.mandate(&agent).await;
        let called = world.call(&spent).await.unwrap().expect(200);
        seen.note("the upstream's answer", &called.body);

        // What fails, each with a secret in hand.
        let replayed = world.call(&spent).await.unwrap().expect(401);
        seen.note("a replay", &replayed.body);
        let fresh = world.mandate(&agent).await;
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
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("zone_id", &*world.zone), ("application_id", &*world.app),
            ("client_secret", GUESS), ("resource", &*world.resource),
        ];
        let guessed = stack.http.form(format!("{sts}/oauth/2/token"), &guessed).await.unwrap();
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
        let malformed = stack.http.send(Request {
            method: "POST",
            url: format!("{}{z}/providers", stack.urls.api),
            bearer: Some(&stack.admin_token),
            headers: vec![("content-type", "application/json".to_owned())],
            body: Bytes::from(format!("{{\"config\": {{\"token\": \"{UPSTREAM_KEY}\"}},")),
        }).await;
        seen.note("malformed JSON", &malformed.body);
        let rotated = stack.caracal(&format!("keys rotate --zone {}", world.zone)).await;
        assert!(rotated.status.success(), "{rotated:?}");
        seen.note("keys rotate", &rotated.stdout);
        let listed = stack.caracal(&format!("keys list --zone {}", world.zone)).await;
        assert_eq!(String::from_utf8_lossy(&listed.stdout).matches("next").count(), 1);
        seen.note("keys list", [listed.stdout, listed.stderr].concat());

        // What is on record, once it has arrived, and everything that was logged.
        world.is_recorded(&denied.request_id(), xtest::DENIED).await;
        let events = stack.read(&format!("{z}/audit?limit=500")).await.expect(200);
        seen.note("evidence", &events.body);
        let exported = stack.caracal(&format!("audit export --zone {}", world.zone)).await;
        seen.note("an export", [exported.stdout, exported.stderr].concat());
        let logs = stack.logs();
        assert!(logs.contains("\"TRACE\"") || logs.contains("trace"), "nothing was logged");
        seen.note("the logs", logs);

        let settings = SECRET_SETTINGS.map(|name| (name, stack.setting(name).to_owned()));
        let made = [
            ("the client secret", world.secret.clone()),
            ("the lifecycle token", agent.lifecycle.clone()),
            ("a spent mandate", spent),
            ("a mandate", fresh),
            ("a key in a body that is none", UPSTREAM_KEY.to_owned()),
            ("a guess", GUESS.to_owned()),
        ];
        let mut leaks = Vec::new();
        for (name, secret) in settings.iter().chain(&made).chain(&planted) {
            assert!(secret.len() > 16, "{name} is not set");
            for (place, text) in &seen.0 {
                if text.contains(&**secret) {
                    leaks.push(format!("{name} is in {place}"));
                }
            }
        }
        assert!(leaks.is_empty(), "{leaks:#?}");
    }
}
