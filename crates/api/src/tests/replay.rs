//! Recorded decisions, explained and decided again.

use caracal_ledger::Event;
use caracal_model::ZoneId;
use serde_json::{Value, json};

use super::Stack;
use super::audit::{append_events, event};
use super::stack::grants;
use crate::on_stack;

/// A lifecycle token asked for by an application, as evidence keeps it.
fn asked(application: &str) -> Value {
    json!({
        "schema_version": "2026-05-20",
        "principal": {"type": "Application", "id": application},
        "resource": {"type": "Resource", "id": "r", "identifier": "resource://crm", "scopes": ["crm:read"]},
        "action": {"id": "TokenExchange"},
        "context": {"actor_claims": {}, "challenge_resolved": false, "requested_scopes": ["agent:lifecycle"]},
    })
}

struct Recorded {
    events: Vec<Event>,
    zone: ZoneId,
    version: String,
}

impl Recorded {
    fn push(&mut self, request: &str, decision: &str, metadata: Value) {
        let event = event(&self.zone, self.events.len(), request, decision, &metadata);
        let (version, manifest) = (self.version.as_str().into(), "m".into());
        self.events
            .push(event.policy(Some(version), Some(manifest)));
    }

    fn decision(&mut self, request: &str, application: &str, decision: &str) {
        self.push(
            request,
            decision,
            json!({
                "application_id": application, "resource": "resource://crm",
                "requested_scopes": ["agent:lifecycle"],
                "policy_decision": decision, "policy_input": asked(application),
            }),
        );
    }
}

/// A second version of the set that gives the resource to another application.
async fn candidate(stack: &Stack, zone: &ZoneId, set: &str, content: String) -> String {
    let z = format!("/v1/zones/{zone}");
    let policy = json!({"name": format!("candidate-{}", content.len()), "content": content});
    let policy = stack
        .send("POST", &format!("{z}/policies"), policy)
        .await
        .is(201);
    let manifest = json!({"manifest": [{"policy_version_id": policy["version_id"]}]});
    let made = stack
        .send("POST", &format!("{z}/policy-sets/{set}/versions"), manifest)
        .await
        .is(201);
    made["version_id"].as_str().unwrap().to_owned()
}

