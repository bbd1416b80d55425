//! Workloads of a zone: launcher identities, and which credential each environment variable of a
//! launched command is bound to.

use caracal_model::{WorkloadId, ZoneId};
use serde::{Deserialize, Serialize};

use crate::applications::json;
use crate::error::StoreError;
use crate::row::Row;
use crate::zones::{Provenance, Slice};
use crate::{Store, Tx, ZoneScope, params, statements};

macro_rules! columns {
    () => {
        "id, zone_id, name, secret_verifier, bindings, created_by, created_via_operator, \
         updated_by, updated_via_operator, created_at, updated_at"
    };
}

statements! { pub(crate) mod sql {
    FIND = concat!("SELECT ", columns!(), " FROM workloads WHERE id = $1");
    GET = concat!("SELECT ", columns!(), " FROM workloads WHERE zone_id = $1 AND id = $2");
    LOCK = pg: concat!("SELECT ", columns!(), " FROM workloads \
            WHERE zone_id = $1 AND id = $2 FOR NO KEY UPDATE"),
        lite: concat!("SELECT ", columns!(), " FROM workloads WHERE zone_id = $1 AND id = $2");
    PAGE = concat!("SELECT ", columns!(), " FROM workloads \
        WHERE zone_id = $1 AND (created_at, id) < ($2, $3) \
        ORDER BY created_at DESC, id DESC LIMIT $4");
    INSERT = "INSERT INTO workloads (id, zone_id, name, name_key, secret_verifier, bindings, \
        created_by, created_via_operator, updated_by, updated_via_operator, created_at, updated_at) \
        VALUES ($2, $1, $3, $4, $5, $6, $7, $8, NULL, FALSE, $9, $9)";
    UPDATE = "UPDATE workloads SET name = $3, name_key = $4, secret_verifier = $5, bindings = $6, \
        updated_by = $7, updated_via_operator = $8, updated_at = $9 \
        WHERE zone_id = $1 AND id = $2";
    ANY_SLOW = "SELECT COUNT(*) AS slow FROM (
        SELECT 1 AS one FROM workloads WHERE secret_verifier LIKE 'argon2id$%' LIMIT 1) found";
    DELETE = "DELETE FROM workloads WHERE zone_id = $1 AND id = $2";
} }

/// Whether the index that keeps names apart refused.
pub const NAME_INDEX: &str = "workloads_name";

/// An environment variable of the launched command, and the resource whose credential it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The variable.
    pub env: String,
    /// Identifier of the resource.
    pub resource: String,
    /// What policy is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// Whether the command may start without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
    /// `warn` or `error`; only of an optional one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<String>,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its id.
    pub id: WorkloadId,
    /// Its zone.
    pub zone: ZoneId,
    /// Shown to people; unique in its zone, ignoring case.
    pub name: String,
    /// What its secret is checked against.
    pub secret_verifier: Option<String>,
    /// Its bindings, in the order in which they were given.
    pub bindings: Vec<Binding>,
    /// Who and when.
    pub provenance: Provenance,
}

impl Workload {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: WorkloadId::trusted(row.text("id")?),
            zone: ZoneId::trusted(row.text("zone_id")?),
            name: row.string("name")?,
            secret_verifier: row.opt_string("secret_verifier")?,
            bindings: row.json("bindings")?,
            provenance: Provenance::read(row)?,
        })
    }
}

impl Store {
    /// A workload by its id alone: that is all a launcher says of itself before it is known.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn find_workload(&self, id: &WorkloadId) -> Result<Option<Workload>, StoreError> {
        let row = self.query_opt(&sql::FIND, &params![id]).await?;
        row.as_ref().map(Workload::read).transpose()
    }

    /// Whether any workload has a secret that takes a slow comparison: one that was imported.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn has_slow_workload_secret(&self) -> Result<bool, StoreError> {
        let row = self.query_opt(&sql::ANY_SLOW, &[]).await?;
        let slow = row.map(|row| row.int("slow")).transpose()?;
        Ok(slow.is_some_and(|slow| slow > 0))
    }
}

