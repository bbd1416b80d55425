//! What is kept for a while: claims, counts, leaders, boards; and the server itself.

use super::*;

on_both! {
    /// An operator is told what answers; memory is no server.
    async fn the_server_describes_itself(bus: Bus) {
        if let Some(server) = bus.server().await.unwrap() {
            assert!(server.major() >= 6, "{server:?}");
            assert!(!server.maxmemory_policy.is_empty() && server.used_memory > 0, "{server:?}");
            assert!(server.now.unix_micros() > 1_600_000_000_000_000, "{server:?}");
        }
    }

    /// However many ask at once, one wins, until the claim has expired.
    async fn a_claim_has_exactly_one_winner(bus: Bus) {
        let mut claims = JoinSet::new();
        for _ in 0..64 {
            let bus = bus.clone();
            claims.spawn(async move { bus.claim("seen:jti:1", WAIT).await.unwrap() });
        }
        let won = claims.join_all().await;
        assert_eq!(won.into_iter().filter(|won| *won).count(), 1);
        assert!(!bus.claim("seen:jti:1", WAIT).await.unwrap());
        let short = Duration::from_millis(30);
        assert!(bus.claim("seen:jti:2", short).await.unwrap());
        eventually("the claim expires", || async {
            bus.claim("seen:jti:2", WAIT).await.unwrap()
        })
        .await;
    }

    /// A window ends a fixed time after its first count.
    async fn counts_start_again_when_their_window_has_passed(bus: Bus) {
        for expected in 1..=5 {
            assert_eq!(bus.count("mint:app", WAIT).await.unwrap(), expected);
        }
        assert_eq!(bus.count("mint:other", WAIT).await.unwrap(), 1);
        // Counting does not make the window longer.
        let short = Duration::from_millis(100);
        assert_eq!(bus.count("mint:short", short).await.unwrap(), 1);
        eventually("the window passes", || async {
            bus.count("mint:short", short).await.unwrap() == 1
        })
        .await;
    }

    /// What is taken counts as what is counted does, and no more than the limit is ever given out.
    async fn a_limit_is_given_out_once_in_a_window(bus: Bus) {
        let take = async |most, limit| {
            let taken = bus.take("mint:lease", most, limit, WAIT).await.unwrap();
            assert!(taken.left > Duration::ZERO && taken.left <= WAIT, "{taken:?}");
            (taken.granted, taken.total)
        };
        assert_eq!(take(4, 10).await, (4, 4));
        assert_eq!(bus.count("mint:lease", WAIT).await.unwrap(), 5, "one window for both");
        assert_eq!(take(4, 10).await, (4, 9));
        assert_eq!(take(4, 10).await, (1, 10));
        assert_eq!(take(4, 10).await, (0, 10));
        assert_eq!(take(4, 7).await, (0, 10), "lowered meanwhile");
        let (one, two) = (take(6, 20), take(6, 20));
        let (one, two) = tokio::join!(one, two);
        assert_eq!(one.0 + two.0, 10);
        let short = Duration::from_millis(100);
        assert_eq!(bus.take("mint:short", 1, 1, short).await.unwrap().granted, 1);
        eventually("the window passes", || async {
            bus.take("mint:short", 1, 1, short).await.unwrap().granted == 1
        })
        .await;
    }

    /// Whoever leads stays the leader while it renews; another takes over only after silence.
    async fn leadership_is_kept_by_renewing_and_lost_by_silence(bus: Bus) {
        let short = Duration::from_millis(60);
        assert!(bus.lead("sweeper", "one", WAIT).await.unwrap());
        assert!(!bus.lead("sweeper", "two", WAIT).await.unwrap());
        assert!(bus.lead("sweeper", "one", short).await.unwrap());
        eventually("the other takes over", || async {
            bus.lead("sweeper", "two", WAIT).await.unwrap()
        })
        .await;
        assert!(!bus.lead("sweeper", "one", WAIT).await.unwrap());
    }

    /// A member is heard until its word expires.
    async fn a_board_shows_what_living_members_said(bus: Bus) {
        bus.post("caracal:view:applied", "a", "1-0", WAIT).await.unwrap();
        bus.post("caracal:view:applied", "a", "2-0", WAIT).await.unwrap();
        let short = Duration::from_millis(30);
        bus.post("caracal:view:applied", "b", "1-0", short).await.unwrap();
        eventually("the silent one is gone", || async {
            let posts = bus.posts("caracal:view:applied").await.unwrap();
            posts == [("a".to_owned(), "2-0".to_owned())]
        })
        .await;
        assert_eq!(bus.posts("nobody").await.unwrap(), []);
        bus.ping().await.unwrap();
    }
}
