//! What proves the ledger to others, as rows: keys, trees, tiles, checkpoints, findings. What they
//! mean belongs to the crates `ledger` and `tlog`.
//!
//! INVARIANT (one tree): a tree grows from the size and chain hash at which its writer saw it, with
//! its tiles, in one transaction; a checkpoint is stored once and never changed. So of two processes
//! that both believe to lead, one does nothing.
//!
//! The `zone_id` of these tables is the key of a log ([`LogId::key`]): the zone for its events.

use std::collections::BTreeMap;

use caracal_model::{LogId, LogKind, Timestamp, ZoneId};

use crate::error::StoreError;
use crate::row::Row;
use crate::store::{Store, ZoneScope};
use crate::{Param, params, statements};

macro_rules! tree {
    () => {
        "size, chain_hash, signed_size, signed_at, again_size, again_hash"
    };
}

/// The heads of a kind of logs, and the key under which the rest is kept.
macro_rules! due {
    ($heads:literal, $key:literal) => {
        concat!(
            "SELECT head.zone_id AS zone_id FROM ",
            $heads,
            " head
             LEFT JOIN audit_trees tree ON tree.zone_id = ",
            $key,
            "
             LEFT JOIN audit_checkpoint_wishes wish ON wish.zone_id = ",
            $key,
            "
             WHERE head.chain_seq < COALESCE(tree.size, 0)
                OR head.chain_seq > COALESCE(tree.signed_size, 0)
                   AND (COALESCE(tree.signed_at, 0) <= $1
                        OR head.chain_seq - COALESCE(tree.signed_size, 0) >= $2
                        OR wish.zone_id IS NOT NULL)
             ORDER BY head.zone_id"
        )
    };
}

