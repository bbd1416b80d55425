//! The command line as an operator uses it, on both deployments.
//!
//! What each command says to a person is told in the binary's own tests; here, that it works on a
//! deployment that serves.

use std::process::{Output, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use xtest::{CALLED, DENIED, Deployment, Options, Part, Stack, World, eventually, on_both_stacks};

/// How long an event may take to be seen.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

#[track_caller]
fn succeeds(output: &Output) -> String {
    let said = said(output);
    assert!(output.status.success(), "{said}");
    said
}

#[track_caller]
fn fails(output: &Output) -> String {
    let said = said(output);
    assert!(!output.status.success(), "{said}");
    said
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

on_both_stacks! {
    async fn evidence_is_tailed_exported_and_verified(stack: Arc<Stack>) {
        let world = World::new(Arc::clone(&stack)).await;
        let agent = world.agent().await;
        let mandate = world.mandate(&agent).await;
        let called = world.call(&mandate).await.unwrap().expect(200).request_id();
        let denied = world.exchange(&[("scope", "desk:write")]).await.unwrap().expect(403).request_id();
        world.is_recorded(&called, CALLED).await;
        world.is_recorded(&denied, DENIED).await;

        let api = format!("--api-url {} --zone {}", stack.urls.api, world.zone);
        let tail = stack.caracal(&format!("audit tail --once --json --decision deny {api}")).await;
        succeeds(&tail);
        let tail = lines(&tail);
        assert_eq!(tail.len(), DENIED.len(), "{tail:?}");
        assert!(tail.iter().all(|event| event["request_id"] == denied), "{tail:?}");
        let line = format!("audit tail --once --event-type gateway_resource_request {api}");
        let told = succeeds(&stack.caracal(&line).await);
        assert!(told.contains(&called) && !told.contains(&denied), "{told}");

        let verified = succeeds(&stack.caracal("audit verify").await);
        assert!(verified.contains("holds"), "{verified}");
        let is_ledger = |line: &&str| line.contains(&world.zone) && !line.contains("admin audit");
        let head = verified.lines().find(is_ledger).unwrap();
        let head = head.split_whitespace().last().unwrap();
        // Evidence goes on behind a head that was kept.
        world.call(&world.mandate(&agent).await).await.unwrap().expect(200);
        succeeds(&stack.caracal(&format!("audit verify --head {head}")).await);
        let forged = format!("{}{}", &head[..head.len() - 4], "dead");
        let told = fails(&stack.caracal(&format!("audit verify --head {forged}")).await);
        assert!(told.contains("BROKEN"), "{told}");

        // The same through the API, by somebody who has a token and nothing else.
        let live = format!("audit verify --api-url {}", stack.urls.api);
        let told = succeeds(&stack.caracal(&live).await);
        for log in [
            world.zone.as_str(),
            &format!("admin audit of zone {}", world.zone),
        ] {
            assert!(told.lines().any(|line| line.starts_with("holds") && line.contains(log)), "{told}");
        }
        succeeds(&stack.caracal(&format!("{live} --zone {} --head {head}", world.zone)).await);
        let told = fails(&stack.caracal(&format!("{live} --head {forged}")).await);
        assert!(told.contains("BROKEN"), "{told}");
        let auditor = json!({"name": "auditor", "scope": "zone", "zone_id": world.zone, "capability": "read"});
        let url = format!("{}/v1/admin-tokens", stack.urls.api);
        let made = stack.http.json("POST", url, &stack.admin_token, &auditor).await.expect(201).json();
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("token");
        std::fs::write(&token, made["token"].as_str().unwrap()).unwrap();
        let live = format!("{live} --admin-token-file {}", token.display());
        succeeds(&stack.caracal(&format!("{live} --zone {}", world.zone)).await);
        fails(&stack.caracal(&live).await);

        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("events.ndjson");
        let file = file.display();
        succeeds(&stack.caracal(&format!("audit export --out {file}")).await);
        succeeds(&stack.caracal(&format!("audit verify --export {file}")).await);

        let told = succeeds(&stack.caracal(&format!("audit trace {called} {api}")).await);
        assert!(told.contains("gateway_resource_request") && told.contains("+0 ms"), "{told}");
        let parquet = directory.path().join("parquet");
        let line = format!("audit export --parquet --dir {}", parquet.display());
        succeeds(&stack.caracal(&line).await);
        let file = std::fs::read(parquet.join(format!("{}.parquet", world.zone))).unwrap();
        assert!(file.starts_with(b"PAR1") && file.ends_with(b"PAR1"));
    }

    async fn what_happens_is_followed_while_it_does(stack: Arc<Stack>) {
        let world = World::new(Arc::clone(&stack)).await;
        let api = format!("--api-url {} --zone {}", stack.urls.api, world.zone);
        let mut tail = stack.command(&format!("audit tail --json --lines 0 {api}"));
        tail.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tail = tail.spawn().unwrap();
        let mut told = BufReader::new(tail.stderr.take().unwrap()).lines();
        let open = tokio::time::timeout(PATIENCE, told.next_line()).await;
        assert!(open.unwrap().unwrap().unwrap().contains("following"));
        let agent = world.agent().await;
        let mandate = world.mandate(&agent).await;
        let called = world.call(&mandate).await.unwrap().expect(200).request_id();
        // What happened to the Session is evidence as well.
        let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
        let (mut started, mut passed) = (false, false);
        while !(started && passed) {
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
            let line = line.expect("an event in time").unwrap().expect("no end");
            let event: Value = serde_json::from_str(&line).unwrap();
            started |= event["event_type"] == "session_lifecycle" && event["decision"] == "started";
            passed |= event["request_id"] == called;
        }
        tail.kill().await.unwrap();
    }

    async fn an_event_is_proven_with_the_public_key_alone(stack: Arc<Stack>) {
        let world = World::new(Arc::clone(&stack)).await;
        let agent = world.agent().await;
        let called = world.call(&world.mandate(&agent).await).await.unwrap().expect(200).request_id();
        world.is_recorded(&called, CALLED).await;
        let event = world.evidence(&called).await[0]["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/zones/{}/audit/{event}/receipt", world.zone);
        // Asking for a receipt is what has the checkpoint made.
        eventually("the receipt is there", async || stack.read(&path).await.status == 200).await;
        let receipt = stack.read(&path).await.json();

        let key = succeeds(&stack.caracal("audit key").await);
        let key = key.trim();
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name).display().to_string();
        let (honest, edited, kept) = (file("receipt.json"), file("edited.json"), file("kept.txt"));
        std::fs::write(&honest, receipt.to_string()).unwrap();
        std::fs::write(&edited, receipt.to_string().replace("allow", "deny")).unwrap();
        std::fs::write(&kept, receipt["checkpoint"].as_str().unwrap()).unwrap();
        succeeds(&stack.caracal(&format!("audit verify --key {key} --receipt {honest}")).await);
        let told = fails(&stack.caracal(&format!("audit verify --key {key} --receipt {edited}")).await);
        assert!(told.contains("BROKEN"), "{told}");

        let export = file("events.ndjson");
        succeeds(&stack.caracal(&format!("audit export --out {export}")).await);
        let verify = format!("audit verify --key {key} --checkpoint {kept}");
        succeeds(&stack.caracal(&verify).await);
        succeeds(&stack.caracal(&format!("{verify} --export {export}")).await);
        let cut = file("cut.ndjson");
        let lines = std::fs::read_to_string(&export).unwrap();
        let of_events = lines.lines().filter(|line| !line.contains("checkpoint"));
        let first: Vec<&str> = of_events.take(2).collect();
        std::fs::write(&cut, first.join("\n")).unwrap();
        let told = fails(&stack.caracal(&format!("{verify} --export {cut}")).await);
        assert!(told.contains("the ledger ends before it"), "{told}");

        // The key is replaced: whoever has the old one is led to the new one.
        let api = format!("--api-url {}", stack.urls.api);
        let new = succeeds(&stack.caracal(&format!("audit keys rotate {api}")).await);
        let new = new.trim();
        let listed = succeeds(&stack.caracal(&format!("audit keys list {api}")).await);
        let status = |key: &str| listed.lines().find(|line| line.ends_with(key)).unwrap().to_owned();
        assert!(status(key).contains("replaced") && status(new).contains("signing"), "{listed}");
        for _ in 0..2 {
            let called = world.call(&world.mandate(&agent).await).await.unwrap().expect(200).request_id();
            world.is_recorded(&called, CALLED).await;
            let event = world.evidence(&called).await[0]["id"].as_str().unwrap().to_owned();
            let path = format!("/v1/zones/{}/audit/{event}/receipt", world.zone);
            eventually("the receipt is there", async || stack.read(&path).await.status == 200).await;
            let receipt = stack.read(&path).await.json();
            std::fs::write(&honest, receipt.to_string()).unwrap();
            succeeds(&stack.caracal(&format!("audit verify --key {new} --receipt {honest}")).await);
        }
        let after = file("after.ndjson");
        succeeds(&stack.caracal(&format!("audit export --out {after}")).await);
        let told = succeeds(&stack.caracal(&format!("{verify} --export {after}")).await);
        assert!(told.contains(new) && told.contains("confirm it"), "{told}");
        let both = format!("{verify} --key {new} --export {after}");
        assert!(!succeeds(&stack.caracal(&both).await).contains("confirm it"));
    }
}

#[test]
fn an_embedded_deployment_is_seen_demonstrated_and_stopped() {
    xtest::on(
        Deployment::Embedded,
        Options::default(),
        async |stack: Arc<Stack>| {
            let status = stack.caracal("status --ready --json").await;
            succeeds(&status);
            let status = &lines(&status)[0];
            let services = status["services"].as_array().unwrap();
            assert_eq!(services.len(), 5, "{status}");
            assert!(
                services.iter().all(|service| service["ok"] == true),
                "{status}"
            );

            let demo = succeeds(&stack.caracal("demo").await);
            for line in [
                "allowed 200",
                "refused 403",
                "refused 401",
                "final decision: deny",
            ] {
                assert!(demo.contains(line), "no `{line}` in\n{demo}");
            }
            assert!(succeeds(&stack.caracal("down").await).contains("stopped"));
            assert!(fails(&stack.caracal("status").await).contains("unreachable"));
            // It was stopped from outside: that is no defect, and it starts again.
            stack.stop();
            stack.restart().await;
            succeeds(&stack.caracal("demo").await);
            succeeds(&stack.caracal("audit verify").await);
        },
    );
}

#[test]
fn a_distributed_deployment_is_migrated_once_and_names_every_setting_that_it_lacks() {
    xtest::on(
        Deployment::Distributed,
        Options::default(),
        async |stack: Arc<Stack>| {
            let again = succeeds(&stack.caracal("migrate").await);
            assert!(again.contains("up to date"), "{again}");
            let bare = tokio::process::Command::new(stack.binary())
                .args(["serve", "sts"])
                .env_clear()
                .env("CARACAL_HOME", stack.setting("CARACAL_HOME"))
                .env("DATABASE_URL", stack.setting("DATABASE_URL"))
                .output()
                .await
                .unwrap();
            let told = fails(&bare);
            for name in [
                "SECRET_STORE_KEK",
                "AUDIT_HMAC_KEY",
                "STREAMS_HMAC_KEY",
                "GATEWAY_STS_HMAC_KEY",
            ] {
                assert!(told.contains(name), "no {name} in\n{told}");
            }
        },
    );
}

on_both_stacks! {
    /// A deployment that runs is well, and one without its STS is told so.
    async fn doctor_finds_what_is_wrong_with_a_deployment(stack: Arc<Stack>) {
        let asked = async |line: &str| {
            let output = stack.caracal(line).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"));
            let failed: Vec<String> = report["checks"].as_array().unwrap().iter()
                .filter(|check| check["status"] == "fail")
                .map(|check| check["check"].as_str().unwrap().to_owned())
                .collect();
            (output.status.success(), report["ready"].as_bool(), failed, text)
        };
        succeeds(&stack.caracal("demo --keep").await);
        let (ended_well, ready, failed, report) = asked("doctor --json").await;
        assert_eq!((ended_well, ready, failed), (true, Some(true), Vec::new()), "{report}");
        for check in ["schema", "stored credentials", "sts is ready", "outbox drains", "ledger is unchanged", ": policy"] {
            assert!(report.contains(check), "no {check} in {report}");
        }
        for secret in ["CARACAL_ADMIN_TOKEN", "SECRET_STORE_KEK", "AUDIT_HMAC_KEY"] {
            let set = stack.environment().iter().rev().find(|(name, _)| name == secret);
            assert!(set.is_none_or(|(_, value)| !report.contains(value.as_str())), "{secret} is shown");
        }
        stack.kill9(&[Part::Sts]);
        let (ended_well, ready, failed, report) = asked("doctor --json").await;
        assert_eq!((ended_well, ready), (false, Some(false)), "{report}");
        assert!(failed.iter().any(|check| check == "sts is ready"), "{report}");
    }
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = std::process::Command::new(xtest::binary::path())
            .args(["completions", shell])
            .env_clear()
            .output()
            .unwrap();
        let script = succeeds(&output);
        for command in [
            "up", "down", "status", "doctor", "serve", "migrate", "audit", "run", "demo",
        ] {
            assert!(
                script.contains(command),
                "{shell} does not complete {command}"
            );
        }
    }
}
