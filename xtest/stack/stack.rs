//! A deployment: its processes, where they listen, and its secrets.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use caracal_crypto::digest::hex_encode;
use caracal_crypto::os::OsRng;
use caracal_model::Rng as _;
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;

use crate::fault::FaultProxy;
use crate::http::{Answer, Http};
use crate::process::Process;
use crate::servers::{Database, Place, Redis};
use crate::{binary, ports};

/// How long a start may take, on a machine that builds something else at the same time.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// What a test must not be limited by. A test of a limit sets it back.
const LIMITS: &[(&str, &str)] = &[
    ("STS_MINT_RATE_LIMIT_PER_MIN", "1000000"),
    ("MAX_AGENTS_PER_ZONE", "1000"),
    ("MAX_AGENTS_PER_APP", "1000"),
    ("COORDINATOR_RATE_LIMIT_PER_MIN", "0"),
    ("API_V1_RATE_LIMIT_PER_MIN", "0"),
    ("API_RATE_LIMIT_PER_MIN", "0"),
    ("READY_RATE_LIMIT_PER_MIN", "0"),
    ("ADMIN_AUTH_FAIL_LIMIT_PER_MIN", "0"),
];

/// Secrets of a deployment: 32 random bytes each, in hex.
const SECRETS: &[&str] = &[
    "CARACAL_ADMIN_TOKEN",
    "CARACAL_COORDINATOR_TOKEN",
    "SECRET_STORE_KEK",
    "AUDIT_HMAC_KEY",
    "STREAMS_HMAC_KEY",
    "IDEMPOTENCY_HMAC_KEY",
    "GATEWAY_STS_HMAC_KEY",
    "METRICS_BEARER",
    "AUDIT_ADMIN_TOKEN",
];

/// 2 × `bytes` hex digits.
pub fn random_hex(bytes: usize) -> String {
    let mut random = vec![0u8; bytes];
    OsRng.fill(&mut random);
    hex_encode(&random)
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deployment {
    /// One process on SQLite.
    Embedded,
    /// A process for each service, on Postgres and Redis.
    Distributed,
}

/// How a deployment is set.
#[derive(Clone, Debug, Default)]
pub struct Options {
    env: Vec<(String, String)>,
    mirrored: bool,
    durable_redis: bool,
    faulty: bool,
}

impl Options {
    /// With a setting of the services.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a Redis to which an embedded deployment mirrors the published streams.
    #[must_use]
    pub fn mirrored(mut self) -> Self {
        self.mirrored = true;
        self
    }

    /// With a Redis that keeps what it was told when it is killed.
    #[must_use]
    pub fn durable_redis(mut self) -> Self {
        self.durable_redis = true;
        self
    }

    /// With a proxy before Postgres and one before Redis that can be told to misbehave.
    #[must_use]
    pub fn faulty(mut self) -> Self {
        self.faulty = true;
        self
    }
}

/// A service; embedded, all five live and die in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Management API.
    Api,
    /// Token exchange.
    Sts,
    /// Proxy.
    Gateway,
    /// Sessions and Delegations.
    Coordinator,
    /// Ledger.
    Audit,
}

impl Part {
    /// All five.
    pub const ALL: [Self; 5] = [
        Self::Api,
        Self::Sts,
        Self::Gateway,
        Self::Coordinator,
        Self::Audit,
    ];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Sts => "sts",
            Self::Gateway => "gateway",
            Self::Coordinator => "coordinator",
            Self::Audit => "audit",
        }
    }
}

/// Where the services listen.
#[derive(Clone, Debug)]
pub struct Urls {
    /// Management API.
    pub api: String,
    /// Token exchange; also the issuer of mandates.
    pub sts: String,
    /// Proxy.
    pub gateway: String,
    /// Sessions and Delegations.
    pub coordinator: String,
    /// Ledger.
    pub audit: String,
}

