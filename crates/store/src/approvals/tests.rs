//! Holds on both engines.

use std::time::Duration;

use caracal_model::{ApplicationId, ApprovalId, RecordId, SessionId, Timestamp, ZoneId};
use futures_util::future::join_all;
use serde_json::json;

use super::{Approval, Filter, Slot, Verdict, Witness};
use crate::authority_records::AuthorityRecord;
use crate::testing::raw;
use crate::zones::Slice;
use crate::{Sql, Store, on_each_engine, params};

const ZONE: Sql = raw(
    "INSERT INTO zones (id, name, slug, dcr_enabled, operator_coauthor_badge,
    operator_governed, created_via_operator, updated_via_operator, created_at, updated_at)
    VALUES ($1, $1, $1, FALSE, FALSE, FALSE, FALSE, FALSE, 0, 0)",
);
const SET: Sql = raw(
    "INSERT INTO policy_sets (id, zone_id, name, created_via_operator,
    updated_via_operator, created_at, updated_at) VALUES ('set', 'z', 'set', FALSE, FALSE, 0, 0)",
);
const VERSION: Sql = raw(
    "INSERT INTO policy_set_versions (id, zone_id, policy_set_id, version,
    manifest_json, manifest_sha256, schema_version, created_via_operator, created_at)
    VALUES ($1, 'z', 'set', $2, '[]', '', '', FALSE, 0)",
);
const BIND: Sql = raw(
    "INSERT INTO policy_bindings (zone_id, policy_set_id, version_id, activated_at)
    VALUES ('z', 'set', $1, 0)
    ON CONFLICT (zone_id) DO UPDATE SET version_id = excluded.version_id",
);

fn zone() -> ZoneId {
    ZoneId::trusted("z")
}

fn now() -> Timestamp {
    Timestamp::from_unix_seconds(1_800_000_000)
}

fn later(seconds: u64) -> Timestamp {
    now().plus(Duration::from_secs(seconds))
}

fn hold(id: &str) -> Approval {
    Approval {
        principal_id: "app".to_owned(),
        application_id: Some(ApplicationId::trusted("app")),
        tier: "high".to_owned(),
        subject_anchor: Some("user_1".to_owned()),
        own_records: vec![RecordId::trusted("r1")],
        binding: "b".to_owned(),
        terms: "t".to_owned(),
        policy_set_version_id: "v1".to_owned(),
        metadata: json!({"resources": ["resource://desk"]}),
        ..Approval::undecided(ApprovalId::trusted(id), zone(), now(), later(60))
    }
}

async fn prepare(store: &Store) {
    let mut tx = store.begin("a test's zone").await.unwrap();
    for id in ["z", "other"] {
        tx.execute(&ZONE, &params![id]).await.unwrap();
    }
    tx.execute(&SET, &[]).await.unwrap();
    for (id, number) in [("v1", 1), ("v2", 2)] {
        tx.execute(&VERSION, &params![id, number]).await.unwrap();
    }
    tx.execute(&BIND, &params!["v1"]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn activate(store: &Store, version: &str) {
    let mut tx = store.begin("activating").await.unwrap();
    tx.execute(&BIND, &params![version]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn issue(store: &Store, hold: &Approval) -> bool {
    let mut tx = store.begin("issuing").await.unwrap();
    let zone = zone();
    let witness = Witness {
        event_id: hold.id.as_str(),
        event: "{}",
    };
    let issued = tx
        .zone(&zone)
        .approvals()
        .issue(hold, witness)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    issued
}

fn verdict(approved: bool) -> Verdict<'static> {
    Verdict {
        approved,
        approver: "admin:t1",
        record: None,
        reason: None,
        class: "operator",
    }
}

async fn decide(store: &Store, id: &str, verdict: Verdict<'_>, at: Timestamp) -> bool {
    let mut tx = store.begin("deciding").await.unwrap();
    let (zone, id) = (zone(), ApprovalId::trusted(id));
    let decided = tx
        .zone(&zone)
        .approvals()
        .decide(&id, verdict, at)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    decided.is_some()
}

async fn consume(store: &Store, id: &str, at: Timestamp) -> bool {
    let mut tx = store.begin("consuming").await.unwrap();
    let (zone, id) = (zone(), ApprovalId::trusted(id));
    let record = RecordId::trusted("issued");
    let spent = tx
        .zone(&zone)
        .approvals()
        .consume(&id, "b", Some(&record), at)
        .await
        .unwrap();
    if spent {
        tx.commit().await.unwrap()
    } else {
        tx.rollback().await
    }
    spent
}

async fn get(store: &Store, id: &str) -> Option<Approval> {
    store
        .zone(&zone())
        .approvals()
        .get(&ApprovalId::trusted(id))
        .await
        .unwrap()
}

async fn live(store: &Store) -> Option<String> {
    let slot = Slot {
        principal: "app",
        record: None,
        binding: "b",
    };
    let found = store.zone(&zone()).approvals().live(slot).await.unwrap();
    found.map(|hold| hold.id.to_string())
}

const RECORD: Sql = raw(
    "INSERT INTO authority_records (id, zone_id, record_type, subject_id, client_id, status,
    expires_at, created_at) VALUES ($1, 'z', 'user', $2, 'app', 'active', $3, 0)",
);
const APPLICATION: Sql = raw(
    "INSERT INTO applications (id, zone_id, name, name_key, registration_method, traits,
    created_via_operator, updated_via_operator, created_at, updated_at)
    VALUES ('app', 'z', 'app', 'app', 'managed', '[]', FALSE, FALSE, 0, 0)",
);
const SESSION: Sql = raw(
    "INSERT INTO sessions (id, zone_id, application_id, subject_record_id, subject_type, lifecycle,
    labels, metadata_json, status, depth, live_children, started_at, ends_at, last_active_at,
    lease_generation, updated_at)
    VALUES ($1, 'z', 'app', $2, 'user', 'task', '[]', '{}', 'active', 0, 0, 0, $3, 0, 0, 0)",
);

