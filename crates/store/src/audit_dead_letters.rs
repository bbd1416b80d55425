//! Evidence that can never be appended, where there is no bus to keep it (migration 0011).

use caracal_model::Timestamp;
use caracal_model::change::Fields;

use crate::error::StoreError;
use crate::row::Row;
use crate::{Param, Store, params, statements};

statements! { pub(crate) mod sql {
    KEEP = "INSERT INTO audit_dead_letters (millis, seq, fields_json)
            SELECT CAST($1 AS BIGINT), COALESCE(MAX(seq) + 1, 0), CAST($2 AS TEXT)
            FROM audit_dead_letters WHERE millis = $1";
    LIST = "SELECT millis, seq, fields_json FROM audit_dead_letters
            WHERE (millis, seq) >= ($1, $2) ORDER BY millis, seq LIMIT $3";
    REMOVE = "DELETE FROM audit_dead_letters WHERE millis = $1 AND seq = $2";
    COUNT = "SELECT COUNT(*) AS letters FROM audit_dead_letters";
} }

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLetter {
    /// When it was kept, in Unix milliseconds, and which one of that millisecond it is.
    pub place: (u64, u64),
    /// What it was, and why it is here; named as on the bus (spec: audit-and-streams §6).
    pub fields: Fields,
}

impl StoredLetter {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            place: (row.count("millis")?, row.count("seq")?),
            fields: row.json("fields_json")?,
        })
    }
}

fn int<'p>(number: u64) -> Param<'p> {
    Param::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

impl Store {
    /// Keeps them, all or none.
    pub async fn keep_audit_dead_letters(&self, letters: &[Fields]) -> Result<(), StoreError> {
        if letters.is_empty() {
            return Ok(());
        }
        let millis = Timestamp::unix_millis(self.clock().now());
        let mut tx = self.begin("keeping dead letters").await?;
        for letter in letters {
            // A map of text to text always serializes; U+0000 is written as an escape.
            let json = serde_json::to_string(letter).unwrap_or_default();
            tx.execute(&sql::KEEP, &params![millis, json]).await?;
        }
        tx.commit().await
    }

    /// At most `limit` of them from this place on, oldest first.
    pub async fn audit_dead_letters(
        &self,
        from: (u64, u64),
        limit: u32,
    ) -> Result<Vec<StoredLetter>, StoreError> {
        let params = [int(from.0), int(from.1), Param::from(limit)];
        let rows = self.query(&sql::LIST, &params).await?;
        rows.iter().map(StoredLetter::read).collect()
    }

    /// Removes those at these places; answers with how many there were.
    pub async fn remove_audit_dead_letters(
        &self,
        places: &[(u64, u64)],
    ) -> Result<u64, StoreError> {
        let mut tx = self.begin("removing dead letters").await?;
        let mut removed = 0;
        for (millis, seq) in places {
            removed += tx.execute(&sql::REMOVE, &[int(*millis), int(*seq)]).await?;
        }
        tx.commit().await?;
        Ok(removed)
    }

    /// How many there are.
    pub async fn count_audit_dead_letters(&self) -> Result<u64, StoreError> {
        let row = self.query_opt(&sql::COUNT, &[]).await?;
        row.map_or(Ok(0), |row| row.count("letters"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::on_each_engine! {
        async fn letters_are_kept_in_order_until_they_are_removed(store: Store) {
            let letter = |n: u32| -> Fields { [("n".to_owned(), format!("{n}\0"))].into() };
            let letters: Vec<Fields> = (0..3).map(letter).collect();
            store.keep_audit_dead_letters(&letters).await.unwrap();
            store.keep_audit_dead_letters(&letters).await.unwrap();
            store.keep_audit_dead_letters(&[]).await.unwrap();
            let all = store.audit_dead_letters((0, 0), 10).await.unwrap();
            assert_eq!((all.len(), &all[4].fields), (6, &letters[1]));
            assert!(all.is_sorted_by_key(|letter| letter.place));
            let rest = store.audit_dead_letters(all[4].place, 1).await.unwrap();
            assert_eq!(rest, all[4..5]);
            let gone = [all[1].place, all[2].place, (7, 7)];
            assert_eq!(store.remove_audit_dead_letters(&gone).await.unwrap(), 2);
            assert_eq!(store.count_audit_dead_letters().await.unwrap(), 4);
        }
    }
}
