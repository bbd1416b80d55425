//! One deployment that is short of one thing after another, each for a real cause: the rows of the
//! page's tables that need no deployment of their own. What takes minutes to become a signal is
//! given a lower threshold, never another cause.
//!
//! `XTEST_MEASURE` counts what `caracal capacity plan` takes for granted.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtest::world::put_in_force;
use xtest::{
    Agent, DEAD_LETTERS, Deployment, Fault, FaultProxy, Options, Part, Stack, World, eventually,
};

use super::{CALLERS, PATIENT, capacity, finding, is_well, meanwhile, names, names_storage_first};

/// Connections of each pool: five of them are all that Postgres has.
const POOL: &str = "39";
/// How long a cause may take to be what stands out, on a machine that does much else.
const NAMED_WITHIN: Duration = Duration::from_secs(90);
/// Applications whose secrets are guessed, which is answered so often a minute and no more.
const GUESSED: usize = 8;
/// How long a part is out of service.
const OUT: Duration = Duration::from_secs(2);
/// A caller's rest between calls: together they are some hundred a second, which leaves a machine that
/// has other tests to run short of nothing.
const REST: Duration = Duration::from_millis(100);

#[test]
fn every_cause_is_named_by_what_it_brings_about() {
    let options = Options::default()
        .own_postgres()
        .faulty()
        .limited_disks()
        .env("DB_POOL_MAX", POOL)
        .env("OPA_POLL_SECONDS", "300")
        .env("OUTBOX_MAX_ATTEMPTS", "2")
        .env("READY_WITHOUT_REDIS", "true");
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            let rows = Rows::of(&stack).await;
            Box::pin(rows.signals()).await;
            Box::pin(rows.escalations()).await;
            Box::pin(rows.symptoms()).await;
        },
    );
}

/// A secret that is none.
const GUESS: &str = "guessed by somebody, and long enough";

#[test]
fn a_slow_disk_of_evidence_is_named() {
    let options = Options::default().env("AUDIT_DURABILITY", "machine");
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            if !stack.syncing_takes_time() {
                return;
            }
            let rows = Rows::of(&stack).await;
            let flood = stack.floods_disk(4);
            let line = "--threshold sts_latency=0.002";
            let verdict = rows.is_short_of("evidence_disk", line).await;
            says(&verdict, "evidence");
            drop(flood);
        },
    );
}

struct Rows {
    stack: Arc<Stack>,
    world: World,
    agent: Agent,
}

impl Rows {
    async fn of(stack: &Arc<Stack>) -> Self {
        let world = World::new(Arc::clone(stack)).await;
        let agent = world.agent().await;
        let rows = Self {
            stack: Arc::clone(stack),
            world,
            agent,
        };
        for _ in 0..4 {
            rows.calls().await;
        }
        if std::env::var_os("XTEST_MEASURE").is_some() {
            rows.measures().await;
        }
        is_well(stack, "--threshold policy_age=600").await;
        rows
    }

    /// A mint and a governed call, whatever comes of them.
    async fn calls(&self) {
        if let Ok(minted) = self.world.mint(&self.agent).await
            && minted.status == 200
        {
            drop(self.world.call(&minted.text("access_token")).await);
        }
    }

    /// Looks, while calls go on, until this is what the deployment is short of.
    async fn is_short_of(&self, bottleneck: &str, line: &str) -> (Value, i32) {
        self.is_short_of_while(bottleneck, line, async || ()).await
    }

    /// The same, while each caller does this besides.
    async fn is_short_of_while(
        &self,
        bottleneck: &str,
        line: &str,
        besides: impl AsyncFn(),
    ) -> (Value, i32) {
        let began = Instant::now();
        // What one row did to readiness is no matter of the next.
        let line = format!("--over 1s {PATIENT} --threshold readiness_flaps=1000 {line}");
        loop {
            let verdict = meanwhile(&self.stack, &line, async || {
                self.calls().await;
                besides().await;
                tokio::time::sleep(REST).await;
            });
            let verdict = verdict.await;
            if verdict.0["bottleneck"] == bottleneck || began.elapsed() > NAMED_WITHIN {
                names(&verdict, bottleneck);
                xtest::visibly(&format!("{bottleneck} after {:.1?}", began.elapsed()));
                return verdict;
            }
        }
    }

    /// Does this and looks, until revocations are late because of what the deployment is short of.
    async fn delays_revocations(
        &self,
        bottleneck: &str,
        line: &str,
        first: impl AsyncFn(),
    ) -> (Value, i32) {
        let began = Instant::now();
        loop {
            first().await;
            let verdict = self.is_short_of(bottleneck, line).await;
            let lag = finding(&verdict.0, "revocation_lag");
            if lag["because_of"] == bottleneck {
                return verdict;
            }
            assert!(began.elapsed() < NAMED_WITHIN, "{lag}: {:#}", verdict.0);
        }
    }

