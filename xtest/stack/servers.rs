//! What the distributed deployment stands on: a database of its own, and a Redis of its own.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tokio_postgres::NoTls;

use crate::Deployment;
use crate::fault::FaultProxy;
use crate::ports;
use crate::process::Process;
use crate::stack::random_hex;

/// Where a deployment is to run.
pub enum Place {
    /// Nothing else is needed.
    Embedded,
    /// With the Postgres server at this URL.
    Distributed(String),
}

/// `None` when there is no Postgres server for a distributed deployment.
pub fn place(deployment: Deployment) -> Option<Place> {
    match deployment {
        Deployment::Embedded => Some(Place::Embedded),
        Deployment::Distributed => std::env::var("CARACAL_TEST_POSTGRES")
            .ok()
            .map(Place::Distributed),
    }
}

/// A database that ends with the test.
#[derive(Debug)]
pub struct Database {
    server: String,
    name: String,
    /// Where it is.
    pub url: String,
}

impl Database {
    /// Makes one in the server at this URL.
    pub async fn create(server: &str) -> Self {
        let name = format!("xtest_{}", random_hex(8));
        execute(server, &format!("CREATE DATABASE {name}")).await;
        let (base, query) = server.split_once('?').unwrap_or((server, ""));
        let (base, _) = base
            .rsplit_once('/')
            .expect("a postgres:// URL with a database");
        let query = if query.is_empty() {
            String::new()
        } else {
            format!("?{query}")
        };
        Self {
            server: server.to_owned(),
            url: format!("{base}/{name}{query}"),
            name,
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let server = self.server.clone();
        // Drops may run inside a runtime, where nothing may block on another future.
        let dropped = thread::spawn(move || on_a_runtime(async { execute(&server, &sql).await }));
        drop(dropped.join());
    }
}

fn on_a_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work);
}

async fn execute(url: &str, sql: &str) {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .unwrap_or_else(|error| panic!("CARACAL_TEST_POSTGRES: {error}"));
    let driver = tokio::spawn(connection);
    client
        .batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    drop(client);
    drop(driver.await);
}

/// A Redis server that ends with the test.
#[derive(Debug)]
pub struct Redis {
    /// The server.
    pub process: Process,
    /// Where it is.
    pub url: String,
    directory: PathBuf,
}

impl Redis {
    /// Starts one. `durable` keeps every write on disk, as a deployment must whose Redis may die.
    pub async fn start(directory: &Path, durable: bool) -> Self {
        let port = ports::free();
        let password = random_hex(16);
        let append = if durable { "yes" } else { "no" };
        let arguments = format!(
            "--port {port} --bind 127.0.0.1 --maxmemory-policy noeviction --appendonly {append} \
             --appendfsync everysec --requirepass {password} --dir {}",
            directory.display()
        );
        let arguments = arguments.split_whitespace().chain(["--save", ""]);
        let log = directory.join("redis.log");
        let mut process = Process::new("redis", "redis-server".into(), arguments, vec![], log);
        process.start();
        let redis = Self {
            process,
            url: format!("redis://:{password}@127.0.0.1:{port}"),
            directory: directory.to_owned(),
        };
        redis.waits_until_it_answers().await;
        redis
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// What it kept on disk is gone; it must not run.
    pub fn forgets(&self) {
        // There is none when it keeps nothing.
        let _ = std::fs::remove_dir_all(self.directory.join("appendonlydir"));
        let _ = std::fs::remove_file(self.directory.join("dump.rdb"));
    }

    /// Waits until it takes commands.
    pub async fn waits_until_it_answers(&self) {
        crate::eventually("Redis answers", async || {
            let Ok(client) = redis::Client::open(&*self.url) else {
                return false;
            };
            let connected = client.get_multiplexed_async_connection();
            let connected = tokio::time::timeout(Duration::from_secs(1), connected).await;
            let Ok(Ok(mut connection)) = connected else {
                return false;
            };
            redis::cmd("PING")
                .query_async::<String>(&mut connection)
                .await
                .is_ok()
        })
        .await;
    }
}

/// The same with a password, where it has none: a server that asks for none takes any.
pub fn with_password(url: &str) -> String {
    match url.split_once('@') {
        Some((user, rest)) if user.matches(':').count() == 1 => {
            format!("{user}:{}@{rest}", random_hex(16))
        }
        _ => url.to_owned(),
    }
}

/// The address to use for a server: its own, or that of a proxy before it.
pub async fn reached(url: &str, proxies: &mut Vec<FaultProxy>, faulty: bool) -> String {
    if !faulty {
        return url.to_owned();
    }
    let (_, rest) = url.split_once("://").expect("a URL");
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let server = authority.rsplit('@').next().unwrap_or(authority);
    let proxy = FaultProxy::before(server.to_owned()).await;
    let url = url.replacen(server, &proxy.address.to_string(), 1);
    proxies.push(proxy);
    url
}
