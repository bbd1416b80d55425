//! Sessions and edges on both engines.

use std::collections::BTreeSet;

use caracal_model::{
    ApplicationId, DelegationId, RecordId, Scopes, SessionId, SubjectType, Timestamp, ZoneId,
};
use serde_json::json;

use super::end::{Cut, Root};
use super::{Counts, Lifecycle, NewSession, Quotas, SessionStatus, Start};
use crate::authority_records::AuthorityRecord;
use crate::delegations::{EdgeRow, EdgeStatus};
use crate::live::Anchor;
use crate::subject_issuers::{ISSUER_INDEX, SubjectIssuer};
use crate::subjects::{CutOff, Wanted};
use crate::zones::{Author, Provenance, Slice};
use crate::{Sql, Store, StoreError, on_each_engine, params};

const fn raw(text: &'static str) -> Sql {
    Sql {
        name: "test",
        pg: text,
        lite: text,
    }
}

const ZONE: Sql = raw(
    "INSERT INTO zones (id, name, slug, dcr_enabled, operator_coauthor_badge,
    operator_governed, created_via_operator, updated_via_operator, created_at, updated_at)
    VALUES ('z', 'z', 'z', FALSE, FALSE, FALSE, FALSE, FALSE, 0, 0)",
);
const APPLICATION: Sql = raw("INSERT INTO applications (id, zone_id, name, name_key,
    registration_method, traits, created_via_operator, updated_via_operator, created_at, updated_at)
    VALUES ($1, 'z', $1, $1, 'managed', '[]', FALSE, FALSE, 0, 0)");
