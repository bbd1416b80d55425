//! Redis that is away, started again, or lying.

use super::*;

#[tokio::test]
async fn an_unreachable_redis_is_an_error_in_time_and_names_no_password() {
    let url = Secret::new("redis://:hunter2@127.0.0.1:1/".to_owned());
    let options = RedisOptions {
        timeout: Duration::from_millis(300),
        ..RedisOptions::default()
    };
    let bus = Bus::redis(&url, options).await.unwrap();
    let clock = SystemClock::default();
    let asked = clock.ticks();
    for error in [
        bus.ping().await.unwrap_err(),
        bus.claim("seen:jti:1", WAIT).await.unwrap_err(),
        bus.tail(&[(TOPIC, Position::START)], NO_WAIT, 1)
            .await
            .unwrap_err(),
    ] {
        assert!(error.is_outage(), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
    assert!(clock.ticks().since(asked) < WAIT);
    let not_a_url = Secret::new("hunter2".to_owned());
    let error = Bus::redis(&not_a_url, RedisOptions::default())
        .await
        .unwrap_err();
    assert!(!format!("{error:?} {error}").contains("hunter2"));
}

/// The newest entries that a server acknowledged may be gone after a restart, and what came since
/// may have higher ids: positions cannot show that, the server's run id does.
#[tokio::test]
async fn positions_of_a_server_that_was_started_again_are_a_gap() {
    let Some(bus) = redis().await else { return };
    append(&bus, TOPIC, 0..1).await;
    let from = [(TOPIC, bus.last(TOPIC).await.unwrap())];
    let before = "0".repeat(40);
    let gap = bus.tail_within(&before, &from, NO_WAIT, 10).await;
    assert!(matches!(gap, Err(BusError::Gap { .. })), "{gap:?}");
}

const SOCKET: &str = "socket";

/// A server of one test, in a directory of its own. So is its socket: nobody else takes that while
/// the server is down, as happens to ports.
struct Server {
    directory: std::path::PathBuf,
    process: std::process::Child,
}

impl Server {
    /// `None` when tests are not to use Redis, or there is no server program.
    fn start() -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        #[expect(
            clippy::disallowed_methods,
            reason = "whether there is Redis to test with"
        )]
        std::env::var("CARACAL_TEST_REDIS").ok()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("caracal-bus-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let process = Self::run(&directory)?;
        Some(Self { directory, process })
    }

    fn url(&self) -> String {
        let socket = self.directory.join(SOCKET);
        format!("redis+unix://{}", socket.display())
    }

    fn run(directory: &std::path::Path) -> Option<std::process::Child> {
        std::process::Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--dir"])
            .arg(directory)
            .arg("--unixsocket")
            .arg(directory.join(SOCKET))
            .stdout(std::process::Stdio::null())
            .spawn()
            .ok()
    }

    async fn bus(&self) -> Bus {
        let url = Secret::new(self.url());
        let bus = Bus::redis(&url, RedisOptions::default()).await.unwrap();
        eventually("the server answers", || async { bus.ping().await.is_ok() }).await;
        bus
    }

    /// What only an operator does.
    async fn command(&self, name: &str) {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let done: String = redis::cmd(name).query_async(&mut connection).await.unwrap();
        assert_eq!(done, "OK");
    }

    /// Kills it; the next one knows what the last `SAVE` wrote.
    async fn crash(&mut self, bus: &Bus) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Self::run(&self.directory).unwrap();
        eventually("the next one answers", || async {
            bus.ping().await.is_ok()
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Whatever way a server loses claims, nothing that may have been claimed is claimed again.
#[tokio::test]
async fn claims_that_a_server_lost_are_not_won_again() {
    let Some(mut server) = Server::start() else {
        eprintln!("skipped: no Redis of its own");
        return;
    };
    let (bus, clock) = (server.bus().await, SystemClock::default());
    assert!(
        !bus.claim_made("seen:jti:0", clock.now(), WAIT)
            .await
            .unwrap(),
        "nothing is known of before the first contact"
    );
    let claimed = async |key: &str, made| bus.claim_made(key, made, WAIT * 12).await.unwrap();
    for loss in ["emptied", "crashed", "behind"] {
        let soon = bus.open_claims().await.unwrap();
        assert!(soon <= Duration::from_millis(1_001), "{soon:?}");
        tokio::time::sleep(soon).await;
        assert_eq!(bus.open_claims().await.unwrap(), NO_WAIT);
        let (key, made) = (format!("seen:jti:{loss}"), clock.now());
        if loss == "behind" {
            // The note is saved, the claim is not.
            server.command("SAVE").await;
        }
        assert!(claimed(&key, made).await, "{loss}");
        assert!(!claimed(&key, made).await, "{loss}");
        match loss {
            "emptied" => server.command("FLUSHALL").await,
            _ => server.crash(&bus).await,
        }
        assert!(!claimed(&key, made).await, "{loss}: used before the loss");
        let later = clock.now().plus(Duration::from_secs(5));
        let next = format!("seen:jti:after-{loss}");
        assert!(claimed(&next, later).await, "{loss}: made after the loss");
        assert!(!claimed(&next, later).await, "{loss}");
    }
}

/// Whatever way a server loses entries, whoever appended them can tell.
#[tokio::test]
async fn a_server_that_may_have_lost_entries_has_another_history() {
    let Some(mut server) = Server::start() else {
        eprintln!("skipped: no Redis of its own");
        return;
    };
    let bus = server.bus().await;
    let history = async || {
        let history = bus.progress(EVIDENCE, "ingest").await.unwrap().history;
        assert_eq!(bus.history().await.unwrap(), Some(history.clone()));
        history
    };
    let mut seen = vec![history().await];
    for loss in ["emptied", "crashed", "behind"] {
        append(&bus, EVIDENCE, 0..1).await;
        assert_eq!(history().await, seen[seen.len() - 1], "{loss}");
        match loss {
            "emptied" => server.command("FLUSHALL").await,
            "behind" => {
                server.command("SAVE").await;
                server.crash(&bus).await;
            }
            _ => server.crash(&bus).await,
        }
        let now = history().await;
        assert!(!seen.contains(&now), "{loss}");
        seen.push(now);
    }
}

/// Answers commands on the first connection with bytes that are no answer, later ones as it should.
async fn a_server_that_lies_at_first() -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(async move {
        let mut lies = true;
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = if lies { "\x10x" } else { "+PONG\r\n" };
            lies = false;
            tokio::spawn(async move {
                let mut chunk = [0u8; 4096];
                while let Ok(length @ 1..) = stream.read(&mut chunk).await {
                    let lines = chunk[..length].split(|byte| *byte == b'\n');
                    let commands = lines.filter(|line| line.starts_with(b"*")).count();
                    stream
                        .write_all(answer.repeat(commands).as_bytes())
                        .await
                        .unwrap();
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_connection_that_carried_nonsense_is_not_asked_again() {
    let port = a_server_that_lies_at_first().await;
    let url = Secret::new(format!("redis://127.0.0.1:{port}/"));
    let bus = Bus::redis(&url, RedisOptions::default()).await.unwrap();
    eventually("it answers on a new connection", || async {
        bus.ping().await.is_ok()
    })
    .await;
}
