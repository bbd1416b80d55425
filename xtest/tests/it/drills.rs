//! Every failure that the operators' pages name, on real servers and separate processes, under a
//! probe that mints and calls without pause (see [`xtest::drill`]): nobody gets what they should not,
//! what was answered is on record once, and it heals without hands.
//!
//! What can be asked of a run is on the page of failure drills, and in [`xtest::wishes`].

use std::sync::Arc;
use std::time::Duration;

use xtest::drill::Drill;
use xtest::wishes::{FAILURES, long, named, rounds, wants, wants_any_of};
use xtest::{DEAD_LETTERS, Deployment, Options, Part, Stack, World, eventually};

const BRIEF: Duration = Duration::from_secs(1);
const WHILE: Duration = Duration::from_secs(4);
/// An Audit that leads is believed to live for 30 seconds without a sign.
const MOST_OF_A_LEASE: Duration = Duration::from_secs(25);
/// More than any two clocks may differ by, and less than a Session lasts.
const STEP: i64 = 300;

fn options() -> Options {
    Options::default()
        .own_postgres()
        .durable_redis()
        .limited_disks()
        .stepping_clock()
        // What a killed Audit had read is taken over by the next one after this.
        .env("AUDIT_CLAIM_IDLE_SECS", "1")
}

#[test]
fn embedded_failures_end_in_refusals_and_lose_nothing() {
    if !wants_any_of("embedded") {
        return;
    }
    xtest::on(
        Deployment::Embedded,
        options(),
        async |stack: Arc<Stack>| {
            let mut drill = Drill::on(&stack).await;
            for _ in 0..rounds() {
                Box::pin(kill(&mut drill, &[Part::Sts], "the process is killed")).await;
                Box::pin(a_disk_is_full(&mut drill)).await;
                Box::pin(clocks_step(&mut drill)).await;
            }
            Box::pin(drill.ends()).await;
        },
    );
}

#[test]
fn distributed_servers_fail() {
    if !wants_any_of("servers") {
        return;
    }
    xtest::on(
        Deployment::Distributed,
        options(),
        async |stack: Arc<Stack>| {
            let mut drill = Drill::on(&stack).await;
            for _ in 0..rounds() {
                Box::pin(redis_fails(&mut drill)).await;
                Box::pin(postgres_fails(&mut drill)).await;
                Box::pin(both_fail(&mut drill)).await;
            }
            Box::pin(drill.ends()).await;
        },
    );
}

#[test]
fn distributed_processes_disks_and_clocks_fail() {
    if !wants_any_of("processes") {
        return;
    }
    xtest::on(
        Deployment::Distributed,
        options(),
        async |stack: Arc<Stack>| {
            let mut drill = Drill::on(&stack).await;
            for _ in 0..rounds() {
                for part in Part::ALL {
                    let name = format!("{} is killed", part.name());
                    Box::pin(kill(&mut drill, &[part], &name)).await;
                }
                Box::pin(a_disk_is_full(&mut drill)).await;
                Box::pin(clocks_step(&mut drill)).await;
            }
            Box::pin(drill.ends()).await;
        },
    );
}

#[test]
fn distributed_leaders_are_replaced() {
    if !wants_any_of("leaders") {
        return;
    }
    let options = Options::default()
        .env("AUDIT_CLAIM_IDLE_SECS", "1")
        .env("AUDIT_CHECKPOINT_SECS", "1");
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            let mut drill = Drill::on(&stack).await;
            Box::pin(the_leading_audit_is_killed(&mut drill)).await;
            Box::pin(drill.ends()).await;
        },
    );
}

#[test]
fn distributed_content_is_broken() {
    if !wants_any_of("content") {
        return;
    }
    xtest::on(
        Deployment::Distributed,
        options(),
        async |stack: Arc<Stack>| {
            let mut drill = Drill::on(&stack).await;
            Box::pin(neither_stream_nor_disk(&mut drill)).await;
            Box::pin(dead_letters_cannot_be_written(&mut drill)).await;
            Box::pin(a_policy_is_broken(&mut drill)).await;
            if wants("a row of the ledger is changed") {
                Box::pin(a_row_is_changed(&drill.world)).await;
            }
            Box::pin(drill.ends()).await;
        },
    );
}

