//! Workloads and `caracal run`, from provisioning to the evidence of a launch.

use std::process::Output;
use std::sync::Arc;

use serde_json::{Value, json};
use xtest::world::{kind, put_in_force};
use xtest::{Options, Stack, eventually, on_both_stacks};

const CANARY: &str = "canary-key-of-the-mail-service";

/// A zone whose workload is bound to an API key.
struct Launch {
    stack: Arc<Stack>,
    zone: String,
    workload: String,
    secret: String,
}

impl Launch {
    async fn new(stack: Arc<Stack>) -> Self {
        let zone = stack
            .post("/v1/zones", &json!({"name": "launch"}))
            .await
            .expect(201)
            .text("id");
        let z = format!("/v1/zones/{zone}");
        let provider = json!({
            "name": "mail", "kind": "api_key", "config_json": {
                "header_name": "X-Api-Key", "api_key": CANARY, "allow_runtime_injection": true,
            },
        });
        let provider = stack
            .post(&format!("{z}/providers"), &provider)
            .await
            .expect(201)
            .text("id");
        let resource = json!({
            "identifier": "resource://mail", "scopes": ["mail:send"],
            "upstream_url": "https://mail.example", "credential_provider_id": provider,
        });
        stack
            .post(&format!("{z}/resources"), &resource)
            .await
            .expect(201);
        let made = stack
            .post(&format!("{z}/workloads"), &json!({"name": "nightly"}))
            .await
            .expect(201);
        let launch = Self {
            zone,
            workload: made.text("id"),
            secret: made.text("secret"),
            stack,
        };
        let bindings = json!({"bindings": [
            {"env": "MAIL_KEY", "resource": "resource://mail", "scopes": ["mail:send"]},
            {"env": "SPARE", "resource": "resource://spare", "optional": true, "on_failure": "warn"},
        ]});
        let url = format!("{}{}", launch.stack.urls.api, launch.path());
        let token = &launch.stack.admin_token;
        launch
            .stack
            .http
            .json("PUT", url, token, &bindings)
            .await
            .expect(200);
        launch
    }

    fn path(&self) -> String {
        format!("/v1/zones/{}/workloads/{}", self.zone, self.workload)
    }

    /// Launches a shell that says what it was given.
    async fn run(&self, secret: &str) -> Output {
        let said =
            "echo key ${MAIL_KEY:+set} ${SPARE-none}; env | grep -c CARACAL_WORKLOAD; exit 5";
        let output = tokio::process::Command::new(self.stack.binary())
            .args([
                "run",
                "--sts-url",
                &self.stack.urls.sts,
                "--",
                "sh",
                "-c",
                said,
            ])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CARACAL_HOME", "/nonexistent")
            .env("CARACAL_WORKLOAD_ID", &self.workload)
            .env("CARACAL_WORKLOAD_SECRET", secret)
            .env("LOG_LEVEL", "trace")
            .env("NO_COLOR", "1")
            .output()
            .await
            .unwrap();
        for said in [&output.stdout, &output.stderr] {
            let said = String::from_utf8_lossy(said);
            assert!(!said.contains(CANARY) && !said.contains(secret), "{said}");
        }
        output
    }

    /// All events of this zone's launches, oldest first.
    async fn recorded(&self) -> Vec<Value> {
        let path = format!(
            "/v1/zones/{}/audit?event_type=run_launch,token_exchange",
            self.zone
        );
        let page = self.stack.read(&path).await.expect(200).json();
        let mut events = page["items"].as_array().cloned().unwrap_or_default();
        events.reverse();
        events
    }

    async fn is_recorded(&self, expected: &[&str]) -> Vec<Value> {
        let mut found = Vec::new();
        eventually(&format!("{expected:?} is recorded"), async || {
            found = self.recorded().await;
            found.len() >= expected.len()
        })
        .await;
        let mut kinds: Vec<String> = found.iter().map(kind).collect();
        let mut expected = expected.to_vec();
        kinds.sort();
        expected.sort_unstable();
        assert_eq!(kinds, expected);
        found
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn ends(output: &Output, code: i32) -> (String, String) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    (out, err)
}

on_both_stacks! {
    async fn a_command_gets_its_credential_until_that_is_taken_back(stack: Arc<Stack>) {
        let launch = Launch::new(stack).await;
        // No policy: nothing is released, and nothing starts.
        let (out, err) = ends(&launch.run(&launch.secret).await, 1);
        assert!(out.is_empty() && err.contains("MAIL_KEY (resource://mail) cannot be had"), "{err}");
        let refused = ["run_launch allow complete", "token_exchange deny complete"];
        launch.is_recorded(&refused).await;

        put_in_force(&launch.stack, &launch.zone, "app_ids := {}").await;
        let (out, err) = ends(&launch.run(&launch.secret).await, 5);
        assert_eq!(out, "key set none\n0\n", "{err}");
        assert!(err.contains("SPARE stays unset"), "{err}");
        let allowed = [
            "run_launch allow complete",
            "token_exchange allow complete",
            "token_exchange deny resource_not_found",
        ];
        let events = launch.is_recorded(&[&refused[..], &allowed].concat()).await;
        let [.., begun, released, spare] = &events[..] else { panic!("{events:?}") };
        assert_eq!(begun["metadata_json"]["binding_count"], 2);
        assert_eq!(released["metadata_json"]["env"], "MAIL_KEY");
        assert_eq!(released["determining_policies_json"], json!([{"policy": "caracal-workload-mint"}]));
        for event in [begun, released, spare] {
            assert_eq!(event["metadata_json"]["workload_id"], launch.workload);
            assert_eq!(event["metadata_json"]["launch_id"], begun["metadata_json"]["launch_id"]);
            assert!(!event.to_string().contains(CANARY), "{event}");
        }

        put_in_force(&launch.stack, &launch.zone, "restrict := [\"all\"]").await;
        ends(&launch.run(&launch.secret).await, 1);
        put_in_force(&launch.stack, &launch.zone, "app_ids := {}").await;

        let rotated = format!("{}/rotate-secret", launch.path());
        let second = launch.stack.post(&rotated, &json!({})).await.expect(200).text("secret");
        let (_, err) = ends(&launch.run(&launch.secret).await, 1);
        assert!(err.contains("invalid workload credentials"), "{err}");
        ends(&launch.run(&second).await, 5);
        let url = format!("{}{}", launch.stack.urls.api, launch.path());
        let token = &launch.stack.admin_token;
        launch.stack.http.json("DELETE", url, token, &json!({})).await.expect(204);
        ends(&launch.run(&second).await, 1);
    }
}

on_both_stacks! {
    options: Options::default().env("STS_MINT_RATE_LIMIT_PER_MIN", "3");
    async fn a_launcher_that_asks_too_often_is_told_when_to_come_back(stack: Arc<Stack>) {
        let launch = Launch::new(stack).await;
        let url = format!("{}/v1/run/manifest", launch.stack.urls.sts);
        let ask = async |secret: &str| {
            let fields = [("workload_id", &*launch.workload), ("secret", secret)];
            launch.stack.http.form(url.clone(), &fields).await.unwrap()
        };
        for _ in 0..3 {
            ask("wrong").await.expect(401);
        }
        let limited = ask(&launch.secret).await.expect(429);
        assert_eq!(limited.text("error"), "provider_rate_limited");
        assert_eq!(limited.headers["retry-after"], "60");
    }
}