statements! { pub(crate) mod sql {
    /// Ids are numbers, so this is their order, whatever the clocks of who made them said.
    KEYS = "SELECT id, deployment, public_key, sealed_private, created_at FROM audit_keys
            ORDER BY length(id), id";
    ADD_KEY = "INSERT INTO audit_keys (id, deployment, public_key, sealed_private, created_at)
               VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING";
    /// Of a key that signs no more; never of the newest.
    DESTROY_KEY = "UPDATE audit_keys SET sealed_private = $2
                   WHERE id = $1 AND length(sealed_private) > 0
                       AND id <> (SELECT id FROM audit_keys ORDER BY length(id) DESC, id DESC LIMIT 1)";
    LATEST_OF_ALL = "SELECT tree.zone_id AS zone_id, signed.note AS note FROM audit_trees tree
                     JOIN audit_checkpoints signed
                         ON signed.zone_id = tree.zone_id AND signed.size = tree.signed_size
                     WHERE tree.zone_id > $1 ORDER BY tree.zone_id LIMIT $2";
    TREE = concat!("SELECT ", tree!(), " FROM audit_trees WHERE zone_id = $1");
    /// Zones whose head is past what was signed, and where the period is over, enough has come, or
    /// somebody waits. Also those whose head was set back behind what was verified.
    DUE = due!("audit_heads", "head.zone_id");
    ADMIN_DUE = due!("admin_audit_heads", "head.zone_id || '/~admin'");
    SEED = "INSERT INTO audit_trees (zone_id, size, chain_hash, signed_size, signed_at, again_size,
                again_hash)
            VALUES ($1, $2, $3, 0, 0, $2, $3) ON CONFLICT (zone_id) DO NOTHING";
    GROW = "UPDATE audit_trees SET size = $4, chain_hash = $5
            WHERE zone_id = $1 AND size = $2 AND chain_hash = $3";
    AGAIN = "UPDATE audit_trees SET again_size = $2, again_hash = $3 WHERE zone_id = $1";
    PUT_TILE = pg: "INSERT INTO audit_tiles (zone_id, level, tile, hashes)
                    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bytea[])
                    ON CONFLICT (zone_id, level, tile) DO UPDATE SET hashes = excluded.hashes",
               lite: "INSERT INTO audit_tiles (zone_id, level, tile, hashes) VALUES ($1, $2, $3, $4)
                      ON CONFLICT (zone_id, level, tile) DO UPDATE SET hashes = excluded.hashes";
    TILES = pg: "SELECT level, tile, hashes FROM audit_tiles
                 JOIN unnest($2::bigint[], $3::bigint[]) AS wanted (level, tile)
                     USING (level, tile)
                 WHERE zone_id = $1",
            lite: "SELECT stored.level AS level, stored.tile AS tile, stored.hashes AS hashes
                   FROM json_each($2) wanted_level
                   CROSS JOIN json_each($3) wanted_tile ON wanted_tile.key = wanted_level.key
                   CROSS JOIN audit_tiles stored ON stored.zone_id = $1
                       AND stored.level = wanted_level.value AND stored.tile = wanted_tile.value";
    SIGN = "INSERT INTO audit_checkpoints (zone_id, size, note, made_at) VALUES ($1, $2, $3, $4)
            ON CONFLICT (zone_id, size) DO NOTHING";
    SIGNED = "UPDATE audit_trees SET signed_size = $2, signed_at = $3
              WHERE zone_id = $1 AND signed_size < $2";
    GRANTED = "DELETE FROM audit_checkpoint_wishes WHERE zone_id = $1";
    WISH = "INSERT INTO audit_checkpoint_wishes (zone_id, wished_at) VALUES ($1, $2)
            ON CONFLICT (zone_id) DO NOTHING";
    WISH_ALL = "INSERT INTO audit_checkpoint_wishes (zone_id, wished_at)
                SELECT zone_id, $1 FROM audit_trees WHERE signed_size > 0
                ON CONFLICT (zone_id) DO NOTHING";
    LATEST = "SELECT size, note, made_at FROM audit_checkpoints WHERE zone_id = $1
              ORDER BY size DESC LIMIT 1";
    AT = "SELECT size, note, made_at FROM audit_checkpoints WHERE zone_id = $1 AND size = $2";
    BELOW = "SELECT size, note, made_at FROM audit_checkpoints WHERE zone_id = $1 AND size < $2
             ORDER BY size DESC LIMIT $3";
    /// Those that tell of a change of keys, the smallest first.
    SAYING = "SELECT size, note, made_at FROM audit_checkpoints
              WHERE zone_id = $1 AND note LIKE $2 ORDER BY size";
    ABOVE = "SELECT size, note, made_at FROM audit_checkpoints WHERE zone_id = $1 AND size > $2
             ORDER BY size LIMIT $3";
    COVERED = "SELECT zone_id, CASE WHEN EXISTS (SELECT 1 FROM audit_keys) THEN signed_size
                   ELSE size END AS size
               FROM audit_trees";
    FIND = "INSERT INTO audit_findings (zone_id, seq, flaw, found_at) VALUES ($1, $2, $3, $4)
            ON CONFLICT (zone_id, seq, flaw) DO NOTHING";
    FINDINGS = "SELECT zone_id, seq, flaw, found_at FROM audit_findings
                ORDER BY found_at DESC, zone_id DESC, seq DESC LIMIT 1000";
} }

/// A key that signs checkpoints.
#[derive(Clone, PartialEq, Eq)]
pub struct AuditKey {
    /// Its id; the first is `1`.
    pub id: String,
    /// How the logs of this deployment are called.
    pub deployment: String,
    /// The public half.
    pub public_key: Vec<u8>,
    /// The envelope of the private half; empty once that was destroyed.
    pub sealed_private: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl AuditKey {
    /// Whether the private half is still there.
    pub fn has_private(&self) -> bool {
        !self.sealed_private.is_empty()
    }
}

impl std::fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuditKey({} of {})", self.id, self.deployment)
    }
}

/// How far a zone is in its tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditTree {
    /// Events that were verified and are in the tiles.
    pub size: u64,
    /// Chain hash of the last of them, hex.
    pub chain_hash: String,
    /// Size of the largest checkpoint; 0 when there is none.
    pub signed_size: u64,
    /// When that was made; the epoch when there is none.
    pub signed_at: Timestamp,
    /// How far the round of verifying again has come.
    pub again_size: u64,
    /// Chain hash there, hex.
    pub again_hash: String,
}