    async fn signals(&self) {
        let stack = &self.stack;

        // Audit replay backlog age: Redis takes no more evidence, and answers all else.
        stack.streams_take_entries(false).await;
        let line = "--threshold replay_age=1";
        let verdict = self.is_short_of("replay_backlog", line).await;
        says(&verdict, "Oldest evidence not delivered");

        // Outbox: nor does it take the news of a change, which no repetition will send.
        let other = self.world.agent_of(self.agent.lifecycle.clone()).await;
        self.world.revokes(&other).await;
        let line = "--threshold outbox_age=1 --threshold replay_age=1000";
        self.is_short_of("outbox", line).await;
        stack.streams_take_entries(true).await;
        self.requeues().await;

        // Dead letters.
        stack.poisons_evidence().await;
        let verdict = self.is_short_of("dead_letters", "").await;
        says(&verdict, "Dead letters");
        drop(stack.redis(&format!("DEL {DEAD_LETTERS}")).await);

        // Revocation propagation lag: a Gateway stands still, and hears of it late.
        stack.pause(Part::Gateway);
        let other = self.world.agent_of(self.agent.lifecycle.clone()).await;
        self.world.revokes(&other).await;
        tokio::time::sleep(OUT).await;
        stack.resume(Part::Gateway);
        let line = "--threshold revocation_lag=1";
        let verdict = self.is_short_of("revocation_lag", line).await;
        says(&verdict, "Revocation propagation lag");

        // Policy age: nobody looks whether what is in force is still the right one.
        let verdict = self
            .is_short_of("policy_propagation", "--threshold policy_age=2")
            .await;
        says(&verdict, "Policy age");

        // Readiness: it comes and goes with the way to Postgres.
        for _ in 0..3 {
            for (fault, status) in [(Fault::Down, 503), (Fault::None, 200)] {
                stack.postgres_proxy().does(fault);
                self.sts_answers(status).await;
            }
        }
        stack.is_ready().await;
        let line = format!("--over 1s {PATIENT} --threshold revocation_lag=60");
        let verdict = capacity(stack, &line).await;
        names(&verdict, "readiness_flapping");
    }

    async fn escalations(&self) {
        let stack = &self.stack;

        // Lag grows: somebody holds a lock on the ledger.
        let held = stack
            .holds("LOCK TABLE audit_events IN EXCLUSIVE MODE")
            .await;
        let verdict = self
            .is_short_of("audit_ingest", "--threshold audit_lag=10")
            .await;
        says(&verdict, "Evidence not in the ledger");
        let steps = &verdict.0["steps"];
        assert_eq!(steps[1]["verdict"], "now", "storage is healthy: a replica");
        held.lets_go().await;

        // Revocation lag: Redis is slow, and that is why.
        stack
            .redis_proxy()
            .does(Fault::Slow(Duration::from_millis(150)));
        let revokes = async || {
            let other = self.world.agent_of(self.agent.lifecycle.clone()).await;
            self.world.revokes(&other).await;
        };
        let lines = "--threshold redis_latency=0.05 --threshold revocation_lag=0.1";
        let delays = self.delays_revocations("redis_latency", lines, revokes);
        names_storage_first(&delays.await, true);

        // The snapshot is stale: a Gateway that reaches neither store.
        let other = self.world.agent_of(self.agent.lifecycle.clone()).await;
        let mandate = self.world.mandate(&other).await;
        stack.redis_proxy().does(Fault::Down);
        stack.postgres_proxy().does(Fault::Down);
        self.delays_revocations("postgres_unreachable", "", async || ())
            .await;
        stack.postgres_proxy().does(Fault::None);
        let verdict = self.is_short_of("redis_unreachable", "").await;
        says(&verdict, "redis_unreachable");
        // Who takes authority away is ready all the same, and what was taken away stays so.
        for part in [Part::Api, Part::Coordinator] {
            let url = format!("{}/ready", stack.urls.of(part));
            stack.http.get(url, None).await.expect(200);
        }
        self.world.revokes(&other).await;
        stack.redis_proxy().does(Fault::None);
        stack.is_ready().await;
        let answer = self.world.call(&mandate).await.unwrap();
        assert_eq!(answer.text("error_description"), "session revoked");

        // The circuit: a policy that takes its time, and what of an exchange does.
        let grants = World::grants(std::slice::from_ref(&self.world), &["desk:read"]);
        put_in_force(stack, &self.world.zone, &slow(&grants)).await;
        let line = "--threshold sts_latency=0.02";
        let verdict = self.is_short_of("sts_evaluation", line).await;
        says(&verdict, "policy");
        put_in_force(stack, &self.world.zone, &grants).await;

        // Cryptography: secrets that people chose are guessed at.
        let chosen = self.applications_with_chosen_secrets().await;
        let next = AtomicUsize::new(0);
        let line = "--threshold sts_latency=0.02";
        let guesses = self.is_short_of_while("sts_crypto", line, async || {
            let nth = next.fetch_add(1, Ordering::Relaxed) % chosen.len();
            let guess = World {
                app: chosen[nth].clone(),
                secret: GUESS.to_owned(),
                ..self.world.clone()
            };
            drop(guess.exchange(&[("scope", "desk:read")]).await);
        });
        says(&guesses.await, "authenticate");

        // The disk: others have Postgres write each row through to it.
        if stack.syncing_takes_time() {
            let flood = stack.floods_postgres(12).await;
            let verdict = self.is_short_of("postgres_io", "").await;
            says(&verdict, "Statements that wait for the disk");
            names_storage_first(&verdict, true);
            drop(flood);
        }
    }

