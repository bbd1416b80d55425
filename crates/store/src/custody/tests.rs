//! Every way in which a change of a secret can end, on both engines.

use caracal_model::Change;

use super::*;
use crate::testing::raw;
use crate::{Sql, on_each_engine};

const AT: &str = "zones/z1/applications/a1/clientSecret";
const OLD: &[u8] = b"CSS1keyid-01the old envelope";
const NEW: &[u8] = b"CSS1keyid-01the new envelope";

const ZONE: Sql = raw(
    "INSERT INTO zones (id, name, slug, dcr_enabled, operator_coauthor_badge, operator_governed, \
     created_via_operator, updated_via_operator, created_at, updated_at) \
     VALUES ('z1', 'z1', 'z1', FALSE, TRUE, FALSE, FALSE, FALSE, 0, 0)",
);
const ROWS: Sql = raw("SELECT envelope, held_by FROM secret_store");
/// As if the one who holds it had died long ago.
const LAPSE: Sql = raw("UPDATE secret_store SET held_until = 0 WHERE held_until IS NOT NULL");

struct Scene {
    store: Store,
    vault: Arc<MemoryBackend>,
    custody: Custody,
    zone: ZoneId,
}

impl Scene {
    async fn start(store: Store) -> Self {
        let scene = Self {
            vault: Arc::default(),
            custody: Custody::new(store.clone(), None),
            zone: ZoneId::trusted("z1"),
            store,
        };
        scene.run(&ZONE).await;
        Self {
            custody: Custody::new(scene.store.clone(), Some(scene.vault.clone())),
            ..scene
        }
    }