#[test]
fn failures_are_chosen_by_parts_of_their_names() {
    let all: usize = FAILURES.iter().map(|(_, all)| all.len()).sum();
    assert_eq!(named(" , ").unwrap().len(), all);
    assert_eq!(
        named("away for long, emptied").unwrap(),
        [
            "Redis is away for long, and keeps its data",
            "Redis is emptied",
            "Postgres is away for long"
        ]
    );
    let unknown = named("emptied, Postgress").unwrap_err();
    assert!(unknown.contains("\"Postgress\"") && unknown.contains("\nPostgres is away for long"));
}

async fn nothing(_: &Stack) {}

async fn kill(drill: &mut Drill, parts: &[Part], name: &str) {
    let row = drill.suffers(
        name,
        BRIEF,
        async |stack| stack.kill9(parts),
        async |stack| stack.starts_again(),
    );
    let Some(row) = row.await else { return };
    if parts == [Part::Sts] && row.deployment == Deployment::Distributed {
        row.must_say(Part::Gateway, "sts_unreachable");
    }
}

async fn redis_fails(drill: &mut Drill) {
    for (name, lasted, keeps) in [
        ("Redis is away briefly, and keeps its data", BRIEF, true),
        ("Redis is away for long, and keeps its data", long(), true),
        ("Redis is started again without its data", BRIEF, false),
    ] {
        let row = drill.suffers(name, lasted, Stack::kill9_redis, async |stack| {
            stack.start_redis(keeps).await
        });
        let Some(row) = row.await else { continue };
        row.must_say(Part::Gateway, "redis_unreachable");
        // Some look only now and then.
        if lasted > BRIEF {
            for part in [Part::Api, Part::Sts, Part::Audit] {
                row.must_say(part, "redis_unreachable");
            }
        }
    }
    let emptied = drill.suffers(
        "Redis is emptied",
        WHILE,
        async |stack| drop(stack.redis("FLUSHALL").await),
        nothing,
    );
    emptied.await;
}

async fn postgres_fails(drill: &mut Drill) {
    for (name, lasted) in [
        ("Postgres crashes and recovers", BRIEF),
        ("Postgres is away for long", long()),
    ] {
        let row = drill.suffers(name, lasted, Stack::crash_postgres, Stack::start_postgres);
        let Some(row) = row.await else { continue };
        row.must_say(Part::Sts, "postgres_unreachable");
        if lasted > BRIEF {
            for part in [Part::Api, Part::Coordinator, Part::Audit] {
                row.must_say(part, "postgres_unreachable");
            }
        }
        // Revocations are told by the feed, which has not failed.
        assert!(
            !row.said(Part::Gateway, "revocation_snapshot_stale"),
            "{row:?}"
        );
        assert!(row.served > 0, "memory answers: {row:?}");
    }
}

async fn both_fail(drill: &mut Drill) {
    let row = drill.suffers(
        "Redis and Postgres are away: revocations cannot be known",
        WHILE,
        async |stack| {
            stack.kill9_redis().await;
            stack.crash_postgres().await;
        },
        async |stack| {
            // The feed alone is not enough after it was lost.
            stack.start_redis(true).await;
            tokio::time::sleep(BRIEF).await;
            stack.start_postgres().await;
        },
    );
    let Some(row) = row.await else { return };
    row.must_say(Part::Gateway, "redis_unreachable");
    row.must_say(Part::Gateway, "revocation_snapshot_stale");
}

