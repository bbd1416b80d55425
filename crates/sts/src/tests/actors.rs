//! Actors over the router: answer and evidence, row by row (RFC 8693).

use std::fmt::Write as _;

use caracal_model::{RecordId, Timestamp};
use serde_json::json;

use super::caller;
use super::scene::{Scene, claims, lifecycle, with_id, zone};
use crate::form::{ACCESS_TOKEN_TYPE, ID_TOKEN_TYPE};

caracal_store::on_each_engine! {
    async fn an_actor_is_refused_as_ever_until_the_zone_takes_one(store: Store) {
        let scene = Scene::start(store).await;
        let actor = scene.token(&lifecycle(&[])).await;
        let typed = ("actor_token_type", ACCESS_TOKEN_TYPE);
        let acted = lifecycle(&[("actor_token", &actor), typed]);
        let row = scene.row("off", &acted).await;
        assert_eq!(row, "off                    | 400 invalid_token: actor_token is not supported: leave it out |");
        let mut nobody = acted.clone();
        nobody[2].1 = "cs_wrong";
        assert!(scene.row("off, wrong secret", &nobody).await.contains("| 400 invalid_token"), "before anything is authenticated");
        // Its type alone was ignored, and still is.
        scene.minted(&lifecycle(&[typed])).await;

        scene.actors(true).await;
        let mandate = scene.minted(&acted).await;
        let of = claims(&actor);
        let act = json!({"sub": "app-z1", "client_id": "app-z1", "sid": of.sid});
        assert_eq!(json!(mandate.act), act);
        assert!(mandate.exp <= of.exp);
        let events = scene.evidence().await;
        let chain = &events.last().unwrap()["metadata_json"]["actor_chain"];
        assert_eq!(chain, &json!([{"application_id": "app-z1", "authority_record_id": of.sid}]));
        assert!(scene.minted(&lifecycle(&[])).await.act.is_none());

        let user = scene.token(&with_id(&scene.id_token(|_| ()), &[])).await;
        let by_user = scene.token(&lifecycle(&[("actor_token", &user), typed])).await;
        let nested = scene.minted(&lifecycle(&[("actor_token", &by_user), typed])).await;
        let users: Vec<_> = nested.actors().map(|actor| actor.sub.clone()).collect();
        let events = serde_json::Value::from(scene.evidence().await).to_string();
        assert!(events.contains("policy_input") && !events.contains("user_123"), "{events}");
        assert_eq!(users, ["app-z1", "user_123"]);

        let id = scene.id_token(|_| ());
        let mut table = String::new();
        for (case, fields) in [
            ("empty", lifecycle(&[("actor_token", ""), typed])),
            ("without type", lifecycle(&[("actor_token", &actor)])),
            ("other type", lifecycle(&[("actor_token", &actor), ("actor_token_type", ID_TOKEN_TYPE)])),
            ("garbage", lifecycle(&[("actor_token", "x"), typed])),
            ("foreign token", lifecycle(&[("actor_token", &id), typed])),
            ("with an id token", with_id(&id, &[("actor_token", &actor), typed])),
            ("with a subject token", lifecycle(&[("actor_token", &actor), typed,
                ("subject_token", &actor), ("subject_token_type", ACCESS_TOKEN_TYPE)])),
            ("another zone", {
                let mut fields = caller("z2", "app-z2", "cs_of_z2");
                fields.extend([("resource", "resource://desk"), ("actor_token", &*actor), typed]);
                fields
            }),
        ] {
            writeln!(table, "{}", scene.row(case, &fields).await).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        empty                  | 400 invalid_token: actor_token is not supported: leave it out |
        without type           | 400 invalid_token: actor_token_type must be access_token |
        other type             | 400 invalid_token: actor_token_type must be access_token |
        garbage                | 401 invalid_token: invalid actor_token | deny exchange_denied
        foreign token          | 401 invalid_token: invalid actor_token | deny exchange_denied
        with an id token       | 400 invalid_token: actor_token is not supported: leave it out | deny subject_federation_rejected
        with a subject token   | 400 invalid_token: actor_token goes with a mint by client secret only: leave it out | deny exchange_denied
        another zone           | 400 invalid_token: actor_token is not supported: leave it out |
        "); }
        scene.actors(false).await;
        assert!(scene.row("off again", &acted).await.contains("| 400 invalid_token"));
    }

    async fn a_subject_that_is_cut_off_acts_no_more_and_neither_does_what_it_acted_in(store: Store) {
        let scene = Scene::start(store).await;
        scene.actors(true).await;
        let user = scene.token(&with_id(&scene.id_token(|_| ()), &[])).await;
        let typed = ("actor_token_type", ACCESS_TOKEN_TYPE);
        let acted = scene.token(&lifecycle(&[("actor_token", &user), typed])).await;
        let (sts, zone) = (&scene.sts.sts, zone());
        assert!(sts.views.mandate_revoked(&claims(&acted)).await.unwrap().is_none());
        let at = sts.clock.now();
        let ids = caracal_model::id::uuid7_millis(&sts.ids.uuid()).unwrap();
        let cut = Timestamp::from_unix_micros(i64::try_from(ids).unwrap() * 1000).max(at);
        let mut tx = sts.store.begin("cut off").await.unwrap();
        let off = tx.subjects(&zone).cut_off("user_123", "left", cut, at).await.unwrap().unwrap();
        tx.commit().await.unwrap();
        sts.announce.announce().await;
        assert_eq!(off.records, 1);
        assert!(sts.views.mandate_revoked(&claims(&user)).await.unwrap().is_some());
        assert!(sts.views.mandate_revoked(&claims(&acted)).await.unwrap().is_some());
        for (case, token) in [("the user acts", &user), ("acted for by the user", &acted)] {
            let row = scene.row(case, &lifecycle(&[("actor_token", token), typed])).await;
            assert!(row.contains("| 401 invalid_token: invalid actor_token"), "{row}");
        }
        let subject = lifecycle(&[("subject_token", &acted), ("subject_token_type", ACCESS_TOKEN_TYPE)]);
        assert!(scene.row("presented", &subject).await.contains("| 403 access_denied: authority record is not active"));
        // The row of another record of the same subject need not exist for its mandates to die.
        let mut rowless = claims(&user);
        rowless.sid = RecordId::trusted("never-stored");
        rowless.root_sid = rowless.sid.clone();
        assert!(sts.views.mandate_revoked(&rowless).await.unwrap().is_some());
        while sts.clock.now().unix_millis() <= cut.unix_millis() {
            tokio::task::yield_now().await;
        }
        let back = scene.minted(&with_id(&scene.id_token(|_| ()), &[])).await;
        assert!(sts.views.mandate_revoked(&back).await.unwrap().is_none(), "with its credential it may");
    }
}
