//! What changes while a provider takes its time to answer.

use std::fmt::Write as _;

use super::*;

impl Stage {
    /// Changes a provider.
    async fn reconfigure(&self, name: &str, change: impl FnOnce(&mut Provider)) {
        let id = format!("p-{name}");
        let mut tx = self.store.begin("a test's provider").await.unwrap();
        let mut row = tx.providers(&self.zone).lock(&id).await.unwrap().unwrap();
        change(&mut row);
        tx.providers(&self.zone).update(&row).await.unwrap();
        self.commit(tx).await;
    }

    /// Takes the bindings of `w1` away.
    async fn unbind(&self) {
        let mut tx = self.store.begin("unbinding").await.unwrap();
        let mut workload = tx.workloads(&self.zone).lock("w1").await.unwrap().unwrap();
        workload.bindings.clear();
        tx.workloads(&self.zone).update(&workload).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn delete(&self) {
        let mut tx = self.store.begin("deleting").await.unwrap();
        tx.workloads(&self.zone).delete("w1").await.unwrap();
        tx.commit().await.unwrap();
    }
}

caracal_store::on_each_engine! {
    async fn what_is_taken_away_while_a_token_is_fetched_is_not_released(store: Store) {
        let far = Far::start().await;
        let stage = fetching(store, &far, &["CLOSED", "STRICT", "ROTATED", "UNBOUND", "DELETED"]).await;
        let mut table = String::new();
        let closing = stage.reconfigure("closed", |row| drop(row.config.remove("allow_runtime_injection")));
        writeln!(table, "{}", stage.told_when(&far, "CLOSED", 1, closing).await).unwrap();
        let restricting = stage.policy("restrict := [\"all\"]\n");
        writeln!(table, "{}", stage.told_when(&far, "STRICT", 1, restricting).await).unwrap();
        stage.policy(GATED).await;
        let was = stage.store.find_workload(&WorkloadId::trusted("w1")).await.unwrap().unwrap();
        let other = SecretVerifier::for_generated(&stage.at.sts.keyring.derive(crate::CLIENT_SECRETS), "ws_other");
        let rotating = stage.rotate(Some(other.to_string()));
        writeln!(table, "{}", stage.told_when(&far, "ROTATED", 1, rotating).await).unwrap();
        stage.rotate(was.secret_verifier).await;
        writeln!(table, "{}", stage.told_when(&far, "UNBOUND", 1, stage.unbind()).await).unwrap();
        let mut tx = stage.store.begin("binding").await.unwrap();
        let mut row = tx.workloads(&stage.zone).lock("w1").await.unwrap().unwrap();
        row.bindings = was.bindings;
        tx.workloads(&stage.zone).update(&row).await.unwrap();
        tx.commit().await.unwrap();
        writeln!(table, "{}", stage.told_when(&far, "DELETED", 1, stage.delete()).await).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        CLOSED                     | 403 access_denied: the provider does not permit it: set allow_runtime_injection in its config
            token_exchange deny credential_injection_denied
        STRICT                     | 403 access_denied: policy denied (restriction_active)
            token_exchange deny complete
        ROTATED                    | 401 access_denied: invalid workload credentials
            run_launch deny workload_auth_failed
        UNBOUND                    | 404 resource_not_found: the workload binds nothing to UNBOUND; see its bindings
            token_exchange deny credential_injection_denied
        DELETED                    | 401 access_denied: invalid workload credentials
            run_launch deny workload_auth_failed
        "); }
    }

    async fn what_stays_as_it_was_is_released_late(store: Store) {
        let far = Far::start().await;
        let stage = fetching(store, &far, &["SAME", "MOVED", "MAIL"]).await;
        let late = stage.told_when(&far, "SAME", 1, async {}).await;
        assert!(late.starts_with("SAME                       | 200 : \n    token_exchange allow complete"), "{late}");
        // The token is of what the provider was: another one is fetched.
        let moving = stage.reconfigure("moved", |row| drop(row.config.insert("audience".to_owned(), json!("elsewhere"))));
        let moved = stage.told_when(&far, "MOVED", 1, moving).await;
        assert!(moved.ends_with("token_exchange allow complete"), "{moved}");
        assert_eq!(far.endpoint.count(), 1, "asked again");
        assert_eq!(far.endpoint.asked.lock()[0]["audience"], "elsewhere");
        // What a human has approved is spent once, after the wait.
        let (_, _, body) = stage.at.send(credential("MAIL", &[])).await;
        stage.decide(body["approval_id"].as_str().unwrap(), true).await;
        let mail = stage.told_when(&far, "MAIL", 2, async {}).await;
        assert!(mail.contains("step_up_consumed consumed complete"), "{mail}");
        assert!(mail.contains("token_exchange allow complete"), "{mail}");
    }
}
