//! Approvals under races (issue: approval races). Two replicas share a store; in each round one hold
//! is approved, rejected, expired, presented, spent and overtaken by another policy, all at once.
//!
//! `CARACAL_TEST_APPROVAL_ROUNDS` says how many rounds; few unless it is set.

use std::collections::BTreeSet;

use futures_util::future::join;

use super::gated::Gated;
use super::*;

#[expect(clippy::disallowed_methods, reason = "how long a test is")]
fn rounds() -> usize {
    let set = std::env::var("CARACAL_TEST_APPROVAL_ROUNDS");
    set.ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// The record of a mandate that was minted, if one was.
fn minted(answer: &(StatusCode, Value)) -> Option<String> {
    let (status, body) = answer;
    let code = body["error"].as_str().unwrap_or_default();
    match status.as_u16() {
        200 => {
            let jws = Jws::parse(body["access_token"].as_str().unwrap()).unwrap();
            let claims: Value = serde_json::from_slice(jws.payload()).unwrap();
            Some(claims["sid"].as_str().unwrap().to_owned())
        }
        // Every other end is one that the specification names.
        401 => {
            assert!(
                ["interaction_required", "access_denied"].contains(&code),
                "{body}"
            );
            None
        }
        403 => {
            assert_eq!(
                (code, body["error_description"].as_str()),
                ("access_denied", Some("approval was rejected"))
            );
            None
        }
        409 => {
            assert_eq!(code, "approval_consumed");
            None
        }
        // Four mints changed one slot at the same time; nothing was granted.
        503 => None,
        _ => panic!("{status} {body}"),
    }
}

caracal_store::on_each_engine! {
    async fn no_hold_is_ever_good_for_two_mandates_or_for_one_after_a_no(store: Store) {
        let [one, two] = Gated::replicas(store).await;
        let (mut granted, mut refused) = (0, 0);
        let mut policy = "v1";
        for round in 0..rounds() {
            let id = one.held("desk:write", &[]).await;
            let other = if policy == "v1" { "v2" } else { "v1" };
            // What happens beside the mints: in turn, so that every pair is met.
            let (approves, rejects) = (round % 4 != 3, round % 3 == 0);
            let (expires, overtaken) = (round % 5 == 4, round % 7 == 6);
            if round % 2 == 0 && approves && !rejects {
                assert!(one.operator(&id, true).await);
            }
            let decisions = join(
                async { if approves { two.operator(&id, true).await } else { false } },
                async { if rejects { one.operator(&id, false).await } else { false } },
            );
            let ends = join(
                async { if expires { two.expire(&id).await } },
                async { if overtaken { one.activate(other).await } },
            );
            // Presenting twice may give the one record twice; without an id nothing is given again.
            let with = [("approval_id", &*id)];
            let mints = join(
                join(one.mint("desk:write", &with), two.mint("desk:write", &with)),
                join(one.mint("desk:write", &[]), two.mint("desk:write", &[])),
            );
            let ((yes, no), _, ((a, b), (c, d))) = tokio::join!(decisions, ends, mints);
            assert!(!(yes && no), "round {round}: decided twice");
            if overtaken {
                policy = other;
            }
            let late = [one.mint("desk:write", &with).await, two.mint("desk:write", &with).await];
            let all: Vec<_> = [a, b, c, d].into_iter().chain(late).collect();
            let records: BTreeSet<String> = all.iter().filter_map(minted).collect();
            let hold = one.hold(&id).await;
            assert!(records.len() <= 1, "round {round}: {records:?} of one hold");
            assert_eq!(records.first().map(String::as_str), hold.issued_record_id.as_ref().map(AsRef::as_ref),
                "round {round}: what was spent and what was given differ: {all:?}");
            if !records.is_empty() {
                assert!(hold.satisfied_at.is_some() && hold.rejected_at.is_none(), "round {round}: {hold:?}");
                let spent = hold.consumed_at.unwrap();
                assert!(spent < hold.expires_at || expires, "round {round}");
                granted += 1;
            } else {
                refused += 1;
            }
            // The next round begins with a hold of its own.
            for gated in [&one, &two] {
                let (_, body) = gated.mint("desk:write", &[]).await;
                if let Some(id) = body["approval_id"].as_str() {
                    gated.expire(id).await;
                }
            }
            one.expire(&id).await;
        }
        assert!(granted > 0 && refused > 0, "{granted} granted, {refused} refused: the race is none");
        let issued = one.evidence().await.into_iter().chain(two.evidence().await);
        let consumed = issued.filter(|event| {
            event.event_type == "step_up_consumed" && event.metadata_json.get("reissued").is_none()
        });
        assert_eq!(consumed.count(), granted, "one event for each hold that was spent");
        one.stop().await;
        two.stop().await;
    }
}
