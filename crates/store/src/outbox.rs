//! The outbox: news that was committed with its change and is not yet on its topic.

use caracal_model::{Ids, Outgoing, Timestamp};

use crate::param::Param;

crate::statements! { pub(crate) mod sql {
    INSERT = pg: "INSERT INTO outbox
                      (id, topic, zone_id, urgent, fields_json, created_at, attempts, available_at)
                  SELECT id, topic, zone_id, urgent, fields_json, created_at, 0, created_at
                  FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::text[],
                              $6::bigint[])
                       AS entry (id, topic, zone_id, urgent, fields_json, created_at)",
             lite: "INSERT INTO outbox
                        (id, topic, zone_id, urgent, fields_json, created_at, attempts,
                         available_at)
                    VALUES ($1, $2, $3, $4, $5, $6, 0, $6)";
} }

/// The rows of these entries, in their order: ids of one process sort as they were made.
pub(crate) fn rows<'o>(outgoing: &'o [Outgoing], ids: &Ids, now: Timestamp) -> Vec<Vec<Param<'o>>> {
    outgoing
        .iter()
        .map(|entry| {
            vec![
                Param::Owned(ids.uuid()),
                Param::Text(entry.topic.name()),
                Param::Text(entry.zone.as_str()),
                Param::Bool(entry.topic.is_urgent()),
                // A map of text to text always serializes.
                Param::Owned(serde_json::to_string(&entry.fields).unwrap_or_default()),
                Param::from(now),
            ]
        })
        .collect()
}