/// The workloads of one zone.
#[derive(Debug)]
pub struct Workloads<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The workloads of this zone.
    pub fn workloads(self) -> Workloads<'s> {
        Workloads(self)
    }
}

impl Workloads<'_> {
    /// One workload.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &str) -> Result<Option<Workload>, StoreError> {
        let params = params![self.0.id(), id];
        let row = self.0.query_opt(&sql::GET, &params).await?;
        row.as_ref().map(Workload::read).transpose()
    }

    /// A page, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(&self, slice: Slice<'_>) -> Result<Vec<Workload>, StoreError> {
        let params = params![self.0.id(), slice.before, slice.before_id, slice.limit];
        let rows = self.0.query(&sql::PAGE, &params).await?;
        rows.iter().map(Workload::read).collect()
    }
}

/// Changes of the workloads of one zone.
#[derive(Debug)]
pub struct WorkloadWrites<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The workloads of this zone.
    pub fn workloads<'t>(&'t mut self, zone: &'t ZoneId) -> WorkloadWrites<'t> {
        WorkloadWrites { tx: self, zone }
    }
}

impl WorkloadWrites<'_> {
    /// One workload, held until the end of the transaction.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lock(&mut self, id: &str) -> Result<Option<Workload>, StoreError> {
        let params = params![self.zone, id];
        let row = self.tx.query_opt(&sql::LOCK, &params).await?;
        row.as_ref().map(Workload::read).transpose()
    }

    /// Adds a workload.
    ///
    /// # Errors
    /// `Conflict` on [`NAME_INDEX`] when the name is taken.
    pub async fn insert(&mut self, workload: &Workload) -> Result<(), StoreError> {
        let made = &workload.provenance;
        let params = params![
            self.zone,
            &workload.id,
            &workload.name,
            workload.name.to_lowercase(),
            &workload.secret_verifier,
            json(&workload.bindings),
            &made.created_by,
            made.created_via_operator,
            made.created_at,
        ];
        self.tx.execute(&sql::INSERT, &params).await.map(drop)
    }

    /// Writes what may change of a workload.
    ///
    /// # Errors
    /// `Conflict` on [`NAME_INDEX`] when the name is taken.
    pub async fn update(&mut self, workload: &Workload) -> Result<(), StoreError> {
        let made = &workload.provenance;
        let params = params![
            self.zone,
            &workload.id,
            &workload.name,
            workload.name.to_lowercase(),
            &workload.secret_verifier,
            json(&workload.bindings),
            &made.updated_by,
            made.updated_via_operator,
            made.updated_at,
        ];
        self.tx.execute(&sql::UPDATE, &params).await.map(drop)
    }

    /// Deletes a workload for good; answers whether it was there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn delete(&mut self, id: &str) -> Result<bool, StoreError> {
        let params = params![self.zone, id];
        Ok(self.tx.execute(&sql::DELETE, &params).await? == 1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use caracal_crypto::os::SystemClock;
    use caracal_model::Clock as _;

    use super::*;
    use crate::on_each_engine;
    use crate::zones::{Author, Zone};

    fn author(seconds: u64) -> Author {
        Author {
            name: "admin:t".to_owned(),
            via_operator: false,
            at: SystemClock::new().now().plus(Duration::from_secs(seconds)),
        }
    }

    async fn zone(store: &Store, id: &str) -> ZoneId {
        let zone = Zone {
            id: ZoneId::trusted(id),
            name: id.to_owned(),
            slug: id.to_owned(),
            dcr_enabled: false,
            owner_account_id: None,
            operator_coauthor_badge: true,
            operator_governed: false,
            actor_tokens: false,
            provenance: Provenance::created(&author(0)),
        };
        let mut tx = store.begin("a zone").await.unwrap();
        tx.zones().insert(&zone).await.unwrap();
        tx.commit().await.unwrap();
        zone.id
    }

    fn workload(zone: &ZoneId, id: &str, name: &str, at: u64) -> Workload {
        Workload {
            id: WorkloadId::trusted(id),
            zone: zone.clone(),
            name: name.to_owned(),
            secret_verifier: Some("hs256$x".to_owned()),
            bindings: Vec::new(),
            provenance: Provenance::created(&author(at)),
        }
    }

    async fn add(store: &Store, workload: &Workload) -> Result<(), StoreError> {
        let mut tx = store.begin("a workload").await?;
        tx.workloads(&workload.zone).insert(workload).await?;
        tx.commit().await
    }

    on_each_engine! {
        async fn workloads_are_kept_changed_and_deleted(store: Store) {
            let zone = zone(&store, "z1").await;
            let mut kept = workload(&zone, "w1", "Nightly", 0);
            add(&store, &kept).await.unwrap();
            assert_eq!(store.find_workload(&kept.id).await.unwrap().unwrap(), kept);

            kept.name = "Weekly".to_owned();
            kept.bindings = vec![
                Binding {
                    env: "A".to_owned(),
                    resource: "resource://a".to_owned(),
                    scopes: vec!["a:read".to_owned()],
                    optional: true,
                    on_failure: Some("warn".to_owned()),
                },
                Binding {
                    env: "B".to_owned(),
                    resource: "resource://b".to_owned(),
                    scopes: Vec::new(),
                    optional: false,
                    on_failure: None,
                },
            ];
            kept.secret_verifier = None;
            kept.provenance.change(&author(1));
            let mut tx = store.begin("changing").await.unwrap();
            assert!(tx.workloads(&zone).lock("w1").await.unwrap().is_some());
            tx.workloads(&zone).update(&kept).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(store.zone(&zone).workloads().get("w1").await.unwrap().unwrap(), kept);

            let mut tx = store.begin("deleting").await.unwrap();
            assert!(tx.workloads(&zone).delete("w1").await.unwrap());
            assert!(!tx.workloads(&zone).delete("w1").await.unwrap());
            tx.commit().await.unwrap();
            assert_eq!(store.find_workload(&kept.id).await.unwrap(), None);
        }

        async fn names_of_workloads_are_unique_in_their_zone_ignoring_case(store: Store) {
            let (one, two) = (zone(&store, "z1").await, zone(&store, "z2").await);
            add(&store, &workload(&one, "w1", "Nightly", 0)).await.unwrap();
            let taken = add(&store, &workload(&one, "w2", "NIGHTLY", 0)).await.unwrap_err();
            assert!(taken.is_conflict_on(NAME_INDEX), "{taken:?}");
            add(&store, &workload(&two, "w2", "NIGHTLY", 0)).await.unwrap();
        }

        async fn a_zone_sees_its_own_workloads_newest_first(store: Store) {
            let (one, two) = (zone(&store, "z1").await, zone(&store, "z2").await);
            for (id, at) in [("w1", 1), ("w2", 3), ("w3", 2)] {
                add(&store, &workload(&one, id, id, at)).await.unwrap();
            }
            add(&store, &workload(&two, "x1", "x", 9)).await.unwrap();
            let all = Slice { before: i64::MAX, before_id: "", limit: 10 };
            let page = store.zone(&one).workloads().page(all).await.unwrap();
            let ids: Vec<_> = page.iter().map(|workload| workload.id.as_str()).collect();
            assert_eq!(ids, ["w2", "w3", "w1"]);
            let after = Slice {
                before: page[0].provenance.created_at.unix_micros(), before_id: "w2", limit: 1,
            };
            let page = store.zone(&one).workloads().page(after).await.unwrap();
            assert_eq!(page[0].id.as_str(), "w3");
            assert_eq!(store.zone(&two).workloads().get("w1").await.unwrap(), None);
            let mut tx = store.begin("across zones").await.unwrap();
            assert!(tx.workloads(&two).lock("w1").await.unwrap().is_none());
            assert!(!tx.workloads(&two).delete("w1").await.unwrap());
        }
    }
}