const RECORD: Sql = raw(
    "INSERT INTO authority_records (id, zone_id, record_type, subject_id,
    client_id, status, expires_at, created_at) VALUES ($1, 'z', 'user', 'u', 'a', 'active', $2, 0)",
);
const ORPHANS: Sql = raw(
    "SELECT c.id FROM sessions c JOIN sessions p ON p.id = c.parent_id
    WHERE c.status IN ('active', 'suspended') AND p.status NOT IN ('active', 'suspended')",
);
const DRIFT: Sql = raw(
    "SELECT c.holder AS id FROM session_counts c WHERE c.live <> (
    SELECT COUNT(*) FROM sessions s WHERE s.zone_id = c.zone_id
      AND s.status IN ('active', 'suspended')
      AND (c.holder = 'zone' OR c.holder = s.application_id))",
);
const LOOSE: Sql = raw("SELECT d.id FROM delegations d JOIN sessions s
    ON s.id IN (d.source_session_id, d.target_session_id)
    WHERE d.status = 'active' AND s.status NOT IN ('active', 'suspended')");
const TOPICS: Sql = raw("SELECT topic, fields_json FROM outbox ORDER BY id");

const QUOTAS: Quotas = Quotas {
    zone: 50,
    application: 50,
    children: 10,
    depth: 10,
};

fn now() -> Timestamp {
    Timestamp::from_unix_seconds(1_800_000_000)
}

fn zone() -> ZoneId {
    ZoneId::trusted("z")
}

async fn with_zone(store: &Store) {
    let mut tx = store.begin("fixture").await.unwrap();
    tx.execute(&ZONE, &[]).await.unwrap();
    tx.execute(&APPLICATION, &params!["a"]).await.unwrap();
    tx.execute(
        &RECORD,
        &params!["user-1", Timestamp::from_unix_seconds(2_000_000_000)],
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

fn task(id: &str, parent: Option<&str>) -> NewSession {
    NewSession {
        id: SessionId::trusted(id),
        application_id: ApplicationId::trusted("a"),
        parent_id: parent.map(SessionId::trusted),
        subject_record_id: RecordId::trusted("record"),
        subject_type: SubjectType::Application,
        lifecycle: Lifecycle::Task,
        labels: vec!["x\"b".to_owned()],
        metadata_json: "{}".to_owned(),
        depth: u32::from(parent.is_some()),
        ttl_seconds: Some(60),
        started_at: now(),
        ends_at: Some(Timestamp::from_unix_seconds(1_800_000_060)),
        heartbeat_deadline_at: None,
    }
}

async fn try_start(store: &Store, new: &NewSession) -> Result<Start, StoreError> {
    let zone = zone();
    let mut tx = store.begin("start").await?;
    if let Some(parent) = &new.parent_id
        && tx
            .zone(&zone)
            .sessions()
            .admit_child(parent, &QUOTAS, now())
            .await?
            == Start::Raced
    {
        return Ok(Start::Raced);
    }
    let counts = Counts::default();
    let started = tx
        .zone(&zone)
        .sessions()
        .start(new, &QUOTAS, counts)
        .await?;
    if started == Start::Raced {
        return Ok(Start::Raced);
    }
    match tx.commit().await {
        Ok(()) => Ok(Start::Done),
        Err(StoreError::Overtaken { .. }) => Ok(Start::Raced),
        Err(error) => Err(error),
    }
}

async fn start(store: &Store, id: &str, parent: Option<&str>) {
    assert_eq!(
        try_start(store, &task(id, parent)).await.unwrap(),
        Start::Done,
        "{id}"
    );
}

async fn delegate(store: &Store, id: &str, source: &str, target: &str) {
    let zone = zone();
    let mut tx = store.begin("delegate").await.unwrap();
    let edge = EdgeRow {
        id: DelegationId::trusted(id),
        source_session_id: SessionId::trusted(source),
        target_session_id: SessionId::trusted(target),
        issuer_application_id: ApplicationId::trusted("a"),
        receiver_application_id: ApplicationId::trusted("a"),
        parent_edge_id: None,
        mirrored: false,
        resource_id: None,
        scopes: Scopes::parse("r:read"),
        constraints_json: json!({}),
        status: EdgeStatus::Active,
        edge_version: 0,
        expires_at: Timestamp::from_unix_seconds(1_800_000_060),
        created_at: now(),
        revoked_at: None,
    };
    tx.zone(&zone).delegations().create(&edge).await.unwrap();
    tx.commit().await.unwrap();
}

async fn ids(store: &Store, sql: &Sql) -> Vec<String> {
    let rows = store.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.string("id").unwrap()).collect()
}

async fn end(store: &Store, root: &str, cut: impl Fn(&mut Cut<'_>)) -> super::end::Ended {
    let zone = zone();
    let row = store
        .zone(&zone)
        .sessions()
        .get(&SessionId::trusted(root))
        .await
        .unwrap()
        .unwrap();
    let roots = [Root {
        id: row.id,
        parent: row.parent_id,
    }];
    let mut what = Cut::of(&roots, "requested", now());
    cut(&mut what);
    let mut tx = store.begin("end").await.unwrap();
    let ended = tx.zone(&zone).sessions().end(&what).await.unwrap();
    tx.commit().await.unwrap();
    ended
}

on_each_engine! {
    async fn every_statement_of_sessions_edges_and_receipts_is_accepted(store: Store) {
        let mine = [
            super::sql::ALL, super::end::sql::ALL, super::standing::sql::ALL,
            crate::delegations::sql::ALL, crate::idempotency::sql::ALL,
        ];
        let refused = store.refused_statements(mine.into_iter().flatten().copied()).await.unwrap();
        assert!(refused.is_empty(), "{refused:#?}");
    }

    async fn ending_a_session_ends_what_hangs_below_it_and_gives_its_places_back(store: Store) {
        with_zone(&store).await;
        start(&store, "root", None).await;
        start(&store, "s1", Some("root")).await;
        start(&store, "s2", Some("s1")).await;
        start(&store, "peer", None).await;
        delegate(&store, "e1", "peer", "s2").await;
        let ended = end(&store, "s1", |_| ()).await;
        let names: Vec<_> = ended.sessions.iter().map(|s| (s.id.as_str(), s.reason.as_str())).collect();
        assert_eq!(names, [("s1", "requested"), ("s2", "parent_terminated")]);
        assert_eq!(ended.edges.len(), 1);
        let zone = zone();
        let sessions = store.zone(&zone).sessions();
        let root = sessions.get(&SessionId::trusted("root")).await.unwrap().unwrap();
        assert_eq!((root.live_children, root.status), (0, SessionStatus::Active));
        let counts = sessions.counts(&ApplicationId::trusted("a")).await.unwrap();
        assert_eq!(counts, Counts { zone: Some(2), application: Some(2) });
        assert_eq!(ids(&store, &DRIFT).await, Vec::<String>::new());
        let again = end(&store, "s1", |_| ()).await;
        assert!(again.sessions.is_empty() && again.edges.is_empty());
    }

    async fn a_revoked_delegation_takes_everything_that_it_led_to_with_it(store: Store) {
        with_zone(&store).await;
        for id in ["a1", "b1", "c1", "d1"] {
            start(&store, id, None).await;
        }
        start(&store, "b2", Some("b1")).await;
        delegate(&store, "ab", "a1", "b1").await;
        delegate(&store, "bc", "b1", "c1").await;
        delegate(&store, "cb", "c1", "b1").await;
        delegate(&store, "db", "d1", "b2").await;
        let zone = zone();
        let edge = DelegationId::trusted("ab");
        let roots = [Root { id: SessionId::trusted("b1"), parent: None }];
        let mut cut = Cut::of(&roots, "delegation_revoked", now());
        cut.along = Some(&edge);
        cut.cut_off = true;
        let mut tx = store.begin("revoke").await.unwrap();
        let ended = tx.zone(&zone).sessions().end(&cut).await.unwrap();
        tx.commit().await.unwrap();
        let over: BTreeSet<_> = ended.sessions.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(over, BTreeSet::from(["b1", "b2", "c1"]));
        let edges: BTreeSet<_> = ended.edges.iter().map(|edge| edge.id.as_str()).collect();
        assert_eq!(edges, BTreeSet::from(["ab", "bc", "cb", "db"]));
        for none in [&ORPHANS, &LOOSE, &DRIFT] {
            assert_eq!(ids(&store, none).await, Vec::<String>::new());
        }
        let rows = store.query(&TOPICS, &[]).await.unwrap();
        let said = |topic: &str, what: &str| {
            rows.iter()
                .filter(|row| row.text("topic").unwrap() == topic)
                .filter(|row| row.text("fields_json").unwrap().contains(what))
                .count()
        };
        assert_eq!(said("caracal.delegations.invalidate", "\"epoch\":\"2\""), 4);
        assert_eq!(said("caracal.delegations.invalidate", "\"epoch\":\"1\""), 4);
        assert_eq!(said("caracal.sessions.revoke", "delegation_edge_id"), 4);
        assert_eq!(said("caracal.sessions.revoke", "agent_session_id"), 7);
        assert_eq!(said("caracal.sessions.revoke", "\"session_id\""), 0);
    }

    async fn a_user_record_ends_with_its_last_session_and_only_then_is_it_named(store: Store) {
        with_zone(&store).await;
        for id in ["u1", "u2"] {
            let mut new = task(id, None);
            new.subject_record_id = RecordId::trusted("user-1");
            new.subject_type = SubjectType::User;
            assert_eq!(try_start(&store, &new).await.unwrap(), Start::Done);
        }
        assert!(end(&store, "u1", |_| ()).await.revoked_records.is_empty());
        let ended = end(&store, "u2", |_| ()).await;
        assert_eq!(ended.revoked_records, BTreeSet::from([RecordId::trusted("user-1")]));
        let mut new = task("u3", None);
        new.subject_record_id = RecordId::trusted("user-1");
        new.subject_type = SubjectType::User;
        assert_eq!(try_start(&store, &new).await.unwrap(), Start::Raced);
        let rows = store.query(&TOPICS, &[]).await.unwrap();
        let named: Vec<_> = rows
            .iter()
            .filter(|row| row.text("topic").unwrap() == "caracal.sessions.revoke")
            .map(|row| row.text("fields_json").unwrap().contains("\"session_id\":\"user-1\""))
            .collect();
        assert_eq!(named, [false, true]);
    }

    async fn a_subject_that_is_cut_off_loses_everything_at_once(store: Store) {
        with_zone(&store).await;
        for (id, parent) in [("u1", None), ("u2", None)] {
            let mut new = task(id, parent);
            new.subject_record_id = RecordId::trusted("user-1");
            new.subject_type = SubjectType::User;
            assert_eq!(try_start(&store, &new).await.unwrap(), Start::Done);
        }
        start(&store, "below", Some("u1")).await;
        start(&store, "peer", None).await;
        delegate(&store, "e1", "peer", "below").await;
        let zone = zone();
        let cut = async |subject: &str, at: Timestamp| {
            let mut tx = store.begin("cut off").await.unwrap();
            let cut = tx.subjects(&zone).cut_off(subject, "gone rogue", at, now()).await.unwrap();
            tx.commit().await.unwrap();
            cut
        };
        assert_eq!(cut("nobody", now()).await, None);
        let off = cut("u", now()).await.unwrap();
        assert_eq!((off.records, off.sessions, off.delegations), (1, 3, 1));
        assert_eq!(cut("u", Timestamp::from_unix_seconds(1)).await, Some(CutOff::default()));
        assert_eq!(store.subject_cutoff(&zone, "u").await.unwrap(), Some(now()), "it never falls");
        assert_eq!(store.subject_cutoff(&ZoneId::trusted("z2"), "u").await.unwrap(), None);
        let record = RecordId::trusted("user-1");
        let record = store.zone(&zone).authority_record(&record).await.unwrap().unwrap();
        assert_eq!(record.status, "revoked");
        assert_eq!(record.revoked_reason.as_deref(), Some("subject_revoked"));
        let live = store.zone(&zone).sessions().get(&SessionId::trusted("peer")).await.unwrap();
        assert_eq!(live.unwrap().status, SessionStatus::Active, "a peer lives on");
        for none in [&ORPHANS, &LOOSE, &DRIFT] {
            assert_eq!(ids(&store, none).await, Vec::<String>::new());
        }
        let dead = store.dead_since(Timestamp::from_unix_seconds(2)).await.unwrap();
        assert!(dead.iter().any(|dead| dead.anchor == Anchor::Subject(zone.clone(), "u".into())));
        let rows = store.query(&TOPICS, &[]).await.unwrap();
        let said = |topic: &str, what: &str| {
            rows.iter()
                .filter(|row| row.text("topic").unwrap() == topic)
                .filter(|row| row.text("fields_json").unwrap().contains(what))
                .count()
        };
        assert_eq!(said("caracal.sessions.revoke", "\"session_id\":\"user-1\""), 2);
        assert_eq!(said("caracal.sessions.revoke", "agent_session_id"), 4);
        assert_eq!(said("caracal.sessions.revoke", "\"reason\":\"gone rogue\""), 2);
        assert_eq!(said("caracal.view.changes", "\"kind\":\"subject\""), 2);
        assert_eq!(store.zone(&zone).epoch().await.unwrap(), Some(2), "a cut-off raises it");
    }

    async fn an_application_loses_its_sessions_whatever_they_are_anchored_to(store: Store) {
        with_zone(&store).await;
        start(&store, "s1", None).await;
        let zone = zone();
        let mut tx = store.begin("cut off").await.unwrap();
        let off = tx.subjects(&zone).cut_off("a", "subject_revoked", now(), now()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(off, Some(CutOff { records: 0, sessions: 1, delegations: 0 }));
    }

    async fn subjects_are_summed_up_found_and_paged(store: Store) {
        with_zone(&store).await;
        let zone = zone();
        let records: Vec<_> = [
            ("r1", "user", "auth0|Ann", Some("https://idp.example")),
            ("r2", "user", "auth0|Ann", Some("https://idp.example")),
            ("r3", "application", "a", None),
            ("r4", "user", "100%_sure", Some("https://idp.example")),
        ]
        .into_iter()
        .enumerate()
        .map(|(at, (id, kind, subject, issuer))| AuthorityRecord {
            id: RecordId::trusted(id),
            record_type: kind.to_owned(),
            subject_id: subject.to_owned(),
            client_id: "a".to_owned(),
            parent_id: None,
            status: "active".to_owned(),
            expires_at: Timestamp::from_unix_seconds(1_800_000_900),
            created_at: Timestamp::from_unix_seconds(1_700_000_000 + at as i64),
            revoked_at: None,
            revoked_reason: None,
            issuer: issuer.map(str::to_owned),
        })
        .collect();
        let mut tx = store.begin("records").await.unwrap();
        tx.zone(&zone).add_authority_records(&records).await.unwrap();
        tx.zone(&zone).revoke_authority_record(&records[0].id, "asked", now()).await.unwrap();
        tx.commit().await.unwrap();
        let page = async |wanted: Wanted<'_>, before: i64, before_id: &str, limit: u32| {
            let slice = Slice { before, before_id, limit };
            let rows = store.zone(&zone).subjects().page(wanted, slice, now()).await.unwrap();
            rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
        };
        let all = Wanted::default();
        assert_eq!(page(all, i64::MAX, "", 10).await, ["100%_sure", "a", "auth0|Ann", "u"]);
        assert_eq!(page(all, i64::MAX, "", 1).await, ["100%_sure"]);
        let after = records[3].created_at.unix_micros();
        assert_eq!(page(all, after, "100%_sure", 2).await, ["a", "auth0|Ann"]);
        let users = Wanted { kind: Some("user"), search: None };
        assert_eq!(page(users, i64::MAX, "", 10).await, ["100%_sure", "auth0|Ann", "u"]);
        for (search, found) in [("ann", "auth0|Ann"), ("%_", "100%_sure"), ("A", "a")] {
            let wanted = Wanted { kind: None, search: Some(search) };
            assert!(page(wanted, i64::MAX, "", 10).await.contains(&found.to_owned()), "{search}");
        }
        let none = Wanted { kind: None, search: Some("x%") };
        assert!(page(none, i64::MAX, "", 10).await.is_empty());
        let ann = store.zone(&zone).subjects().get("auth0|Ann", now()).await.unwrap().unwrap();
        assert_eq!((ann.total, ann.active, ann.revoked, ann.federated), (2, 1, 1, true));
        assert_eq!(ann.issuer.as_deref(), Some("https://idp.example"));
        assert_eq!(ann.last_revoked_at, Some(now()));
        let app = store.zone(&zone).subjects().get("a", now()).await.unwrap().unwrap();
        assert_eq!((app.federated, app.application_name.as_deref()), (false, Some("a")));
        assert_eq!(store.zone(&zone).subjects().get("nobody", now()).await.unwrap(), None);
        let mut new = task("s1", None);
        new.subject_record_id = RecordId::trusted("r4");
        new.subject_type = SubjectType::User;
        assert_eq!(try_start(&store, &new).await.unwrap(), Start::Done);
        let governed = store.zone(&zone).subjects().governed("100%_sure").await.unwrap();
        assert_eq!((governed.total, governed.active, governed.recent.len()), (1, 1, 1));
        let idle = store.zone(&zone).subjects().governed("auth0|Ann").await.unwrap();
        assert_eq!((idle.total, idle.active, idle.recent.len()), (0, 0, 0));
    }

    async fn an_issuer_is_trusted_once_in_a_zone_until_it_is_archived(store: Store) {
        with_zone(&store).await;
        let zone = zone();
        let author = Author { name: "admin:1".to_owned(), via_operator: false, at: now() };
        let issuer = |id: &str| SubjectIssuer {
            id: id.to_owned(),
            issuer: "https://idp.example".to_owned(),
            jwks_url: "https://idp.example/keys".to_owned(),
            audience: "caracal".to_owned(),
            provenance: Provenance::created(&author),
            archived_at: None,
        };
        let insert = async |id: &str| {
            let mut tx = store.begin("trust").await.unwrap();
            let done = tx.subject_issuers(&zone).insert(&issuer(id)).await;
            done.and(tx.commit().await)
        };
        insert("i1").await.unwrap();
        assert!(insert("i2").await.unwrap_err().is_conflict_on(ISSUER_INDEX));
        let snapshot = store.zone(&zone).snapshot().await.unwrap().unwrap();
        let held: Vec<_> = snapshot.issuers.iter().map(|row| row.id.as_str()).collect();
        assert_eq!(held, ["i1"]);
        let mut tx = store.begin("change").await.unwrap();
        let mut row = tx.subject_issuers(&zone).lock("i1").await.unwrap().unwrap();
        assert_eq!(row, issuer("i1"));
        row.audience = "other".to_owned();
        row.provenance.change(&author);
        tx.subject_issuers(&zone).update(&row).await.unwrap();
        assert_eq!(tx.subject_issuers(&zone).active().await.unwrap(), 1);
        tx.commit().await.unwrap();
        assert_eq!(store.zone(&zone).subject_issuers().get("i1").await.unwrap(), Some(row));
        let elsewhere = ZoneId::trusted("z2");
        assert_eq!(store.zone(&elsewhere).subject_issuers().get("i1").await.unwrap(), None);
        let mut tx = store.begin("archive").await.unwrap();
        assert!(!tx.subject_issuers(&elsewhere).archive("i1", &author).await.unwrap());
        assert!(tx.subject_issuers(&zone).archive("i1", &author).await.unwrap());
        assert!(!tx.subject_issuers(&zone).archive("i1", &author).await.unwrap());
        tx.commit().await.unwrap();
        insert("i3").await.unwrap();
        let slice = Slice { before: i64::MAX, before_id: "", limit: 10 };
        let page = store.zone(&zone).subject_issuers().page(slice).await.unwrap();
        assert_eq!(page.len(), 1);
        assert!(store.zone(&zone).snapshot().await.unwrap().unwrap().issuers.len() == 1);
    }

    async fn labels_are_matched_whole(store: Store) {
        with_zone(&store).await;
        start(&store, "l1", None).await;
        let zone = zone();
        for (label, found) in [("x\"b", 1), ("b", 0), ("x", 0)] {
            let filter = super::SessionFilter { label: Some(label), ..Default::default() };
            let page = store.zone(&zone).sessions().page(None, &filter, None, 10).await.unwrap();
            assert_eq!(page.len(), found, "{label}");
        }
    }
}
