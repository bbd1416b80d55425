//! What admission needs to know of a zone: whether it is reserved and whose it is. Kept for 30 s,
//! as the published service does; a change through this process is seen at once.

use std::collections::HashMap;
use std::time::Duration;

use caracal_model::{Ticks, ZoneId};
use parking_lot::Mutex;

use crate::failure::Failure;
use crate::names;
use crate::service::Api;

const KEPT: Duration = Duration::from_secs(30);
const MOST: usize = 1024;

/// What admission needs to know of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneFacts {
    /// Whether the platform keeps it for itself.
    pub reserved: bool,
    /// The console account that owns it.
    pub owner: Option<String>,
}

/// The zones that were asked about lately.
#[derive(Debug, Default)]
pub struct ZoneCache(Mutex<HashMap<String, (ZoneFacts, Ticks)>>);

impl ZoneCache {
    /// The facts of a zone; `None` when there is none of that id.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn facts(&self, api: &Api, zone: &str) -> Result<Option<ZoneFacts>, Failure> {
        let now = api.clock.ticks();
        if let Some((facts, since)) = self.0.lock().get(zone)
            && now.since(*since) < KEPT
        {
            return Ok(Some(facts.clone()));
        }
        let Ok(id) = ZoneId::parse(zone) else {
            return Ok(None);
        };
        let Some(found) = api.store.zones().get(&id).await? else {
            return Ok(None);
        };
        let facts = ZoneFacts {
            reserved: names::zone_is_reserved(&found.name, &found.slug),
            owner: found.owner_account_id,
        };
        let mut kept = self.0.lock();
        if kept.len() >= MOST {
            kept.clear();
        }
        kept.insert(zone.to_owned(), (facts.clone(), now));
        Ok(Some(facts))
    }

    /// Forgets a zone that was changed.
    pub fn forget(&self, zone: &ZoneId) {
        self.0.lock().remove(zone.as_str());
    }
}