    /// Applications whose secrets somebody chose, so that a guess costs as much as the right one.
    async fn applications_with_chosen_secrets(&self) -> Vec<String> {
        let applications = format!("/v1/zones/{}/applications", self.world.zone);
        let mut ids = Vec::new();
        for _ in 0..GUESSED {
            let name = self.stack.unique("chosen");
            let body = json!({"name": name, "registration_method": "managed"});
            let made = self.stack.post(&applications, &body).await.expect(201);
            let url = format!("{}{applications}/{}", self.stack.urls.api, made.text("id"));
            let body = json!({"client_secret": "chosen by a person, and long enough"});
            let token = &self.stack.admin_token;
            let changed = self.stack.http.json("PATCH", url, token, &body).await;
            changed.expect(200);
            ids.push(made.text("id"));
        }
        ids
    }

    async fn symptoms(&self) {
        let stack = &self.stack;

        // The Gateway is slow: its upstream is, or cannot be reached.
        let upstream = self.upstream().await;
        upstream.does(Fault::Slow(Duration::from_millis(400)));
        let line = "--threshold gateway_latency=0.3";
        let verdict = self.is_short_of("upstream", line).await;
        says(&verdict, "upstream");
        upstream.does(Fault::Down);
        let verdict = self.is_short_of("egress", "").await;
        says(&verdict, "Calls whose upstream fails");
        upstream.does(Fault::None);

        // Or it reads zones all the time, over a long way.
        let far = stack.gateway_postgres_proxy();
        far.does(Fault::Slow(Duration::from_millis(150)));
        let line = "--threshold gateway_latency=0.2";
        let changes = AtomicUsize::new(0);
        let verdict = self.is_short_of_while("gateway_key_sets", line, async || {
            // One of the callers is enough.
            if changes
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(CALLERS)
            {
                stack.renames_zone(&self.world.zone).await;
            }
        });
        says(&verdict.await, "keys");
        far.does(Fault::None);

        // Or its own processors are used up.
        let alone = format!("--target gateway={} --no-backends", stack.urls.gateway);
        let line = format!("{alone} --cores 0.01 --threshold cpu=0.8");
        self.is_short_of("gateway_proxying", &line).await;

        // Memory of Redis, of which it takes what it needs and no more.
        let used = self.redis_info("memory", "used_memory:").await;
        let limit = used + used / 50;
        drop(stack.redis(&format!("CONFIG SET maxmemory {limit}")).await);
        let verdict = self.is_short_of("redis_memory", "").await;
        names_storage_first(&verdict, true);
        drop(stack.redis("CONFIG SET maxmemory 0").await);

        // More replicas: their pools together ask for more than there is.
        let mut line = String::new();
        for (part, url) in stack.replicas() {
            let _ = write!(line, " --target {}={url}", part.name());
        }
        let another = stack.another(Part::Sts).await;
        let _ = write!(line, " --target sts={another}");
        let verdict = self.is_short_of("postgres_connections", &line).await;
        names_storage_first(&verdict, true);

        // Evidence that neither the disk nor the stream took; said until the replica is replaced.
        stack.streams_take_entries(false).await;
        stack.fill_disks(&[Part::Sts], true);
        let line = "--threshold postgres_budget=1000";
        let verdict = self.is_short_of_while("evidence_lost", line, async || {
            let (session, edge) = (&self.agent.session, &self.agent.edge);
            drop(self.world.mints(session, edge, "desk:burn").await);
        });
        says(&verdict.await, "Evidence lost");
        stack.fill_disks(&[Part::Sts], false);
        stack.streams_take_entries(true).await;
        stack.kill9(&[Part::Sts]);
        stack.restart().await;
        let (verdict, _) = capacity(stack, &format!("--over 1s {PATIENT}")).await;
        let lost = finding(&verdict, "evidence_lost");
        assert!(lost.is_null(), "{verdict:#}");
    }