impl AuditTree {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            size: row.count("size")?,
            chain_hash: row.string("chain_hash")?,
            signed_size: row.count("signed_size")?,
            signed_at: row.time("signed_at")?,
            again_size: row.count("again_size")?,
            again_hash: row.string("again_hash")?,
        })
    }
}

/// A tile: its level, its place in the level, and its hashes one after another.
pub type AuditTile = (u32, u64, Vec<u8>);

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditCheckpoint {
    /// How many events it covers.
    pub size: u64,
    /// The signed note.
    pub note: String,
    /// When it was made.
    pub made_at: Timestamp,
}

impl AuditCheckpoint {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            size: row.count("size")?,
            note: row.string("note")?,
            made_at: row.time("made_at")?,
        })
    }
}

/// A place where a ledger does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFinding {
    /// The zone.
    pub zone: ZoneId,
    /// The first event that cannot be trusted.
    pub seq: u64,
    /// What does not hold, in words.
    pub flaw: String,
}

fn whole<'p>(number: u64) -> Param<'p> {
    Param::Int(whole_int(number))
}

fn whole_int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Store {
    /// The keys of checkpoints, the newest last.
    pub async fn audit_keys(&self) -> Result<Vec<AuditKey>, StoreError> {
        let rows = self.query(&sql::KEYS, &[]).await?;
        let read = |row: &Row| {
            Ok(AuditKey {
                id: row.string("id")?,
                deployment: row.string("deployment")?,
                public_key: row.bytes("public_key")?.to_vec(),
                sealed_private: row.bytes("sealed_private")?.to_vec(),
                created_at: row.time("created_at")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Adds a key unless there is one of this id; whether there was none.
    pub async fn add_audit_key(&self, key: &AuditKey) -> Result<bool, StoreError> {
        let mut tx = self.begin("adding a checkpoint key").await?;
        let params = params![
            &key.id,
            &key.deployment,
            &key.public_key,
            &key.sealed_private,
            key.created_at
        ];
        let added = tx.execute(&sql::ADD_KEY, &params).await?;
        tx.commit().await?;
        Ok(added == 1)
    }

    /// Destroys the private half of a key, unless it is the newest; whether it was there.
    pub async fn destroy_audit_key(&self, id: &str) -> Result<bool, StoreError> {
        let mut tx = self.begin("destroying a checkpoint key").await?;
        let nothing: &[u8] = &[];
        let destroyed = tx.execute(&sql::DESTROY_KEY, &params![id, nothing]).await?;
        tx.commit().await?;
        Ok(destroyed == 1)
    }

    /// The latest checkpoint of each log after this key of a log, as its note, with that key.
    pub async fn latest_audit_notes(
        &self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let rows = self
            .query(&sql::LATEST_OF_ALL, &params![after, limit])
            .await?;
        let read = |row: &Row| Ok((row.string("zone_id")?, row.string("note")?));
        rows.iter().map(read).collect()
    }

    /// Asks for a checkpoint of every zone that has one, as soon as there is something to sign.
    pub async fn wish_audit_checkpoints(&self) -> Result<(), StoreError> {
        let now = self.clock().now();
        let mut tx = self.begin("wishing for checkpoints").await?;
        tx.execute(&sql::WISH_ALL, &params![now]).await?;
        tx.commit().await
    }

    /// Logs of which a checkpoint is due: the last one is not younger than `signed_before`, or this
    /// many entries have come since, or somebody wishes it.
    pub async fn audit_trees_due(
        &self,
        signed_before: Timestamp,
        entries: u64,
    ) -> Result<Vec<LogId>, StoreError> {
        let params = [Param::from(signed_before), whole(entries)];
        let mut due = Vec::new();
        for (kind, sql) in [
            (LogKind::Events, &sql::DUE),
            (LogKind::Admin, &sql::ADMIN_DUE),
        ] {
            for row in self.query(sql, &params).await? {
                let zone = ZoneId::trusted(row.text("zone_id")?);
                due.push(match kind {
                    LogKind::Events => LogId::events(zone),
                    LogKind::Admin => LogId::admin(zone),
                });
            }
        }
        Ok(due)
    }

    /// Every log that has entries or ought to have them.
    pub async fn audit_logs(&self) -> Result<Vec<LogId>, StoreError> {
        let events = self.audit_zones().await?.into_iter().map(LogId::events);
        let admin = self.admin_audit().zones().await?.into_iter();
        Ok(events.chain(admin.map(LogId::admin)).collect())
    }

    /// How many events of each zone a checkpoint covers, or its tree when nothing is ever signed.
    /// Retention drops nothing beyond: of what was in no tree, nothing would be left.
    pub async fn audit_checkpointed(&self) -> Result<BTreeMap<ZoneId, u64>, StoreError> {
        let rows = self.query(&sql::COVERED, &[]).await?;
        rows.iter()
            .map(|row| Ok((ZoneId::trusted(row.text("zone_id")?), row.count("size")?)))
            .collect()
    }

    /// Records a finding; whether it is a new one.
    pub async fn add_audit_finding(&self, finding: &AuditFinding) -> Result<bool, StoreError> {
        let now = self.clock().now();
        let mut tx = self.begin("recording a finding").await?;
        let params = [
            Param::from(&finding.zone),
            whole(finding.seq),
            Param::from(&finding.flaw),
            Param::from(now),
        ];
        let added = tx.execute(&sql::FIND, &params).await?;
        tx.commit().await?;
        Ok(added == 1)
    }

    /// The latest thousand findings, with when, the first first.
    pub async fn audit_findings(&self) -> Result<Vec<(AuditFinding, Timestamp)>, StoreError> {
        let mut rows = self.query(&sql::FINDINGS, &[]).await?;
        rows.reverse();
        let read = |row: &Row| {
            let finding = AuditFinding {
                zone: ZoneId::trusted(row.text("zone_id")?),
                seq: row.count("seq")?,
                flaw: row.string("flaw")?,
            };
            Ok((finding, row.time("found_at")?))
        };
        rows.iter().map(read).collect()
    }
}

/// From where to where a tree grows.
#[derive(Clone, Debug)]
pub struct Growing<'g> {
    /// Size and chain hash as the writer saw them; size 0 begins a tree.
    pub from: (u64, &'g str),
    /// After the new leaves.
    pub to: (u64, &'g str),
    /// Every tile that changed.
    pub tiles: &'g [AuditTile],
}

/// The tree of one zone.
#[derive(Clone, Copy, Debug)]
pub struct AuditTrees<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The tree of this zone's ledger.
    pub fn audit_tree(self) -> AuditTrees<'s> {
        AuditTrees(self)
    }
}

impl AuditTrees<'_> {
    /// How far it is; `None` before its first leaf.
    pub async fn state(&self) -> Result<Option<AuditTree>, StoreError> {
        let row = self.0.query_opt(&sql::TREE, &params![self.0.id()]).await?;
        row.as_ref().map(AuditTree::read).transpose()
    }

    /// The tiles with these levels and places; what is not stored is left out.
    pub async fn tiles(&self, ids: &[(u32, u64)]) -> Result<Vec<AuditTile>, StoreError> {
        let params = [
            Param::from(self.0.id()),
            Param::Ints(ids.iter().map(|(level, _)| i64::from(*level)).collect()),
            Param::Ints(ids.iter().map(|(_, tile)| whole_int(*tile)).collect()),
        ];
        let rows = self.0.query(&sql::TILES, &params).await?;
        let read = |row: &Row| {
            let level = u32::try_from(row.count("level")?);
            let level = level.map_err(|_| StoreError::corrupt("the level of a tile".to_owned()))?;
            Ok((level, row.count("tile")?, row.bytes("hashes")?.to_vec()))
        };
        rows.iter().map(read).collect()
    }

    /// INVARIANT (one tree): whether the tree was still where the writer saw it; nothing is stored
    /// when it was not.
    pub async fn grow(&self, growing: &Growing<'_>) -> Result<bool, StoreError> {
        let zone = self.0.id();
        let (from, to) = (growing.from, growing.to);
        let rows: Vec<Vec<Param<'_>>> = growing
            .tiles
            .iter()
            .map(|(level, tile, hashes)| {
                vec![
                    Param::from(zone),
                    Param::from(*level),
                    whole(*tile),
                    Param::from(hashes),
                ]
            })
            .collect();
        let mut tx = self.0.store().begin("growing a tree").await?;
        if from.0 == 0 {
            let seed = [Param::from(zone), whole(0), Param::from(from.1)];
            tx.execute(&sql::SEED, &seed).await?;
        }
        let step = [
            Param::from(zone),
            whole(from.0),
            Param::from(from.1),
            whole(to.0),
            Param::from(to.1),
        ];
        if tx.execute(&sql::GROW, &step).await? != 1 {
            tx.rollback().await;
            return Ok(false);
        }
        tx.commit_with_rows(&sql::PUT_TILE, &rows).await?;
        Ok(true)
    }

    /// Keeps a checkpoint, and drops the wish for one; whether none of this size was there.
    pub async fn sign(&self, checkpoint: &AuditCheckpoint) -> Result<bool, StoreError> {
        let (zone, size) = (self.0.id(), checkpoint.size);
        let mut tx = self.0.store().begin("keeping a checkpoint").await?;
        let params = [
            Param::from(zone),
            whole(size),
            Param::from(&checkpoint.note),
            Param::from(checkpoint.made_at),
        ];
        let added = tx.execute(&sql::SIGN, &params).await? == 1;
        let signed = [
            Param::from(zone),
            whole(size),
            Param::from(checkpoint.made_at),
        ];
        tx.execute(&sql::SIGNED, &signed).await?;
        tx.execute(&sql::GRANTED, &params![zone]).await?;
        tx.commit().await?;
        Ok(added)
    }

    /// Asks for a checkpoint soon.
    pub async fn wish(&self) -> Result<(), StoreError> {
        let store = self.0.store();
        let now = store.clock().now();
        let mut tx = store.begin("wishing for a checkpoint").await?;
        tx.execute(&sql::WISH, &params![self.0.id(), now]).await?;
        tx.commit().await
    }

    /// Remembers how far the round of verifying again has come.
    pub async fn verified_again(&self, size: u64, chain_hash: &str) -> Result<(), StoreError> {
        let mut tx = self
            .0
            .store()
            .begin("remembering what was verified")
            .await?;
        let params = [
            Param::from(self.0.id()),
            whole(size),
            Param::from(chain_hash),
        ];
        tx.execute(&sql::AGAIN, &params).await?;
        tx.commit().await
    }

    /// The largest checkpoint.
    pub async fn latest(&self) -> Result<Option<AuditCheckpoint>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::LATEST, &params![self.0.id()])
            .await?;
        row.as_ref().map(AuditCheckpoint::read).transpose()
    }

    /// The checkpoint of exactly this size.
    pub async fn checkpoint(&self, size: u64) -> Result<Option<AuditCheckpoint>, StoreError> {
        let params = [Param::from(self.0.id()), whole(size)];
        let row = self.0.query_opt(&sql::AT, &params).await?;
        row.as_ref().map(AuditCheckpoint::read).transpose()
    }

    /// Checkpoints smaller than `size`, the largest first.
    pub async fn below(&self, size: u64, limit: u32) -> Result<Vec<AuditCheckpoint>, StoreError> {
        self.list(&sql::BELOW, size, limit).await
    }

    /// Checkpoints larger than `size`, the smallest first.
    pub async fn above(&self, size: u64, limit: u32) -> Result<Vec<AuditCheckpoint>, StoreError> {
        self.list(&sql::ABOVE, size, limit).await
    }

    /// Checkpoints with a line that begins with this word, the smallest first.
    pub async fn saying(&self, word: &str) -> Result<Vec<AuditCheckpoint>, StoreError> {
        let pattern = format!("%\n{word} %");
        let params = [Param::from(self.0.id()), Param::from(&pattern)];
        let rows = self.0.query(&sql::SAYING, &params).await?;
        rows.iter().map(AuditCheckpoint::read).collect()
    }

    async fn list(
        &self,
        sql: &crate::Sql,
        size: u64,
        limit: u32,
    ) -> Result<Vec<AuditCheckpoint>, StoreError> {
        let params = [Param::from(self.0.id()), whole(size), Param::from(limit)];
        let rows = self.0.query(sql, &params).await?;
        rows.iter().map(AuditCheckpoint::read).collect()
    }
}

#[cfg(test)]
mod tests;
