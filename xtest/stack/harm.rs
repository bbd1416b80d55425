//! What a deployment is made to suffer: killed, cut off, without its data, without room, at another
//! time.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::stack::{Deployment, Part, Stack};
use crate::{FaultProxy, Process, clock};

/// Where evidence waits until it is in the ledger.
pub const EVIDENCE: &str = "caracal.audit.events";
/// Where evidence is put aside that cannot be.
pub const DEAD_LETTERS: &str = "caracal.audit.events.dlq";

/// A transaction of somebody else that stays open.
#[derive(Debug)]
pub struct Held {
    client: tokio_postgres::Client,
    driver: tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>,
}

/// Writes that tell whether syncing costs anything.
const SYNCS: u32 = 20;

/// Writers that are at it.
#[derive(Debug)]
pub struct Flood(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Held {
    /// Ends it.
    pub async fn lets_go(self) {
        drop(self.client);
        drop(self.driver.await);
    }
}

impl Stack {
    /// `kill -9` of these services at once; embedded, any of them takes all with it.
    pub fn kill9(&self, parts: &[Part]) {
        for process in self.processes.lock().iter_mut() {
            let named = parts.iter().any(|part| part.name() == process.name);
            if named || self.deployment == Deployment::Embedded {
                process.kill9();
            }
        }
    }

    /// Stops this service's process where it is; embedded, all of them.
    pub fn pause(&self, part: Part) {
        self.each_of(&[part], Process::pause);
    }

    /// Lets it go on.
    pub fn resume(&self, part: Part) {
        self.each_of(&[part], Process::resume);
    }

    fn each_of(&self, parts: &[Part], does: impl Fn(&Process)) {
        for process in self.processes.lock().iter() {
            let named = parts.iter().any(|part| part.name() == process.name);
            if named || self.deployment == Deployment::Embedded {
                does(process);
            }
        }
    }

    /// `kill -9` of one replica of a service.
    ///
    /// # Panics
    /// When there is no such replica.
    pub fn kill9_replica(&self, part: Part, nth: usize) {
        let mut processes = self.processes.lock();
        let mut replicas = processes.iter_mut().filter(|one| one.name == part.name());
        replicas.nth(nth).expect("a replica").kill9();
    }

    /// `kill -9` of the Redis server.
    ///
    /// # Panics
    /// When there is none.
    pub async fn kill9_redis(&self) {
        self.redis.as_ref().expect("a Redis").lock().await.kill9();
    }

    /// Starts the Redis server that was killed, with what it had written or without.
    ///
    /// # Panics
    /// When there is none, or it does not start.
    pub async fn start_redis(&self, with_its_data: bool) {
        let mut redis = self.redis.as_ref().expect("a Redis").lock().await;
        if !with_its_data {
            redis.forgets();
        }
        redis.process.start();
        redis.waits_until_it_answers().await;
    }

    /// Sends a command to Redis, as an operator would; answers what it says.
    ///
    /// # Panics
    /// When it cannot be reached, or refuses.
    pub async fn redis(&self, line: &str) -> redis::Value {
        let client = redis::Client::open(self.redis_url().expect("a Redis")).expect("a URL");
        let mut connection = client
            .get_multiplexed_async_connection()
            .await
            .expect("a connection");
        let mut words = line.split_whitespace();
        let mut command = redis::cmd(words.next().expect("a command"));
        for word in words {
            command.arg(word);
        }
        let answer = command.query_async(&mut connection).await;
        answer.unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Has the Postgres server of this deployment end at once.
    ///
    /// # Panics
    /// When it has none of its own ([`crate::Options::own_postgres`]).
    pub async fn crash_postgres(&self) {
        let own = self.postgres.as_ref().expect("Options::own_postgres");
        own.lock().await.crashes();
    }

    /// Starts it again.
    ///
    /// # Panics
    /// As [`Stack::crash_postgres`], or when it does not start.
    pub async fn start_postgres(&self) {
        let own = self.postgres.as_ref().expect("Options::own_postgres");
        own.lock().await.starts().await;
    }

    /// Runs statements in its database, as an intruder would.
    ///
    /// # Panics
    /// When they fail.
    pub async fn sql(&self, text: &str) -> Vec<tokio_postgres::SimpleQueryMessage> {
        let session = self.session_of_postgres().await;
        let answer = session.client.simple_query(text).await;
        session.lets_go().await;
        answer.unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Somebody else writes much into its database, each row on disk before the next, until this is
    /// dropped.
    ///
    /// # Panics
    /// When it cannot be begun.
    pub async fn floods_postgres(&self, writers: usize) -> Flood {
        // One by one: a setting of the server is not changed within a transaction.
        for statement in [
            "ALTER SYSTEM SET fsync = on",
            "SELECT pg_reload_conf()",
            "CREATE TABLE flood (line text)",
        ] {
            self.sql(statement).await;
        }
        let mut flood = Vec::new();
        for _ in 0..writers {
            let session = self.session_of_postgres().await;
            flood.push(tokio::spawn(async move {
                let row = "INSERT INTO flood (line) VALUES (repeat('x', 2000))";
                while session.client.batch_execute(row).await.is_ok() {}
            }));
        }
        Flood(flood)
    }

    /// Whether writing through to the disk of this deployment takes time. In memory, or where syncing
    /// is made to do nothing, no flood of writes makes anybody wait, and what a slow disk does cannot
    /// be shown; that is said then.
    ///
    /// # Panics
    /// When the disk takes nothing.
    pub fn syncing_takes_time(&self) -> bool {
        let path = self.directory.path().join("synced");
        let began = Instant::now();
        for _ in 0..SYNCS {
            std::fs::write(&path, vec![0u8; 1 << 16]).expect("a disk");
            let synced = std::fs::File::open(&path).and_then(|file| file.sync_all());
            synced.expect("a disk");
        }
        let takes = began.elapsed() > SYNCS * Duration::from_micros(200);
        if !takes {
            crate::visibly("SKIPPED: what a slow disk does: syncing to this one costs nothing");
        }
        takes
    }

    /// Somebody else writes to the disk of this deployment, each piece through to the device, until
    /// this is dropped.
    pub fn floods_disk(&self, writers: usize) -> Flood {
        let write = |nth| {
            let path = self.directory.path().join(format!("flood-{nth}"));
            tokio::spawn(async move {
                loop {
                    let path = path.clone();
                    let written = tokio::task::spawn_blocking(move || {
                        std::fs::write(&path, vec![0u8; 1 << 20])?;
                        std::fs::File::open(&path)?.sync_all()
                    });
                    written.await.expect("a thread").expect("a disk");
                }
            })
        };
        Flood((0..writers).map(write).collect())
    }

    /// Leaves a transaction open that did this, as a person with a console does.
    ///
    /// # Panics
    /// When it fails.
    pub async fn holds(&self, text: &str) -> Held {
        let held = self.session_of_postgres().await;
        let begun = held.client.batch_execute(&format!("BEGIN; {text}")).await;
        begun.unwrap_or_else(|error| panic!("{text}: {error}"));
        held
    }

    async fn session_of_postgres(&self) -> Held {
        let url = self.setting("DATABASE_URL");
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
            .await
            .expect("the database");
        let driver = tokio::spawn(connection);
        Held { client, driver }
    }

    /// Redis refuses every new entry of a stream, or takes them again; all else it answers.
    ///
    /// # Panics
    /// When it cannot be told.
    pub async fn streams_take_entries(&self, take: bool) {
        let sign = if take { '+' } else { '-' };
        drop(self.redis(&format!("ACL SETUSER default {sign}xadd")).await);
    }

    /// Puts an entry among the evidence that is none.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn poisons_evidence(&self) {
        let entry = r#"* id poison data {"no":"event"}"#;
        drop(self.redis(&format!("XADD {EVIDENCE} {entry}")).await);
    }

    /// Somebody changes what policy says in the database, past everything that would refuse it, so
    /// that it does not compile; or back. A version that was compiled is not read again, so it is the
    /// next process that finds out.
    ///
    /// # Panics
    /// When it cannot be changed.
    pub async fn breaks_policy(&self, zone: &str, broken: bool) {
        let content = if broken {
            "content || ' p := ('"
        } else {
            "replace(content, ' p := (', '')"
        };
        self.sql(&format!(
            "SET session_replication_role = replica;
             UPDATE policy_versions SET content = {content} WHERE zone_id = '{zone}'"
        ))
        .await;
    }

    /// Has every replica read a zone again.
    ///
    /// # Panics
    /// When the deployment refuses.
    pub async fn renames_zone(&self, zone: &str) {
        let name = json!({"name": self.unique("zone")});
        let url = format!("{}/v1/zones/{zone}", self.urls.api);
        let answer = self.http.json("PATCH", url, &self.admin_token, &name).await;
        answer.expect(200);
    }

    /// The disk of these services is full, or has room again; embedded there is one disk for all.
    ///
    /// # Panics
    /// When the system refuses. Needs [`crate::Options::limited_disks`].
    pub fn fill_disks(&self, parts: &[Part], full: bool) {
        self.each_of(parts, |process| process.file_limit(full.then_some(0)));
    }

    /// Whether the clocks of this deployment can be told to step.
    pub fn has_stepping_clock(&self) -> bool {
        clock::file(self.directory.path()).exists()
    }

    /// The clocks of all its processes are off by so many seconds.
    ///
    /// # Panics
    /// When they cannot be stepped.
    pub fn step_clocks(&self, seconds: i64) {
        assert!(self.has_stepping_clock(), "Options::stepping_clock");
        clock::step(self.directory.path(), seconds);
    }

    /// The proxy before Redis.
    ///
    /// # Panics
    /// When it was not asked for.
    pub fn redis_proxy(&self) -> &FaultProxy {
        self.proxies.first().expect("Options::faulty")
    }

    /// The proxy on the Gateway's own way to Postgres.
    ///
    /// # Panics
    /// When it was not asked for.
    pub fn gateway_postgres_proxy(&self) -> &FaultProxy {
        self.proxies.get(2).expect("Options::faulty")
    }

    /// The proxy before Postgres.
    ///
    /// # Panics
    /// When it was not asked for.
    pub fn postgres_proxy(&self) -> &FaultProxy {
        self.proxies.get(1).expect("Options::faulty")
    }
}