impl Urls {
    /// Of one service.
    pub fn of(&self, part: Part) -> &str {
        match part {
            Part::Api => &self.api,
            Part::Sts => &self.sts,
            Part::Gateway => &self.gateway,
            Part::Coordinator => &self.coordinator,
            Part::Audit => &self.audit,
        }
    }
}

/// A deployment of its own. Dropping it kills its processes and removes what they kept.
pub struct Stack {
    // In the order in which they may go: processes, then what they stand on.
    processes: Mutex<Vec<Process>>,
    redis: Option<Mutex<Redis>>,
    redis_url: Option<String>,
    _database: Option<Database>,
    proxies: Vec<FaultProxy>,
    directory: TempDir,
    environment: Vec<(String, String)>,
    /// Which of the two.
    pub deployment: Deployment,
    /// Where the services listen.
    pub urls: Urls,
    /// A client.
    pub http: Http,
    /// Of the platform administrator.
    pub admin_token: String,
    /// Of the operator, for the Coordinator.
    pub operator_token: String,
}

impl Stack {
    /// Starts one and waits until it is ready.
    pub(crate) async fn start(place: Place, options: Options) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("caracal-xtest-")
            .tempdir()
            .expect("a directory");
        let numbers = Part::ALL.map(|_| ports::free());
        let [api, sts, gateway, coordinator, audit] =
            numbers.map(|port| format!("http://127.0.0.1:{port}"));
        let urls = Urls {
            api,
            sts,
            gateway,
            coordinator,
            audit,
        };
        let mut environment = settings(&urls, &options);
        let setting = |name: &str| {
            let found = environment.iter().rev().find(|(of, _)| of == name);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let (admin_token, operator_token) = (
            setting("CARACAL_ADMIN_TOKEN"),
            setting("CARACAL_COORDINATOR_TOKEN"),
        );
        let deployment = match &place {
            Place::Embedded => Deployment::Embedded,
            Place::Distributed(_) => Deployment::Distributed,
        };
        let redis = match deployment {
            Deployment::Embedded if !options.mirrored => None,
            _ => Some(Redis::start(directory.path(), options.durable_redis).await),
        };
        let mut proxies = Vec::new();
        if let Some(redis) = &redis {
            let url = reached(&redis.url, &mut proxies, options.faulty).await;
            environment.push(("REDIS_URL".into(), url));
        }
        let database = match &place {
            Place::Embedded => None,
            Place::Distributed(server) => Some(Database::create(server).await),
        };
        if let Some(database) = &database {
            let url = reached(&database.url, &mut proxies, options.faulty).await;
            environment.push(("DATABASE_URL".into(), url));
        }
        environment.push((
            "CARACAL_HOME".into(),
            directory.path().join("data").display().to_string(),
        ));
        let stack = Self {
            processes: Mutex::default(),
            redis_url: redis.as_ref().map(|redis| redis.url.clone()),
            redis: redis.map(Mutex::new),
            _database: database,
            proxies,
            directory,
            environment,
            deployment,
            urls,
            http: Http::default(),
            admin_token,
            operator_token,
        };
        *stack.processes.lock() = match deployment {
            Deployment::Embedded => vec![stack.all_in_one(numbers)],
            Deployment::Distributed => {
                let migrated = stack.caracal("migrate").await;
                assert!(migrated.status.success(), "{migrated:?}");
                Part::ALL
                    .iter()
                    .zip(numbers)
                    .map(|(part, port)| stack.apart(*part, port))
                    .collect()
            }
        };
        stack.restart().await;
        stack
    }

    fn all_in_one(&self, [api, sts, gateway, coordinator, audit]: [u16; 5]) -> Process {
        let line = format!(
            "up --foreground --api-port {api} --sts-port {sts} --gateway-port {gateway} \
             --coordinator-port {coordinator} --audit-port {audit}"
        );
        let log = self.directory.path().join("caracal.log");
        let arguments = line.split_whitespace();
        Process::new(
            "caracal",
            binary::path().into(),
            arguments,
            self.environment.clone(),
            log,
        )
    }