async fn a_disk_is_full(drill: &mut Drill) {
    let producers = &[Part::Sts, Part::Gateway];
    let row = drill.suffers(
        "the disk of the local log is full",
        WHILE,
        async |stack| stack.fill_disks(producers, true),
        async |stack| {
            stack.fill_disks(producers, false);
            // Embedded, the ledger was on the same disk: a denial could be kept nowhere.
            if stack.deployment == Deployment::Embedded && is_lost(stack).await {
                stack.kill9(producers);
                stack.restart().await;
            }
        },
    );
    let Some(row) = row.await else { return };
    assert!(
        row.refused > 0,
        "without evidence nobody is served: {row:?}"
    );
    if row.deployment == Deployment::Distributed {
        for part in [Part::Sts, Part::Gateway] {
            row.must_say(part, "audit_replay_unavailable");
            assert!(!row.said(part, "audit_evidence_lost"), "{row:?}");
        }
    }
}

/// Whether the STS says that evidence is lost, which it does until it is replaced.
async fn is_lost(stack: &Stack) -> bool {
    let url = format!("{}/ready", stack.urls.sts);
    let ready = stack.http.try_get(&url).await;
    ready.is_ok_and(|answer| answer.text("reason") == "audit_evidence_lost")
}

async fn clocks_step(drill: &mut Drill) {
    if !drill.world.stack.has_stepping_clock() {
        xtest::visibly("skipped clocks: libfaketime is not installed");
        return;
    }
    for (name, seconds, kills) in [
        ("clocks step five minutes forward, and back", STEP, false),
        ("clocks step five minutes back, and forward", -STEP, false),
        ("everything is killed while clocks are ahead", STEP, true),
        ("everything is killed while clocks are behind", -STEP, true),
    ] {
        let row = drill.suffers(
            name,
            WHILE,
            async |stack| {
                stack.step_clocks(seconds);
                if kills {
                    tokio::time::sleep(BRIEF * 2).await;
                    stack.kill9(&Part::ALL);
                    stack.restart().await;
                }
            },
            async |stack| stack.step_clocks(0),
        );
        row.await;
    }
}

/// A denial whose event neither the stream nor the disk takes is lost, and nobody is told otherwise.
async fn neither_stream_nor_disk(drill: &mut Drill) {
    let row = drill.suffers(
        "the STS can write evidence neither to its disk nor to the stream",
        WHILE,
        async |stack| {
            stack.streams_take_entries(false).await;
            stack.fill_disks(&[Part::Sts], true);
            eventually("a denial is lost", async || is_lost(stack).await).await;
        },
        async |stack| {
            stack.fill_disks(&[Part::Sts], false);
            stack.streams_take_entries(true).await;
            tokio::time::sleep(BRIEF).await;
            assert!(is_lost(stack).await, "said until it is replaced");
            let bearer = stack.setting("METRICS_BEARER");
            let url = format!("{}/metrics.json", stack.urls.sts);
            let metrics = stack.http.get(url, Some(bearer)).await.json();
            assert!(metrics["audit_dropped"].as_u64() > Some(0), "{metrics}");
            stack.kill9(&[Part::Sts]);
            stack.restart().await;
        },
    );
    if let Some(row) = row.await {
        row.must_say(Part::Sts, "audit_evidence_lost");
    }
}

async fn dead_letters_cannot_be_written(drill: &mut Drill) {
    let stack = Arc::clone(&drill.world.stack);
    let row = drill.suffers(
        "dead letters cannot be written",
        WHILE,
        async |stack| {
            drop(stack.redis(&format!("DEL {DEAD_LETTERS}")).await);
            drop(stack.redis(&format!("SET {DEAD_LETTERS} taken")).await);
            stack.poisons_evidence().await;
        },
        async |stack| drop(stack.redis(&format!("DEL {DEAD_LETTERS}")).await),
    );
    let Some(row) = row.await else { return };
    row.must_say(Part::Audit, "consumer_unhealthy");
    eventually("the poison is a dead letter", async || {
        stack.redis(&format!("XLEN {DEAD_LETTERS}")).await == redis::Value::Int(1)
    })
    .await;
}

