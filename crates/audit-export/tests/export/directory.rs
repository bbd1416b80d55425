//! Into a directory, on each engine.

use std::time::Duration;

use caracal_audit_export::{Chain, Manifest};
use caracal_model::Timestamp;
use caracal_store::on_each_engine;

use crate::stage::Stage;

on_each_engine! {
    async fn each_complete_hour_is_an_object_and_an_empty_one_is_none(store: Store) {
        let mut stage = Stage::new(store);
        stage.events("b", 2).await;
        stage.events("a", 1).await;
        stage.hours_pass(1);
        stage.events("a", 1).await;
        stage.hours_pass(2);
        stage.events("b", 1).await;
        stage.hours_pass(1);
        // Without a first hour only the last complete one is exported to begin with.
        let mut exporter = stage.exporter();
        exporter.catch_up().await.unwrap();
        assert_eq!(stage.exported(), [["b:3"]]);
        let (key, _, manifest) = stage.objects().remove(0);
        let hour = Timestamp::parse_utc(&manifest.hour).unwrap().iso_seconds();
        assert!(key.ends_with(&format!("{}.parquet", &hour[..13])), "{key} {hour}");
        assert_eq!(manifest.zones[0].first_seq, 3);
        assert_eq!(manifest.zones[0].chain, Chain::Holds);

        stage.events("a", 1).await;
        stage.hours_pass(2);
        assert_eq!(exporter.catch_up().await.unwrap(), 1);
        assert_eq!(stage.exported(), [["b:3"], ["a:3"]]);
        assert_eq!(exporter.catch_up().await.unwrap(), 0);
    }

    async fn what_commits_late_is_in_the_next_object(store: Store) {
        let mut stage = Stage::new(store);
        stage.events("z", 2).await;
        stage.hours_pass(1);
        let mut exporter = stage.exporter();
        exporter.catch_up().await.unwrap();
        // Another replica, whose clock says that the hour is not over, commits only now.
        stage.clock.step_back(Duration::from_secs(120));
        stage.events("z", 1).await;
        stage.clock.advance(Duration::from_secs(120));
        stage.events("z", 1).await;
        stage.hours_pass(1);
        exporter.catch_up().await.unwrap();
        assert_eq!(stage.exported(), [vec!["z:1", "z:2"], vec!["z:3", "z:4"]]);
        let manifests: Vec<_> = stage.objects().into_iter().map(|(_, _, m)| m).collect();
        assert_eq!(manifests[0].zones[0].chain_hash, manifests[1].zones[0].previous_chain_hash);
        assert!(manifests.iter().all(|manifest| manifest.zones[0].chain == Chain::Holds));
    }

    async fn a_large_hour_is_several_objects(store: Store) {
        let mut stage = Stage::new(store);
        stage.events("a", 3).await;
        stage.events("b", 4).await;
        stage.hours_pass(1);
        let mut exporter = stage.exporter().at_most(5);
        assert_eq!(exporter.catch_up().await.unwrap(), 2);
        let objects = stage.objects();
        assert_eq!(objects[0].1, ["a:1", "a:2", "a:3", "b:1", "b:2"]);
        assert_eq!(objects[1].1, ["b:3", "b:4"]);
        assert_eq!(objects.iter().map(|o| o.2.ends_hour).collect::<Vec<_>>(), [false, true]);
        assert!(objects[1].0.ends_with("-0002.parquet"), "{}", objects[1].0);
    }

    async fn after_a_crash_the_planned_object_is_written_and_nothing_is_replaced(store: Store) {
        let mut stage = Stage::new(store);
        stage.events("z", 3).await;
        stage.hours_pass(1);
        // The object cannot be written, so that only its plan is there.
        let blocked = stage.dir.path().join("audit");
        std::fs::write(&blocked, "in the way").unwrap();
        stage.exporter().catch_up().await.unwrap_err();
        std::fs::remove_file(&blocked).unwrap();
        // Meanwhile more is ingested with the time of that hour: it is not in the plan.
        stage.clock.step_back(Duration::from_secs(120));
        stage.events("z", 1).await;
        stage.clock.advance(Duration::from_secs(120));
        assert_eq!(stage.exporter().catch_up().await.unwrap(), 1);
        let (_, rows, manifest) = stage.objects().remove(0);
        assert_eq!(rows, ["z:1", "z:2", "z:3"]);

        // An object of the next name with other contents stays, and is told.
        stage.hours_pass(1);
        let next = next_key(&manifest);
        let path = stage.dir.path().join(&next);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "somebody else's").unwrap();
        let refused = stage.exporter().catch_up().await.unwrap_err();
        assert!(refused.to_string().contains(&next), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody else's");
        // Out of the way, it goes on where it was.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(stage.exporter().catch_up().await.unwrap(), 1);
        assert_eq!(stage.exported(), [vec!["z:1", "z:2", "z:3"], vec!["z:4"]]);
    }

    async fn when_who_exports_dies_another_goes_on_within_the_lease_and_writes_nothing_twice(store: Store) {
        let mut stage = Stage::new(store);
        let (mut first, mut second) = (stage.exporter_of("first"), stage.exporter_of("second"));
        stage.events("z", 2).await;
        stage.hours_pass(1);
        assert_eq!(first.catch_up().await.unwrap(), 1);
        assert_eq!(second.catch_up().await.unwrap(), 0, "one leads");
        stage.events("z", 3).await;
        stage.hours_pass(1);
        // It dies between the plan of an object and the object.
        let written = stage.dir.path().join("audit");
        let aside = stage.dir.path().join("aside");
        std::fs::rename(&written, &aside).unwrap();
        std::fs::write(&written, "in the way").unwrap();
        first.catch_up().await.unwrap_err();
        drop(first);
        std::fs::remove_file(&written).unwrap();
        std::fs::rename(&aside, &written).unwrap();
        assert_eq!(second.catch_up().await.unwrap(), 0, "its lease still stands");
        stage.clock.advance(Duration::from_secs(121));
        assert_eq!(second.catch_up().await.unwrap(), 1);
        assert_eq!(stage.exported(), [vec!["z:1", "z:2"], vec!["z:3", "z:4", "z:5"]]);
    }

    async fn a_chain_that_does_not_hold_is_exported_and_told(store: Store) {
        let mut stage = Stage::new(store);
        stage.events("z", 3).await;
        let mut tx = stage.store.begin("tampering").await.unwrap();
        const CHANGE: caracal_store::Sql = caracal_store::testing::raw(
            "UPDATE audit_events SET event = $1 WHERE chain_seq = 2");
        tx.execute(&CHANGE, &[b"no JSON".to_vec().into()]).await.unwrap();
        tx.commit().await.unwrap();
        stage.hours_pass(1);
        stage.exporter().catch_up().await.unwrap();
        let (_, rows, manifest) = stage.objects().remove(0);
        assert_eq!(rows, ["z:1", "z:2", "z:3"]);
        let why = "the event was changed".to_owned();
        assert_eq!(manifest.zones[0].chain, Chain::Broken { seq: 2, why });
    }
}

/// The key of the hour after that of a manifest.
fn next_key(manifest: &Manifest) -> String {
    let hour = Timestamp::parse_utc(&manifest.hour).unwrap();
    let iso = hour.plus(Duration::from_secs(3_600)).iso_seconds();
    let (date, time) = iso.split_once('T').unwrap();
    format!(
        "audit/{}/{date}T{}.parquet",
        date.replace('-', "/"),
        &time[..2]
    )
}