    /// Starts another replica of a service beside those that run, and waits until it is ready; its
    /// address. Only where services are processes of their own.
    ///
    /// # Panics
    /// When it is not ready in time; with the logs.
    pub async fn another(&self, part: Part) -> String {
        assert_eq!(
            self.deployment,
            Deployment::Distributed,
            "one process has no replicas"
        );
        let port = ports::free();
        let mut replica = self.apart(part, port);
        replica.start();
        self.processes.lock().push(replica);
        let url = format!("http://127.0.0.1:{port}");
        self.answers_ready(part, &url).await;
        url
    }

    fn apart(&self, part: Part, port: u16) -> Process {
        let name = part.name();
        let mut environment = self.environment.clone();
        let running = self.processes.lock();
        let at = running
            .iter()
            .filter(|process| process.name == name)
            .count();
        drop(running);
        // A process of its own has a disk of its own.
        let replay = self.directory.path().join(format!("replay-{name}-{at}"));
        let own_port = format!("{}_PORT", name.to_uppercase());
        environment.push((own_port, port.to_string()));
        environment.push(("AUDIT_REPLAY_DIR".into(), replay.display().to_string()));
        environment.push(("HOSTNAME".into(), format!("{name}-{at}")));
        let log = self.directory.path().join(format!("{name}-{at}.log"));
        Process::new(
            name,
            binary::path().into(),
            ["serve", name],
            environment,
            log,
        )
    }

    /// Runs a command line of the binary on this deployment.
    ///
    /// # Panics
    /// When it cannot be run.
    pub async fn caracal(&self, line: &str) -> Output {
        let output = self.command(line).output().await;
        output.unwrap_or_else(|error| panic!("caracal {line}: {error}"))
    }

    /// The same command, to be run otherwise; it ends with whoever runs it.
    pub fn command(&self, line: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(binary::path());
        command
            .args(line.split_whitespace())
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("NO_COLOR", "1")
            .kill_on_drop(true);
        command
    }