/// The Audit that verifies and signs dies, and its lease has to run out before another one does.
async fn the_leading_audit_is_killed(drill: &mut Drill) {
    let first = drill.world.stack.urls.audit.clone();
    let second = drill.world.stack.another(Part::Audit).await;
    let signed = async |stack: &Stack, audit: &str| {
        let bearer = stack.setting("METRICS_BEARER");
        let metrics = stack
            .http
            .get(format!("{audit}/metrics"), Some(bearer))
            .await;
        let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
        let number = |line: &str| {
            line.strip_prefix("caracal_audit_checkpoints_total ")?
                .parse()
                .ok()
        };
        metrics.lines().find_map(number).unwrap_or(0u64)
    };
    let row = drill.suffers(
        "the Audit that signs checkpoints is killed",
        MOST_OF_A_LEASE,
        async |stack| {
            eventually("the first Audit signs", async || {
                signed(stack, &first).await > 0
            })
            .await;
            assert_eq!(signed(stack, &second).await, 0, "one leads");
            stack.kill9_replica(Part::Audit, 0);
        },
        async |stack| {
            eventually("the other Audit signs", async || {
                signed(stack, &second).await > 0
            })
            .await;
            stack.starts_again();
        },
    );
    let Some(row) = row.await else { return };
    assert_eq!(row.refused, 0, "nobody waits for it: {row:?}");
    // Every checkpoint of both is of one history.
    let verified = drill.world.stack.caracal("audit verify").await;
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(
        verified.status.success() && said.contains("signed"),
        "{said}"
    );
}

async fn a_policy_is_broken(drill: &mut Drill) {
    let zone = drill.world.zone.clone();
    drill
        .suffers(
            "the policy in force does not compile",
            WHILE,
            async |stack| {
                stack.breaks_policy(&zone, true).await;
                stack.kill9(&[Part::Sts]);
                stack.restart().await;
            },
            async |stack| {
                let url = format!("{}/metrics.json", stack.urls.sts);
                let bearer = stack.setting("METRICS_BEARER");
                let metrics = stack.http.get(url, Some(bearer)).await.json();
                assert!(
                    metrics["opa"]["compile_errors"].as_u64() > Some(0),
                    "{metrics}"
                );
                stack.breaks_policy(&zone, false).await;
                stack.renames_zone(&zone).await;
            },
        )
        .await;
}

/// `verify` names the row that somebody changed.
async fn a_row_is_changed(world: &World) {
    let of_the_zone = format!(
        "chain_seq = 3 AND zone_no = (SELECT zone_no FROM audit_zones WHERE zone_id = '{}')",
        world.zone
    );
    let change = |to: &str| format!("UPDATE audit_events SET decision = {to} WHERE {of_the_zone}");
    let stack = &world.stack;
    let is_named = async |line: &str, finding: &str| {
        let verified = stack.caracal(line).await;
        let said = String::from_utf8_lossy(&verified.stdout).into_owned()
            + &String::from_utf8_lossy(&verified.stderr);
        assert!(!verified.status.success(), "{said}");
        assert!(said.contains(finding), "{said}");
    };
    stack.sql(&change("decision || '!'")).await;
    is_named("audit verify", "event 3: its columns do not say").await;
    stack.sql(&change("rtrim(decision, '!')")).await;

    // What an administrator did as well, and to whoever asks the API.
    let change = |from: &str, to: &str| {
        format!(
            "UPDATE admin_audit_events SET record = replace(record, '{from}', '{to}')
             WHERE chain_seq = 1 AND zone_id = '{}'",
            world.zone
        )
    };
    stack.sql(&change("POST", "GOST")).await;
    let live = format!("audit verify --api-url {}", stack.urls.api);
    is_named(&live, "record 1: the event was changed").await;
    stack.sql(&change("GOST", "POST")).await;
    let verified = stack.caracal(&live).await;
    assert!(verified.status.success(), "{verified:?}");
}
