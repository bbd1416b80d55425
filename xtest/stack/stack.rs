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

use crate::balancer::Balancer;
use crate::clock;
use crate::fault::FaultProxy;
use crate::http::{Answer, Http};
use crate::options::{Options, settings};
use crate::postgres::Postgres;
use crate::process::Process;
use crate::servers::{Database, Place, Redis, reached, with_password};
use crate::{binary, ports};

/// How long a start may take, on a machine that builds something else at the same time.
const READY_WITHIN: Duration = Duration::from_secs(90);

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

impl Urls {
    fn of_seats(seats: &[Seat]) -> Self {
        let at = |part| {
            let seat = seats.iter().find(|seat| seat.part == part);
            seat.map(|seat| seat.reached.clone()).unwrap_or_default()
        };
        Self {
            api: at(Part::Api),
            sts: at(Part::Sts),
            gateway: at(Part::Gateway),
            coordinator: at(Part::Coordinator),
            audit: at(Part::Audit),
        }
    }
}

/// Where a service listens, and where it is reached.
struct Seat {
    part: Part,
    /// Of each replica.
    ports: Vec<u16>,
    reached: String,
}

impl Seat {
    async fn take(part: Part, replicas: usize) -> Self {
        let ports: Vec<u16> = (0..replicas).map(|_| ports::free()).collect();
        let reached = match ports.as_slice() {
            [port] => format!("http://127.0.0.1:{port}"),
            several => Balancer::before(several).await.url,
        };
        Self {
            part,
            ports,
            reached,
        }
    }
}

/// A deployment of its own. Dropping it kills its processes and removes what they kept.
pub struct Stack {
    // In the order in which they may go: processes, then what they stand on.
    /// By service, and then by replica.
    pub(crate) processes: Mutex<Vec<Process>>,
    pub(crate) redis: Option<tokio::sync::Mutex<Redis>>,
    redis_url: Option<String>,
    _database: Option<Database>,
    pub(crate) postgres: Option<tokio::sync::Mutex<Postgres>>,
    pub(crate) proxies: Vec<FaultProxy>,
    pub(crate) directory: TempDir,
    seats: Vec<Seat>,
    environment: Vec<(String, String)>,
    /// Its own way to Postgres, over that of all.
    gateway_database: String,
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
        let replicas = 1 + options.more_replicas;
        let mut seats = Vec::new();
        for part in Part::ALL {
            seats.push(Seat::take(part, replicas).await);
        }
        let urls = Urls::of_seats(&seats);
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
        let (mut postgres, mut database) = (None, None);
        let mut gateway_database = String::new();
        if let Place::Distributed(server) = &place {
            let url = if options.own_postgres {
                let own = Postgres::start().await.expect("a Postgres to start");
                postgres.insert(own).url.clone()
            } else {
                database.insert(Database::create(server).await).url.clone()
            };
            let url = reached(&url, &mut proxies, options.faulty).await;
            environment.push(("DATABASE_URL".into(), with_password(&url)));
            gateway_database = with_password(&reached(&url, &mut proxies, options.faulty).await);
        }
        if let Some(seconds) = options.stepping_clock {
            environment.extend(clock::environment(directory.path(), seconds));
        }
        environment.push((
            "CARACAL_HOME".into(),
            directory.path().join("data").display().to_string(),
        ));
        let stack = Self {
            processes: Mutex::default(),
            redis_url: redis.as_ref().map(|redis| redis.url.clone()),
            redis: redis.map(tokio::sync::Mutex::new),
            _database: database,
            postgres: postgres.map(tokio::sync::Mutex::new),
            proxies,
            directory,
            seats,
            environment,
            gateway_database,
            deployment,
            urls,
            http: Http::default(),
            admin_token,
            operator_token,
        };
        let mut processes = match deployment {
            Deployment::Embedded => vec![stack.all_in_one()],
            Deployment::Distributed => {
                let migrated = stack.caracal("migrate --roles").await;
                assert!(migrated.status.success(), "{migrated:?}");
                let seats = stack.seats.iter();
                let all = seats.flat_map(|seat| {
                    let ports = seat.ports.iter().enumerate();
                    ports.map(|(nth, port)| stack.apart(seat.part, nth, *port))
                });
                all.collect()
            }
        };
        if options.limited_disks {
            processes = processes.into_iter().map(Process::minds_no_limit).collect();
        }
        *stack.processes.lock() = processes;
        stack.restart().await;
        stack
    }

    fn all_in_one(&self) -> Process {
        let mut line = "up --foreground".to_owned();
        for seat in &self.seats {
            for port in &seat.ports {
                line = format!("{line} --{}-port {port}", seat.part.name());
            }
        }
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
        let named = |process: &&Process| process.name == part.name();
        let nth = self.processes.lock().iter().filter(named).count();
        let mut replica = self.apart(part, nth, port);
        replica.start();
        self.processes.lock().push(replica);
        let url = format!("http://127.0.0.1:{port}");
        self.answers_ready(part, &url).await;
        url
    }

    fn apart(&self, part: Part, nth: usize, port: u16) -> Process {
        let name = part.name();
        let mut environment = self.environment.clone();
        // A process of its own has a disk of its own.
        let replay = self.directory.path().join(format!("replay-{name}-{nth}"));
        let own_port = format!("{}_PORT", name.to_uppercase());
        environment.push((own_port, port.to_string()));
        environment.push(("AUDIT_REPLAY_DIR".into(), replay.display().to_string()));
        environment.push(("HOSTNAME".into(), format!("{name}-{nth}")));
        // And may do with the database what its service needs, and no more.
        let url = match part {
            Part::Gateway => &self.gateway_database,
            _ => self.setting("DATABASE_URL"),
        };
        let url = as_role(url, name);
        environment.push(("DATABASE_URL".into(), url));
        let log = self.directory.path().join(format!("{name}-{nth}.log"));
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
        self.starts_again();
        self.is_ready().await;
    }

    /// Starts whatever does not run, as a supervisor does.
    pub fn starts_again(&self) {
        for process in self.processes.lock().iter_mut() {
            if !process.is_started() {
                process.start();
            }
        }
    }

    /// Waits until every replica of all five services says that it is ready.
    ///
    /// # Panics
    /// When they do not in time; with the logs.
    pub async fn is_ready(&self) {
        for (part, url) in self.replicas() {
            self.answers_ready(part, &url).await;
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

    /// Every replica of every service, and where it listens itself.
    pub fn replicas(&self) -> Vec<(Part, String)> {
        let seats = self.seats.iter();
        let all = seats.flat_map(|seat| {
            let ports = seat.ports.iter();
            ports.map(|port| (seat.part, format!("http://127.0.0.1:{port}")))
        });
        all.collect()
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

impl Stack {
    /// # Panics
    /// When the database refused a statement of a service.
    pub fn none_was_refused(&self) {
        let logs = self.logs();
        let refused: Vec<&str> = logs
            .lines()
            .filter(|line| line.contains("statement refused"))
            .collect();
        assert!(refused.is_empty(), "{}", refused.join("\n"));
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

/// The URL of a database, for the role of a service.
fn as_role(url: &str, service: &str) -> String {
    let and = if url.contains('?') { '&' } else { '?' };
    format!("{url}{and}options=-c%20role%3Dcaracal{service}")
}
