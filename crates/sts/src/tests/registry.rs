//! Token ids that are issued twice (spec: sts §14).

use caracal_model::RequestId;

use super::scene::{Scene, lifecycle};

caracal_store::on_each_engine! {
    async fn a_token_id_that_was_issued_before_is_refused_on_record(store: Store) {
        let scene = Scene::start(store).await;
        let sts = &scene.sts.sts;
        let mandate = scene.minted(&lifecycle(&[])).await;
        scene.evidence().await;
        let request = RequestId::visible_ascii("r-again").unwrap();
        let refused = crate::registry::register(sts, &request, &mandate).await.unwrap_err();
        assert_eq!((refused.refusal.row().status, refused.refusal.row().error), (500, "internal_error"));
        let events = scene.evidence().await;
        let event = &events[0];
        assert_eq!((events.len(), &event["event_type"]), (1, &"jti_collision".into()));
        assert_eq!((&event["decision"], &event["evaluation_status"]), (&"deny".into(), &"anomaly".into()));
        assert_eq!(event["request_id"], "r-again");
        assert_eq!(event["metadata_json"]["jti"], mandate.jti.as_str());
        assert_eq!(event["metadata_json"]["app_id"], "app-z1");

        let mut other = mandate;
        other.jti = caracal_model::Jti::trusted("another");
        crate::registry::register(sts, &request, &other).await.unwrap();
    }
}
