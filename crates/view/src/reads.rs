//! How a live table answers: from memory while the lease holds, else from the store.

use std::hash::Hash;
use std::sync::Arc;

use caracal_authority::{EdgeFacts, EdgeStatus};
use caracal_model::{DelegationId, ZoneId};
use caracal_store::live::{Anchor, MAX_LINEAGE};

use crate::live::LiveTable;
use crate::revocations::IssuedTo;
use crate::views::Inner;
use crate::{ViewError, facts};

impl Inner {
    /// What the table holds, else what `load` reads, which is then held.
    ///
    /// What does not exist is not remembered: it may come into being any moment, and ids that do
    /// not exist are endless.
    pub async fn held_or<K, V, L>(
        &self,
        table: &LiveTable<K, V>,
        key: &K,
        load: L,
    ) -> Result<Option<Arc<V>>, ViewError>
    where
        K: Clone + Eq + Hash,
        L: AsyncFnOnce() -> Result<Option<V>, ViewError>,
    {
        if self.lease.holds()
            && let Some(held) = table.get(key)
        {
            return Ok(Some(held));
        }
        // INVARIANT (load): the ticket is taken before the store is read.
        let ticket = table.begin(key);
        let Some(value) = load().await? else {
            return Ok(None);
        };
        let value = Arc::new(value);
        table.insert(key.clone(), ticket, value.clone());
        Ok(Some(value))
    }

    /// The first of these subjects that was cut off after something was issued to it, as the store
    /// says.
    pub async fn first_cut(&self, subjects: &[IssuedTo<'_>]) -> Result<Option<Anchor>, ViewError> {
        for issued in subjects {
            let cutoff = self.store.subject_cutoff(issued.zone, issued.subject);
            if cutoff.await?.is_some_and(|at| issued.is_cut_by(at)) {
                return Ok(Some(issued.anchor()));
            }
        }
        Ok(None)
    }

    pub fn is_dead(&self, anchor: impl FnOnce() -> Anchor) -> bool {
        self.revocations.is_dead(&anchor(), self.clock.now())
    }

    /// The edge as its tombstone says, whatever was read.
    pub fn buried(&self, edge: Arc<EdgeFacts>) -> Arc<EdgeFacts> {
        let is_dead = || self.is_dead(|| Anchor::Delegation(edge.id.clone()));
        if edge.status == EdgeStatus::Active && is_dead() {
            return Arc::new(EdgeFacts {
                status: EdgeStatus::Revoked,
                ..(*edge).clone()
            });
        }
        edge
    }

    /// The lineage, when every edge of it is held and the lease holds.
    pub fn held_lineage(&self, zone: &ZoneId, leaf: &DelegationId) -> Option<Vec<Arc<EdgeFacts>>> {
        if !self.lease.holds() {
            return None;
        }
        let mut path = Vec::new();
        let mut next = Some(leaf.clone());
        // Bounded like the statement, so a circle ends here too.
        while let Some(id) = next.take().filter(|_| path.len() < max_lineage()) {
            let edge = self.edges.get(&(zone.clone(), id))?;
            next.clone_from(&edge.parent_edge_id);
            path.push(self.buried(edge));
        }
        path.reverse();
        Some(path)
    }

    pub async fn load_lineage(
        &self,
        zone: &ZoneId,
        leaf: &DelegationId,
    ) -> Result<Vec<Arc<EdgeFacts>>, ViewError> {
        // Which edges will be read is known only afterwards; a change of any of them since now must
        // keep it from being put down, so the tickets of all are taken first.
        let tickets = self.edges.begin_all();
        let rows = self.store.zone(zone).lineage(leaf).await?;
        let mut path = Vec::with_capacity(rows.len());
        for row in rows {
            let edge = Arc::new(facts::edge(row)?);
            let key = (zone.clone(), edge.id.clone());
            self.edges.insert_with(key, &tickets, edge.clone());
            path.push(self.buried(edge));
        }
        Ok(path)
    }
}

fn max_lineage() -> usize {
    usize::try_from(MAX_LINEAGE).unwrap_or(usize::MAX)
}