    /// Everything that its processes have logged.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn logs(&self) -> String {
        let files = std::fs::read_dir(self.directory.path()).expect("a directory");
        let logs = files.filter_map(|file| {
            let path = file.expect("an entry").path();
            let is_log = path.extension().is_some_and(|of| of == "log");
            is_log
                .then(|| String::from_utf8_lossy(&std::fs::read(path).expect("a log")).into_owned())
        });
        logs.collect()
    }

    /// The binary that runs it.
    pub fn binary(&self) -> &'static Path {
        binary::path()
    }

    /// A `POST` to the API, as the platform administrator.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let url = format!("{}{path}", self.urls.api);
        self.http.json("POST", url, &self.admin_token, body).await
    }

    /// A `GET` of the API, as the platform administrator.
    pub async fn read(&self, path: &str) -> Answer {
        self.http
            .get(format!("{}{path}", self.urls.api), Some(&self.admin_token))
            .await
    }

    /// A name that this deployment has not seen yet.
    pub fn unique(&self, what: &str) -> String {
        format!("{what}-{}", random_hex(4))
    }

    /// The settings that every process of it has.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// One of them.
    ///
    /// # Panics
    /// When it is not set.
    pub fn setting(&self, name: &str) -> &str {
        // The last one wins, as for the processes.
        let found = self.environment.iter().rev().find(|(of, _)| of == name);
        found.map_or_else(|| panic!("{name} is not set"), |(_, value)| value)
    }

    /// Its Redis, if it has one.
    pub fn redis_url(&self) -> Option<&str> {
        self.redis_url.as_deref()
    }

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
        self.each_of(part, Process::pause);
    }

    /// Lets it go on.
    pub fn resume(&self, part: Part) {
        self.each_of(part, Process::resume);
    }

    fn each_of(&self, part: Part, does: fn(&Process)) {
        for process in self.processes.lock().iter() {
            if part.name() == process.name || self.deployment == Deployment::Embedded {
                does(process);
            }
        }
    }

    /// `kill -9` of the Redis server.
    ///
    /// # Panics
    /// When there is none.
    pub fn kill9_redis(&self) {
        self.redis.as_ref().expect("a Redis").lock().process.kill9();
    }

    /// The proxy before Redis.
    ///
    /// # Panics
    /// When it was not asked for.
    pub fn redis_proxy(&self) -> &FaultProxy {
        self.proxies.first().expect("Options::faulty")
    }

    /// The proxy before Postgres.
    ///
    /// # Panics
    /// When it was not asked for.
    pub fn postgres_proxy(&self) -> &FaultProxy {
        self.proxies.get(1).expect("Options::faulty")
    }

    /// Asks every process to end in order, and tells which did not end well.
    pub fn stop(&self) -> Vec<&'static str> {
        let mut badly = Vec::new();
        for process in self.processes.lock().iter_mut() {
            if process.stop().is_some_and(|status| !status.success()) {
                badly.push(process.name);
            }
        }
        badly
    }

    /// Starts whatever does not run, and waits until all is ready.
    ///
    /// # Panics
    /// When it is not ready in time; with the logs.
    pub async fn restart(&self) {
        for process in self.processes.lock().iter_mut() {
            if !process.is_started() {
                process.start();
            }
        }
        self.is_ready().await;
    }

    /// Waits until all five services say that they are ready.
    ///
    /// # Panics
    /// When they do not in time; with the logs.
    pub async fn is_ready(&self) {
        for part in Part::ALL {
            self.answers_ready(part, self.urls.of(part)).await;
        }
    }

    async fn answers_ready(&self, part: Part, base: &str) {
        let deadline = Instant::now() + READY_WITHIN;
        let url = format!("{base}/ready");
        loop {
            let said = match self.http.try_get(&url).await {
                Ok(answer) if answer.status == 200 => break,
                Ok(answer) => format!(
                    "{} {}",
                    answer.status,
                    String::from_utf8_lossy(&answer.body)
                ),
                Err(error) => error,
            };
            self.none_has_ended();
            assert!(
                Instant::now() < deadline,
                "{} is not ready: {said}",
                part.name()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// # Panics
    /// When a process ended that nobody killed.
    pub fn none_has_ended(&self) {
        for process in self.processes.lock().iter_mut() {
            if let Some(status) = process.ended() {
                panic!("{} ended by itself with {status}", process.name);
            }
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in self.processes.lock().iter() {
                eprintln!("{}", process.log_tail(30));
            }
        }
    }
}

/// The address to use for a server: its own, or that of a proxy before it.
async fn reached(url: &str, proxies: &mut Vec<FaultProxy>, faulty: bool) -> String {
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

/// What every process is told. Later ones win, so that options may change any.
fn settings(urls: &Urls, options: &Options) -> Vec<(String, String)> {
    let secrets = SECRETS
        .iter()
        .map(|name| ((*name).to_owned(), random_hex(32)));
    let limits = LIMITS
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let addresses = [
        ("HOST", "127.0.0.1"),
        ("ISSUER_URL", &urls.sts),
        ("STS_URL", &urls.sts),
        ("CARACAL_STS_URL", &urls.sts),
        ("CARACAL_API_URL", &urls.api),
        ("CARACAL_GATEWAY_URL", &urls.gateway),
        ("CARACAL_COORDINATOR_URL", &urls.coordinator),
        ("CARACAL_AUDIT_URL", &urls.audit),
        ("AGENT_COORDINATOR_SCOPE", "agent:lifecycle"),
    ];
    let addresses = addresses.map(|(name, value)| (name.to_owned(), value.to_owned()));
    secrets
        .chain(limits)
        .chain(addresses)
        .chain(options.env.iter().cloned())
        .collect()
}