    async fn run(&self, sql: &Sql) {
        let mut tx = self.store.begin("a test").await.unwrap();
        tx.execute(sql, &[]).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// What a handler does with its rows; here there is only the secret.
    async fn commit(&self, envelope: Option<&[u8]>) {
        let now = self.store.clock().now();
        let mut tx = self.store.begin("a test's change").await.unwrap();
        match envelope {
            Some(envelope) => tx.secrets(&self.zone).put(AT, envelope, now).await.unwrap(),
            None => tx.secrets(&self.zone).delete(AT).await.unwrap(),
        }
        tx.change(&Change::Zone(self.zone.clone()));
        tx.commit().await.unwrap();
    }

    async fn change(&self, envelope: &[u8]) {
        let staged = self.custody.stage(&self.zone, AT, envelope).await.unwrap();
        self.commit(Some(envelope)).await;
        self.custody.settle(staged).await;
    }

    async fn read(&self) -> Result<Option<Vec<u8>>, String> {
        let read = self.custody.read(&self.zone, AT).await;
        read.map_err(|error| error.to_string())
    }

    async fn kept(&self) -> Option<Kept> {
        self.store
            .zone(&self.zone)
            .secrets()
            .kept(AT)
            .await
            .unwrap()
    }

    async fn rows(&self) -> usize {
        self.store.query(&ROWS, &[]).await.unwrap().len()
    }

    fn outside(envelope: &[u8]) -> Outside {
        Outside {
            sha256: sha256_hex(envelope),
            backend: "vault".to_owned(),
        }
    }

    /// Settled: our database holds nothing but the name of the envelope, and nobody holds the row.
    async fn is_outside(&self, envelope: &[u8]) {
        assert_eq!(
            self.kept().await,
            Some(Kept::Outside(Self::outside(envelope)))
        );
        assert_eq!(self.vault.held(AT).as_deref(), Some(envelope));
        let rows = self.store.query(&ROWS, &[]).await.unwrap();
        assert_eq!(rows[0].bytes("envelope").unwrap(), &envelope[..12]);
        assert_eq!(rows[0].opt_text("held_by").unwrap(), None);
        assert_eq!(self.read().await, Ok(Some(envelope.to_vec())));
    }
}

on_each_engine! {
    async fn a_change_is_in_force_and_then_outside(store: Store) {
        let scene = Scene::start(store).await;
        scene.change(OLD).await;
        scene.is_outside(OLD).await;
        assert_eq!(scene.vault.asked(), [format!("put {AT}"), format!("get {AT}")]);
        scene.change(NEW).await;
        scene.is_outside(NEW).await;
        assert_eq!(scene.custody.waiting().await.unwrap(), 0);
        assert_eq!(scene.custody.sweep().await.unwrap(), Moved::default());

        scene.commit(None).await;
        assert_eq!(scene.read().await, Ok(None));
        assert_eq!(scene.custody.waiting().await.unwrap(), 1);
        assert_eq!(scene.custody.sweep().await.unwrap(), Moved { forgotten: 1, ..Moved::default() });
        assert_eq!((scene.vault.count(), scene.rows().await), (0, 0));
        assert_eq!(scene.custody.stats(), BackendStats { operations: 6, errors: 0 });
    }

    async fn a_backend_that_takes_nothing_leaves_everything_as_it_was(store: Store) {
        let scene = Scene::start(store).await;
        scene.vault.is_out(true);
        let refused = scene.custody.stage(&scene.zone, AT, OLD).await.unwrap_err();
        assert_eq!(refused.to_string(), "secret backend vault: out");
        // Perhaps it did take it: that is found out.
        scene.vault.tamper(AT, Some(OLD.to_vec()));
        assert!(scene.custody.sweep().await.is_err());
        scene.vault.is_out(false);
        assert_eq!(scene.custody.sweep().await.unwrap(), Moved { forgotten: 1, ..Moved::default() });
        assert_eq!((scene.vault.count(), scene.rows().await), (0, 0));

        scene.change(OLD).await;
        scene.vault.is_read_only(true);
        assert!(scene.custody.stage(&scene.zone, AT, NEW).await.is_err());
        assert_eq!(scene.read().await, Ok(Some(OLD.to_vec())));
        scene.vault.is_read_only(false);
        assert_eq!(scene.custody.sweep().await.unwrap(), Moved { out: 1, ..Moved::default() });
        scene.is_outside(OLD).await;
    }

    async fn who_dies_between_the_steps_leaves_the_old_secret_or_the_new_one(store: Store) {
        let scene = Scene::start(store).await;
        scene.change(OLD).await;
        // Before the commit: the backend has the new one, the old one counts.
        drop(scene.custody.stage(&scene.zone, AT, NEW).await.unwrap());
        assert_eq!(scene.vault.held(AT).as_deref(), Some(NEW));
        assert_eq!(scene.read().await, Ok(Some(OLD.to_vec())));
        let known = Scene::outside(OLD);
        let confirmed = scene.custody.confirm(&scene.zone, AT, &known).await.unwrap();
        assert_eq!(confirmed, Confirmed::Same(OLD.to_vec()));
        assert_eq!(scene.custody.sweep().await.unwrap(), Moved::default(), "it is held");
        scene.run(&LAPSE).await;
        assert_eq!(scene.custody.sweep().await.unwrap(), Moved { out: 1, ..Moved::default() });
        scene.is_outside(OLD).await;

        // After the commit: the new one counts.
        drop(scene.custody.stage(&scene.zone, AT, NEW).await.unwrap());
        scene.commit(Some(NEW)).await;
        assert_eq!(scene.read().await, Ok(Some(NEW.to_vec())));
        let confirmed = scene.custody.confirm(&scene.zone, AT, &known).await.unwrap();
        assert_eq!(confirmed, Confirmed::Changed);
        scene.run(&LAPSE).await;
        assert_eq!(scene.custody.sweep().await.unwrap(), Moved { out: 1, ..Moved::default() });
        scene.is_outside(NEW).await;

        // Of a secret that was never committed nothing stays.
        scene.commit(None).await;
        scene.custody.sweep().await.unwrap();
        let staged = scene.custody.stage(&scene.zone, AT, NEW).await.unwrap();
        assert_eq!(scene.read().await, Ok(None));
        scene.custody.give_up(staged).await;
        assert_eq!(scene.custody.sweep().await.unwrap(), Moved { forgotten: 1, ..Moved::default() });
        assert_eq!((scene.vault.count(), scene.rows().await), (0, 0));
    }

    async fn another_change_waits_and_none_is_lost(store: Store) {
        let scene = Scene::start(store).await;
        let contents: Vec<Vec<u8>> = (0..8).map(|n| format!("CSS1keyid-01{n}").into_bytes()).collect();
        let changes = contents.iter().map(|envelope| scene.change(envelope));
        futures_util::future::join_all(changes).await;
        scene.custody.sweep().await.unwrap();
        let held = scene.vault.held(AT).unwrap();
        assert!(contents.contains(&held));
        scene.is_outside(&held).await;
    }

    async fn what_is_not_ours_is_not_taken_for_it(store: Store) {
        let scene = Scene::start(store).await;
        scene.change(OLD).await;
        scene.change(NEW).await;
        for (wrong, what) in [(Some(OLD.to_vec()), "another envelope than ours"), (None, "nothing")] {
            scene.vault.tamper(AT, wrong);
            let told = format!("secret backend vault holds {what} under {AT}");
            assert_eq!(scene.read().await, Err(told.clone()));
            let confirmed = scene.custody.confirm(&scene.zone, AT, &Scene::outside(NEW)).await;
            assert_eq!(confirmed.unwrap_err().to_string(), told);
        }
        // A new one mends it.
        scene.change(OLD).await;
        scene.is_outside(OLD).await;
        scene.vault.is_out(true);
        assert_eq!(scene.read().await, Err("secret backend vault: out".to_owned()));
    }

    async fn what_the_database_held_moves_out_and_is_not_read_without_its_backend(store: Store) {
        let scene = Scene::start(store).await;
        let builtin = Custody::new(scene.store.clone(), None);
        let staged = builtin.stage(&scene.zone, AT, OLD).await.unwrap();
        scene.commit(Some(OLD)).await;
        builtin.settle(staged).await;
        assert_eq!(builtin.read(&scene.zone, AT).await.unwrap().as_deref(), Some(OLD));
        assert_eq!(scene.vault.asked(), [""; 0]);

        assert_eq!(scene.custody.sweep().await.unwrap(), Moved { out: 1, ..Moved::default() });
        scene.is_outside(OLD).await;
        assert_eq!(scene.custody.elsewhere().await.unwrap(), []);
        assert_eq!(builtin.elsewhere().await.unwrap(), [("vault".to_owned(), 1)]);
        let refused = builtin.read(&scene.zone, AT).await.unwrap_err();
        assert!(matches!(refused, CustodyError::Elsewhere { .. }), "{refused}");
    }

    async fn a_backend_that_is_left_gives_everything_back(store: Store) {
        let scene = Scene::start(store).await;
        scene.change(OLD).await;
        let known = Scene::outside(OLD);
        let leaving = Custody::leaving(scene.store.clone(), Some(scene.vault.clone()));
        assert_eq!(leaving.read(&scene.zone, AT).await.unwrap().as_deref(), Some(OLD));
        assert_eq!(leaving.waiting().await.unwrap(), 1);
        scene.vault.is_read_only(true);
        assert!(leaving.sweep().await.is_err(), "it is here, and there still");
        assert_eq!(scene.kept().await, Some(Kept::Here(OLD.to_vec())));
        scene.vault.is_read_only(false);
        assert_eq!(leaving.sweep().await.unwrap(), Moved { back: 1, ..Moved::default() });
        assert_eq!((scene.vault.count(), leaving.waiting().await.unwrap()), (0, 0));
        // Whoever took it for outside need not ask the backend, which may be gone by now.
        scene.vault.is_out(true);
        let confirmed = scene.custody.confirm(&scene.zone, AT, &known).await.unwrap();
        assert_eq!(confirmed, Confirmed::Same(OLD.to_vec()));
        let builtin = Custody::new(scene.store.clone(), None);
        assert_eq!(builtin.elsewhere().await.unwrap(), []);
        assert_eq!(builtin.read(&scene.zone, AT).await.unwrap().as_deref(), Some(OLD));
        scene.commit(None).await;
        assert_eq!(scene.rows().await, 0);

        // What changes meanwhile changes here, and is forgotten there.
        scene.vault.is_out(false);
        scene.change(OLD).await;
        let staged = leaving.stage(&scene.zone, AT, NEW).await.unwrap();
        scene.commit(Some(NEW)).await;
        leaving.settle(staged).await;
        assert_eq!(leaving.sweep().await.unwrap(), Moved { back: 1, ..Moved::default() });
        assert_eq!((scene.kept().await, scene.vault.count()), (Some(Kept::Here(NEW.to_vec())), 0));
        scene.custody.sweep().await.unwrap();
        scene.is_outside(NEW).await;
        // One that was forgotten before goes too; one that the backend has lost is told of.
        scene.commit(None).await;
        assert_eq!(leaving.sweep().await.unwrap(), Moved { forgotten: 1, ..Moved::default() });
        scene.change(OLD).await;
        scene.vault.tamper(AT, None);
        assert!(matches!(leaving.sweep().await, Err(CustodyError::Astray { .. })));
        assert_eq!(leaving.waiting().await.unwrap(), 1);
    }

    async fn one_that_cannot_be_moved_does_not_hold_up_the_others(store: Store) {
        let scene = Scene::start(store).await;
        scene.commit(Some(OLD)).await;
        let now = scene.store.clock().now();
        let mut tx = scene.store.begin("a test").await.unwrap();
        tx.secrets(&scene.zone).put("zones/z1/applications/a0/clientSecret", NEW, now).await.unwrap();
        tx.commit().await.unwrap();
        scene.vault.refuses("zones/z1/applications/a0/clientSecret");
        assert!(scene.custody.sweep().await.is_err());
        assert_eq!(scene.kept().await, Some(Kept::Outside(Scene::outside(OLD))));
        assert_eq!(scene.custody.waiting().await.unwrap(), 1);
    }
}