on_each_engine! {
    async fn approvals_concern_who_asked_who_is_behind_it_and_who_decides(store: Store) {
        prepare(&store).await;
        let mut tx = store.begin("a user and an agent").await.unwrap();
        tx.execute(&APPLICATION, &[]).await.unwrap();
        tx.execute(&RECORD, &params!["r-user", "user_2", later(60)]).await.unwrap();
        tx.execute(&SESSION, &params!["s1", "r-user", later(60)]).await.unwrap();
        tx.commit().await.unwrap();
        let bound = |id: &str| Approval { binding: id.to_owned(), ..hold(id) };
        let by_its_agent = Approval {
            principal_id: "app-2".to_owned(),
            subject_anchor: None,
            agent_session_id: Some(SessionId::trusted("s1")),
            ..bound("h3")
        };
        let expired = Approval { expires_at: now(), ..bound("h2") };
        for one in [bound("h1"), expired, by_its_agent] {
            assert!(issue(&store, &one).await);
        }
        let zone = zone();
        let concerns = async |subject: &str| {
            let found = store.zone(&zone).subjects().approvals(subject, now()).await.unwrap();
            (found.pending, found.total)
        };
        assert_eq!(concerns("app").await, (1, 2), "who asked; one has expired");
        assert_eq!(concerns("user_1").await, (1, 2), "who alone may decide");
        assert_eq!(concerns("user_2").await, (1, 1), "whose agent asked");
        assert_eq!(concerns("nobody").await, (0, 0));
        let other = ZoneId::trusted("other");
        let elsewhere = store.zone(&other).subjects().approvals("app", now()).await.unwrap();
        assert_eq!(elsewhere.total, 0);
        assert!(decide(&store, "h1", verdict(true), now()).await);
        assert_eq!(concerns("app").await, (0, 2), "decided");
    }

    async fn a_slot_has_one_live_hold_however_many_ask_at_once(store: Store) {
        prepare(&store).await;
        let holds: Vec<_> = (0..12).map(|n| hold(&format!("a{n}"))).collect();
        let issued = join_all(holds.iter().map(|hold| issue(&store, hold))).await;
        assert_eq!(issued.iter().filter(|issued| **issued).count(), 1);
        let winner = holds.iter().zip(&issued).find(|(_, issued)| **issued).unwrap().0;
        assert_eq!(live(&store).await.as_deref(), Some(winner.id.as_str()));
        assert_eq!(get(&store, winner.id.as_str()).await.as_ref(), Some(winner));
        let elsewhere = ZoneId::trusted("other");
        assert_eq!(store.zone(&elsewhere).approvals().get(&winner.id).await.unwrap(), None);
        assert_eq!(store.find_approval(&winner.id).await.unwrap().as_ref(), Some(winner));
        assert_eq!(store.find_approvals(std::slice::from_ref(&winner.id)).await.unwrap().len(), 1);
        // Only what was issued left evidence.
        assert_eq!(store.approval_evidence(later(1), 100).await.unwrap().len(), 1);
    }

    async fn what_is_over_or_stands_on_other_terms_makes_room_and_stays_readable(store: Store) {
        prepare(&store).await;
        assert!(issue(&store, &hold("a1")).await);
        let mut second = hold("a2");
        second.created_at = later(60);
        second.expires_at = later(120);
        assert!(issue(&store, &second).await, "the first has expired");
        assert_eq!(live(&store).await.as_deref(), Some("a2"));
        assert!(!get(&store, "a1").await.unwrap().live);

        assert!(decide(&store, "a2", verdict(true), later(61)).await);
        let mut stricter = hold("a3");
        stricter.created_at = later(62);
        stricter.expires_at = later(122);
        stricter.terms = "other".to_owned();
        assert!(issue(&store, &stricter).await);
        assert_eq!(get(&store, "a2").await.unwrap().expires_at, later(62));
        assert!(!consume(&store, "a2", later(63)).await, "an easier hold is worth nothing now");

        // A rejected one keeps its place until it expires.
        assert!(decide(&store, "a3", verdict(false), later(63)).await);
        let again = Approval { id: ApprovalId::trusted("a4"), created_at: later(64), ..stricter };
        assert!(!issue(&store, &again).await);
    }

    async fn one_decision_counts_and_only_of_the_right_class_in_time(store: Store) {
        prepare(&store).await;
        issue(&store, &hold("a1")).await;
        let subject = Verdict { class: "subject", ..verdict(true) };
        assert!(!decide(&store, "a1", subject, now()).await);
        assert!(!decide(&store, "a1", verdict(true), later(60)).await, "at its expiry it is over");
        let decisions = (0..12).map(|n| decide(&store, "a1", verdict(n % 2 == 0), later(1)));
        let decided = join_all(decisions).await;
        assert_eq!(decided.iter().filter(|decided| **decided).count(), 1);
        let hold = get(&store, "a1").await.unwrap();
        assert!(hold.satisfied_at.is_some() != hold.rejected_at.is_some());
        assert_eq!(hold.approver.as_deref(), Some("admin:t1"));
        let news = store.outbox().claim(10, Duration::ZERO).await.unwrap();
        assert_eq!(news.len(), 1, "one decision is announced once");
        assert_eq!(news[0].fields["kind"], "approval");
    }

    async fn a_hold_is_spent_once_and_only_when_everything_holds(store: Store) {
        prepare(&store).await;
        issue(&store, &hold("a1")).await;
        assert!(!consume(&store, "a1", later(1)).await, "nobody approved");
        assert!(decide(&store, "a1", verdict(true), later(1)).await);
        assert!(!consume(&store, "a1", later(60)).await, "expired");
        activate(&store, "v2").await;
        assert!(!consume(&store, "a1", later(2)).await, "another policy is active");
        let current = store.zone(&zone()).approvals().is_current_policy("v1").await.unwrap();
        assert!(!current);
        activate(&store, "v1").await;
        let spent = join_all((0..12).map(|_| consume(&store, "a1", later(2)))).await;
        assert_eq!(spent.iter().filter(|spent| **spent).count(), 1);
        let spent = get(&store, "a1").await.unwrap();
        assert_eq!((spent.consumed_at, spent.live), (Some(later(2)), false));
        assert_eq!(spent.issued_record_id, Some(RecordId::trusted("issued")));
        assert!(issue(&store, &hold("a2")).await, "the next request is held anew");
        assert!(decide(&store, "a2", verdict(false), later(3)).await);
        assert!(!consume(&store, "a2", later(4)).await, "rejected");
    }

    async fn the_record_that_it_was_asked_with_must_be_in_force(store: Store) {
        prepare(&store).await;
        let record = |id: &str, parent: Option<&str>| AuthorityRecord {
            id: RecordId::trusted(id),
            record_type: "user".into(),
            subject_id: "app".into(),
            client_id: "app".into(),
            parent_id: parent.map(RecordId::trusted),
            status: "active".into(),
            expires_at: later(30),
            created_at: now(),
            revoked_at: None,
            revoked_reason: None,
            issuer: None,
        };
        let (zone, root) = (zone(), RecordId::trusted("r1"));
        let records = [record("r1", None), record("r2", Some("r1")), record("r3", Some("r2"))];
        let mut tx = store.begin("adding records").await.unwrap();
        tx.zone(&zone).add_authority_records(&records).await.unwrap();
        tx.commit().await.unwrap();
        let held = Approval { record_id: Some(root.clone()), ..hold("a1") };
        issue(&store, &held).await;
        decide(&store, "a1", verdict(true), later(1)).await;
        assert!(!consume(&store, "a1", later(30)).await, "its record has expired");
        let mut tx = store.begin("revoking").await.unwrap();
        tx.zone(&zone).revoke_authority_record(&root, "asked", now()).await.unwrap();
        tx.rollback().await;
        assert!(consume(&store, "a1", later(2)).await);

        let (leaf, other) = (RecordId::trusted("r3"), RecordId::trusted("none"));
        let mut line = store.zone(&zone).approvals().ancestry(&[&leaf, &other]).await.unwrap();
        line.sort();
        let up = |id: &str| (leaf.clone(), RecordId::trusted(id));
        assert_eq!(line, [up("r1"), up("r2"), up("r3")]);
    }

    async fn lists_filter_count_and_remember(store: Store) {
        prepare(&store).await;
        for (id, at) in [("a1", 0), ("a2", 1), ("a3", 2)] {
            let mut hold = hold(id);
            hold.created_at = later(at);
            hold.binding = if id == "a3" { "c".to_owned() } else { "b".to_owned() };
            assert!(issue(&store, &hold).await, "{id}");
            decide(&store, id, verdict(id != "a2"), later(at)).await;
            if id == "a1" {
                assert!(consume(&store, id, later(at)).await);
            }
        }
        let zone = zone();
        let list = async |filter: Filter<'_>, at: Timestamp| {
            let slice = Slice { before: i64::MAX, before_id: "", limit: 10 };
            let rows = store.zone(&zone).approvals().page(slice, filter, at).await.unwrap();
            rows.iter()
                .map(|row| format!("{} {}/{}", row.approval.id, row.prior_approved, row.prior_rejected))
                .collect::<Vec<_>>()
        };
        let all = Filter::default();
        assert_eq!(list(all, later(3)).await, ["a3 0/0", "a2 1/0", "a1 0/1"]);
        let state = |state| Filter { state: Some(state), ..all };
        assert_eq!(list(state("approved"), later(3)).await, ["a3 0/0"]);
        assert_eq!(list(state("rejected"), later(99)).await, ["a2 1/0"]);
        assert_eq!(list(state("expired"), later(99)).await, ["a3 0/0"]);
        let between = Filter { since: Some(later(1)), until: Some(later(1)), ..all };
        assert_eq!(list(between, later(3)).await, ["a2 1/0"]);
        assert!(list(Filter { tier: Some("low"), ..all }, later(3)).await.is_empty());
        assert_eq!(list(Filter { principal: Some("app"), ..all }, later(3)).await.len(), 3);
        let mut counts = store.zone(&zone).approvals().counts(later(3)).await.unwrap();
        counts.sort();
        let counts: Vec<_> = counts.iter().map(|(state, n)| format!("{state} {n}")).collect();
        assert_eq!(counts, ["approved 1", "consumed 1", "rejected 1"]);
        let one = store.zone(&zone).approvals().listed("a2", later(3)).await.unwrap().unwrap();
        assert_eq!((one.prior_approved, one.principal_federated), (1, false));
        assert_eq!(store.zone(&zone).approvals().listed("nowhere", now()).await.unwrap(), None);

        // Consumed a moment ago goes first; the others when they have expired.
        assert_eq!(store.purge_approvals(later(1), 10).await.unwrap(), 1);
        assert_eq!(store.purge_approvals(later(60), 10).await.unwrap(), 0);
        assert_eq!(store.purge_approvals(later(61), 1).await.unwrap(), 1);
        assert_eq!(store.purge_approvals(later(61), 10).await.unwrap(), 1);
    }

    async fn evidence_waits_with_its_change_until_it_is_recorded(store: Store) {
        prepare(&store).await;
        issue(&store, &hold("a1")).await;
        assert!(store.approval_evidence(now(), 10).await.unwrap().is_empty(), "not old enough");
        let left = store.approval_evidence(later(1), 10).await.unwrap();
        assert_eq!(left, [("a1".to_owned(), "{}".to_owned())]);
        store.approval_evidence_recorded(&["a1"]).await.unwrap();
        assert!(store.approval_evidence(later(1), 10).await.unwrap().is_empty());
    }
}