on_stack! {
    async fn a_candidate_is_tried_on_what_was_decided(stack: Stack) {
        let zone = stack.zone("Replay").await;
        let (set, version) = stack.activated_set(&zone).await;
        let mut recorded = Recorded { events: Vec::new(), zone: zone.clone(), version: version.clone() };
        recorded.decision("r0", "app-1", "allow");
        recorded.decision("r1", "app-2", "deny");
        recorded.decision("r2", "app-3", "deny");
        recorded.push("r3", "deny", json!({"resource": "resource://crm"}));
        let early = event(&zone, 4, "r4", "deny", &json!({"resource": "resource://none"}));
        recorded.events.push(early);
        append_events(&stack, &zone, recorded.events).await;

        let base = format!("/v1/zones/{zone}/policy-sets/{set}/versions");
        let same = stack.get(&format!("{base}/{version}/replay")).await.is(200);
        assert_eq!(same["counts"], json!({"not_asked": 1, "unchanged": 3, "newly_allowed": 0,
            "newly_held": 0, "newly_denied": 0, "undecidable": 1}));

        let other = candidate(&stack, &zone, &set, grants("app-2")).await;
        let read = stack.token("read", Some(&zone)).await;
        let path = format!("{base}/{other}/replay");
        let told = stack.send_as(&read, "GET", &path, "").await.is(200);
        assert_eq!((&told["examined"], &told["next_cursor"]), (&json!(5), &json!(null)));
        let changes: Vec<_> = told["items"].as_array().unwrap().iter()
            .map(|item| (item["request_id"].as_str().unwrap(), item["change"].as_str().unwrap())).collect();
        assert_eq!(changes, [("r3", "undecidable"), ("r1", "newly_allowed"), ("r0", "newly_denied")]);
        let denied = &told["items"][2];
        assert_eq!(denied["recorded"], json!({"decision": "allow", "policy_set_version_id": version}));
        assert_eq!(denied["candidate"], json!({"decision": "deny", "rule": "no_rule_matched"}));

        // Two at a time come to the same.
        let (mut seen, mut next) = (0, format!("{path}?limit=2"));
        loop {
            let page = stack.get(&next).await.is(200);
            seen += page["examined"].as_u64().unwrap();
            match page["next_cursor"].as_str() {
                Some(cursor) => next = format!("{path}?limit=2&cursor={cursor}"),
                None => break,
            }
        }
        assert_eq!(seen, 5);
        let none = stack.get(&format!("{path}?since=2027-01-01T00:00:00Z")).await.is(200);
        assert_eq!(none["examined"], 0);

        // What a candidate reads beyond evidence makes its answer unknown, not wrong.
        let content = "# caracal:data-document\npackage caracal.authz\n\
            restrict := {\"x\"} if input.context.subject_claims.sub == \"u\"\n";
        let reading = candidate(&stack, &zone, &set, content.to_owned()).await;
        let told = stack.get(&format!("{base}/{reading}/replay")).await.is(200);
        assert_eq!(told["counts"]["undecidable"], 1, "no claims were presented: {told}");
        for (path, error) in [
            (format!("{base}/none/replay"), "policy_set_version_not_found"),
            (format!("/v1/zones/{zone}/policy-sets/none/versions/{version}/replay"), "policy_set_not_found"),
            (format!("{path}?since=soon"), "invalid_query"),
            (format!("{path}?limit=1001"), "invalid_query"),
            (format!("{path}?cursor=x"), "invalid_cursor"),
        ] {
            assert_eq!(stack.get(&path).await.text("error"), error, "{path}");
        }
    }

    async fn what_workloads_were_told_is_tried_as_well_held_or_not(stack: Stack) {
        let zone = stack.zone("Workloads").await;
        let (set, version) = stack.activated_set(&zone).await;
        let mut recorded = Recorded { events: Vec::new(), zone: zone.clone(), version: version.clone() };
        // Nobody ever decided about the hold, so it was never spent.
        for (request, said) in [("w0", "hold"), ("w1", "allow")] {
            let decision = if said == "allow" { "allow" } else { "deny" };
            recorded.push(request, decision, json!({
                "workload_id": "w", "env": "KEY", "resource": "resource://crm",
                "requested_scopes": ["crm:purge"], "policy_decision": said,
                "policy_input": {
                    "schema_version": "2026-05-20",
                    "principal": {"type": "Workload", "id": "w", "zone_id": zone},
                    "resource": {"type": "Resource", "id": "r", "identifier": "resource://crm", "scopes": ["crm:purge"]},
                    "action": {"id": "CredentialInjection"},
                    "context": {"actor_claims": {"caracal_workload_id": "w"}, "challenge_resolved": false,
                        "requested_scopes": ["crm:purge"]},
                },
            }));
        }
        append_events(&stack, &zone, recorded.events).await;

        let base = format!("/v1/zones/{zone}/policy-sets/{set}/versions");
        let gated = "# caracal:data-document\npackage caracal.authz\n\
            risk := [{\"scope\": \"crm:purge\", \"tier\": \"high\"}]\napproval_tiers := [{\"tier\": \"high\"}]\n";
        let gated = candidate(&stack, &zone, &set, gated.to_owned()).await;
        let restricted = "# caracal:data-document\npackage caracal.authz\nrestrict := [\"all\"]\n";
        let restricted = candidate(&stack, &zone, &set, restricted.to_owned()).await;
        for (version, expected) in [
            (&version, vec![("w0", "newly_allowed")]),
            (&gated, vec![("w1", "newly_held")]),
            (&restricted, vec![("w1", "newly_denied"), ("w0", "newly_denied")]),
        ] {
            let told = stack.get(&format!("{base}/{version}/replay")).await.is(200);
            let changes: Vec<_> = told["items"].as_array().unwrap().iter()
                .map(|item| (item["request_id"].as_str().unwrap(), item["change"].as_str().unwrap())).collect();
            assert_eq!(changes, expected);
            assert_eq!(told["counts"]["undecidable"], 0);
        }
    }

    async fn an_explanation_says_which_rule_which_grant_and_what_to_change(stack: Stack) {
        let zone = stack.zone("Why").await;
        let (_, version) = stack.activated_set(&zone).await;
        let mut recorded = Recorded { events: Vec::new(), zone: zone.clone(), version: version.clone() };
        recorded.decision("r1", "app-2", "deny");
        recorded.decision("r2", "app-1", "allow");
        recorded.version = "gone".into();
        recorded.decision("r3", "app-1", "allow");
        let unknown = event(&zone, 3, "r4", "deny", &json!({"resource": "resource://none"}));
        recorded.events.push(unknown);
        append_events(&stack, &zone, recorded.events).await;
        let of = async |request: &str| {
            stack.get(&format!("/v1/zones/{zone}/audit/by-request/{request}/explain")).await.is(200)
        };
        let denied = of("r1").await;
        assert_eq!(denied["final_decision"], "deny");
        assert_eq!(denied["denied"][0]["policy_input"]["context"]["trace_id"], "r1");
        let why = &denied["explanations"][0];
        assert_eq!((&why["rule"], &why["kind"]), (&json!("no_rule_matched"), &json!("bootstrap")));
        assert_eq!(why["policy_set_version_id"], json!(version));
        assert_eq!(why["change"], json!(["give `resource://crm` a grant whose `application` is a name that \
            `app_ids` maps to `app-2`"]));
        let allowed = of("r2").await;
        assert_eq!(allowed["explanations"][0]["rule"], "caracal-bootstrap");
        assert_eq!(allowed["explanations"][0]["grant"]["application_id"], "app-1");
        assert_eq!(of("r3").await["explanations"][0]["unavailable"], "the version that decided is no longer kept");
        assert_eq!(of("r4").await["explanations"][0]["unavailable"], "policy was not asked about this resource");
    }
}
