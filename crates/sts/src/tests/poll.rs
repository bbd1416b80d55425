//! Policy that changes without an announcement (`OPA_POLL_SECONDS`).

use std::time::Duration;

use caracal_net::settings::Strings;

use super::gated::bind_silently;
use super::limits::{bus, furnished};
use super::*;
use crate::poll;

/// The settings of a test, and one more.
struct With(&'static str, &'static str);

impl Strings for With {
    fn get(&self, name: &str) -> Option<String> {
        if name == self.0 {
            return Some(self.1.to_owned());
        }
        settings(name)
    }
}

#[test]
fn the_interval_is_a_minute_unless_set_and_five_at_most() {
    let read = |name, value| {
        let mut mistakes = Mistakes::default();
        let config = Config::load(&With(name, value), &mut mistakes);
        let seconds = config.map(|config| config.policy_poll_seconds);
        (seconds, mistakes.is_empty())
    };
    assert_eq!(read("LOG_LEVEL", "info"), (Some(60), true));
    assert_eq!(read("OPA_POLL_SECONDS", "300"), (Some(300), true));
    for wrong in ["0", "301", "often"] {
        assert!(!read("OPA_POLL_SECONDS", wrong).1, "{wrong}");
    }
}

caracal_store::on_each_engine! {
    async fn a_policy_that_nobody_announced_is_found_by_the_poll(store: Store) {
        let at = furnished(&store, &bus(), |_| ()).await;
        let sts = &at.sts;
        let zone = ZoneId::trusted("z1");
        let version = async || sts.views.zone(&zone).await.unwrap().policy.version_id.clone();
        let corrections = async || {
            let text = sts.registry.render().await;
            let name = "caracal_sts_opa_poll_corrections_total ";
            text.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok())
        };
        assert_eq!(version().await.as_deref(), Some("v1"));
        poll::once(sts).await;
        assert_eq!(corrections().await, Some(0));

        // As an operator who restores a database does: no announcement, so the feed is silent.
        bind_silently(&store, "v2").await;
        assert_eq!(version().await.as_deref(), Some("v1"));
        poll::once(sts).await;
        assert_eq!(version().await.as_deref(), Some("v2"));
        assert_eq!(corrections().await, Some(1));
        // What is in force now is no longer another.
        poll::once(sts).await;
        assert_eq!(corrections().await, Some(1));
        assert_eq!(poll::interval(sts), Duration::from_secs(60));

        // A store that does not answer leaves everything as it is.
        store.shutdown().await;
        poll::once(sts).await;
        assert_eq!(corrections().await, Some(1));
    }
}
