//! Who asks (spec: sts §2.4).

use caracal_model::{Change, Timestamp};
use caracal_store::zones::{Author, Provenance};

use super::*;
use crate::tests::scene::{Scene, application, zone};

/// 401, the same for everybody who proves nothing.
const INVALID: Told = told(401, "access_denied", "invalid client credentials");

caracal_store::on_each_engine! {
    async fn client_authentication_2_4_row_by_row(store: Store) {
        let scene = Scene::start(store).await;
        furnish(&scene).await;
        let ask = |zone: &str, app: &str, secret: &str| {
            let mut form = form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", GRANT_TYPE).append_pair("scope", "agent:lifecycle");
            form.append_pair("resource", "resource://desk").append_pair("application_id", app);
            if !zone.is_empty() {
                form.append_pair("zone_id", zone);
            }
            if !secret.is_empty() {
                form.append_pair("client_secret", secret);
            }
            post(PATH, FORM, form.finish())
        };
        let failed: &[&str] = &["deny client_auth_failed"];
        for (row, request, expected) in [
            ("row 1: no application", ask("z1", "", "cs_of_z1"), INVALID),
            ("row 2: no zone, and not for Control", ask("", "key", "cs_of_key"), INVALID),
            ("row 3: of nobody", ask("z1", "app-z9", "cs_of_z1"), INVALID),
            ("row 3: in a zone of nobody", ask("z9", "app-z9", "cs_of_z1"), INVALID),
            ("row 3: archived", ask("z1", "app-archived", "cs_of_key"), INVALID),
            ("row 3: expired", ask("z1", "app-expired", "cs_of_key"), INVALID),
            (
                "row 3: of another zone, proven",
                ask("z1", "app-z2", "cs_of_z2"),
                told(403, "zone_invalid", "belongs to zone z2, not to zone z1").on_record(failed),
            ),
            ("row 3: of another zone, not proven", ask("z1", "app-far", "cs_guessed"), INVALID.on_record(failed)),
            ("row 5: another secret", ask("z1", "app-near", "cs_guessed"), INVALID.on_record(failed)),
            ("row 5: no secret", ask("z1", "app-silent", ""), INVALID.on_record(failed)),
            ("row 5: no stored hash", ask("z1", "app-hashless", "cs_of_key"), INVALID.on_record(failed)),
        ] {
            check(&scene, row, request, expected).await;
        }
        // Row 4, the Gateway's, whose application must still be there, is in `tests`:
        // `a_call_of_an_application_that_is_gone_is_refused_on_record`.
    }
}

/// Applications of every standing.
async fn furnish(scene: &Scene) {
    let sts = &scene.sts.sts;
    let author = Author {
        name: "admin:1".to_owned(),
        via_operator: false,
        at: sts.clock.now(),
    };
    let made = Provenance::created(&author);
    let mut tx = sts.store.begin("applications").await.unwrap();
    let far = ZoneId::trusted("z2");
    for (id, zone) in [
        ("app-archived", zone()),
        ("app-expired", zone()),
        ("app-near", zone()),
        ("app-silent", zone()),
        ("app-hashless", zone()),
        ("app-far", far.clone()),
    ] {
        let mut row = application(&scene.sts, id, &[], &made);
        match id {
            "app-expired" => row.expires_at = Some(Timestamp::from_unix_seconds(1)),
            "app-hashless" => row.secret_verifier = None,
            _ => {}
        }
        tx.applications(&zone).insert(&row).await.unwrap();
        if id == "app-archived" {
            tx.applications(&zone).archive(id, &author).await.unwrap();
        }
    }
    tx.change(&Change::Zone(zone()));
    tx.change(&Change::Zone(far));
    tx.commit().await.unwrap();
    sts.announce.announce().await;
}