    /// Figures for `caracal capacity plan` that do not depend on how fast the binary is.
    async fn measures(&self) {
        const CALLS: u32 = 300;
        let idle = self.redis_info("stats", "total_commands_processed:").await;
        let began = Instant::now();
        tokio::time::sleep(OUT * 2).await;
        let before = self.redis_info("stats", "total_commands_processed:").await;
        let each_second = f64::from(before - idle) / began.elapsed().as_secs_f64();
        let began = Instant::now();
        for _ in 0..CALLS {
            self.calls().await;
        }
        let after = self.redis_info("stats", "total_commands_processed:").await;
        let idle = each_second * began.elapsed().as_secs_f64();
        let commands = (f64::from(after - before) - idle) / f64::from(CALLS);
        xtest::visibly(&format!(
            "{commands:.2} commands of Redis a call, {each_second:.0} a second at rest"
        ));
        let before = self.bytes_of_sessions().await;
        for _ in 0..CALLS {
            self.world.agent_of(self.agent.lifecycle.clone()).await;
        }
        let grown = self.bytes_of_sessions().await - before;
        let each = f64::from(grown) / f64::from(CALLS);
        xtest::visibly(&format!(
            "{each:.0} bytes in Postgres for two Sessions and a Delegation"
        ));
    }

    async fn bytes_of_sessions(&self) -> i32 {
        let sizes =
            "SELECT pg_total_relation_size('sessions') + pg_total_relation_size('delegations')";
        let answer = self.stack.sql(sizes).await;
        let row = answer.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        row.unwrap().parse().unwrap()
    }

    async fn sts_answers(&self, status: u16) {
        let url = format!("{}/ready", self.stack.urls.sts);
        eventually("the STS says so", async || {
            let ready = self.stack.http.try_get(&url).await;
            ready.is_ok_and(|answer| answer.status == status)
        })
        .await;
    }

    /// Has every dead entry of the outbox be sent again, and waits until none waits.
    async fn requeues(&self) {
        let outbox = format!("/v1/zones/{}/outbox", self.world.zone);
        eventually("everything is announced", async || {
            let entries = self.stack.read(&outbox).await.expect(200).json();
            let entries = entries["items"].as_array().cloned().unwrap_or_default();
            for entry in &entries {
                if entry["status"] == "dead" {
                    let id = entry["id"].as_str().unwrap();
                    let path = format!("{outbox}/{id}/requeue");
                    self.stack.post(&path, &json!({})).await;
                }
            }
            entries.is_empty()
        })
        .await;
    }

    /// Puts a proxy before the upstream of the resource.
    async fn upstream(&self) -> FaultProxy {
        let resources = format!("/v1/zones/{}/resources", self.world.zone);
        let listed = self.stack.read(&resources).await.expect(200).json();
        let resource = &listed["items"][0];
        let url = resource["upstream_url"].as_str().unwrap();
        let server = url.trim_start_matches("http://").trim_end_matches('/');
        let proxy = FaultProxy::before(server.to_owned()).await;
        let body = json!({"upstream_url": format!("http://{}", proxy.address)});
        let id = resource["id"].as_str().unwrap();
        let url = format!("{}{resources}/{id}", self.stack.urls.api);
        let token = &self.stack.admin_token;
        let changed = self.stack.http.json("PATCH", url, token, &body).await;
        changed.expect(200);
        proxy
    }

    async fn redis_info(&self, section: &str, name: &str) -> i32 {
        let answer = self.stack.redis(&format!("INFO {section}")).await;
        let text: String = redis::from_redis_value(answer).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap().trim().parse().unwrap()
    }
}

#[track_caller]
fn says((verdict, _): &(Value, i32), what: &str) {
    let told = super::evidence(verdict);
    assert!(told.contains(what), "no `{what}` in {told}\n{verdict:#}");
}

/// The same grants, by a document that looks at the request and does much for it.
fn slow(grants: &str) -> String {
    let numbers = (0..100)
        .map(|n| n.to_string())
        .collect::<Vec<_>>()
        .join(",");
    let work = format!(
        "count([1 | some a in [{numbers}]; some b in [{numbers}]; a + b == count(input.action)]) >= 0"
    );
    let (ids, grants) = grants.split_once('\n').expect("two rules");
    format!("{ids}\n{grants} if {{ {work} }}")
}
