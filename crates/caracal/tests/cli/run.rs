//! `caracal run` with a real command and an STS that says what each test wants.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const SECRET: &str = "ws_canaryAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// One request: its path with query, launch id, and body.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    launch_id: String,
    body: String,
}

/// An STS that answers as it is told and remembers what it was asked.
struct Sts {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Sts {
    fn new(answer: impl Fn(&Asked, usize) -> (u16, Value) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let remembered = Arc::clone(&asked);
        let serve = move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = read(&mut stream);
                let before = {
                    let mut all = remembered.lock().unwrap();
                    let same = all
                        .iter()
                        .filter(|other: &&Asked| other.path == request.path)
                        .count();
                    all.push(request.clone());
                    same
                };
                let (status, body) = answer(&request, before);
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nx-request-id: req-1\r\n\
                     content-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream
                    .write_all(format!("{head}{body}").as_bytes())
                    .unwrap();
            }
        };
        std::thread::Builder::new().spawn(serve).unwrap();
        Self { url, asked }
    }

    /// One that binds these variables and releases the value `value of NAME` for each.
    fn binding(bindings: Value) -> Self {
        Self::new(move |asked, _| match asked.path.as_str() {
            "/v1/run/manifest" => (200, manifest(&bindings)),
            _ => (200, released(asked)),
        })
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn command(&self, command: &[&str]) -> Command {
        let mut caracal = Command::new(env!("CARGO_BIN_EXE_caracal"));
        caracal
            .args(["run", "--"])
            .args(command)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", "/nonexistent")
            .env("CARACAL_HOME", "/nonexistent")
            .env("NO_COLOR", "1")
            .env("CARACAL_STS_URL", &self.url)
            .env("CARACAL_WORKLOAD_ID", "w1")
            .env("CARACAL_WORKLOAD_SECRET", SECRET)
            .env("AWS_SECRET_ACCESS_KEY", "not for the command");
        caracal
    }

    fn run(&self, command: &[&str]) -> Output {
        self.command(command).output().unwrap()
    }
}

fn read(stream: &mut TcpStream) -> Asked {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let path = line
        .split_whitespace()
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    let (mut length, mut launch_id) = (0, String::new());
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "x-caracal-launch-id" => launch_id = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = String::from_utf8(body).unwrap();
    Asked {
        path,
        launch_id,
        body,
    }
}

fn manifest(bindings: &Value) -> Value {
    json!({"zone_id": "z1", "workload_id": "w1", "bindings": bindings})
}

fn field(asked: &Asked, name: &str) -> String {
    let start = format!("{name}=");
    let found = asked
        .body
        .split('&')
        .find_map(|pair| pair.strip_prefix(&start));
    found.unwrap_or_default().to_owned()
}

fn released(asked: &Asked) -> Value {
    let env = field(asked, "env");
    json!({"env": env, "credential": format!("value of {env}"), "expires_at": 1_900_000_000})
}

fn refused(status: u16, error: &str) -> (u16, Value) {
    (
        status,
        json!({"error": error, "error_description": "because", "requestId": "req-1"}),
    )
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What was printed, once the code is right and the secret nowhere to be seen.
#[track_caller]
fn ends(output: &Output, code: i32) -> (String, String) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    for said in [&out, &err] {
        assert!(!said.contains("ws_canary"), "the secret shows:\n{said}");
    }
    (out, err)
}

#[test]
fn the_command_sees_its_credentials_and_nothing_that_it_should_not() {
    let sts = Sts::binding(json!([
        {"env": "MAIL", "resource": "resource://mail", "scopes": ["mail:send"]},
        {"env": "PATH_TO", "resource": "resource://path"},
    ]));
    let (out, _) = ends(&sts.run(&["env"]), 0);
    let mut names: Vec<_> = out
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "HOME",
            "MAIL",
            "MAIL_EXPIRES_AT",
            "NO_COLOR",
            "PATH",
            "PATH_TO",
            "PATH_TO_EXPIRES_AT"
        ]
    );
    assert!(out.contains("MAIL=value of MAIL\n"), "{out}");
    assert!(out.contains("MAIL_EXPIRES_AT=1900000000\n"), "{out}");

    let asked = sts.asked();
    let paths: Vec<_> = asked.iter().map(|asked| asked.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "/v1/run/manifest",
            "/v1/run/credential",
            "/v1/run/credential"
        ]
    );
    for one in &asked {
        assert_eq!(
            (field(one, "workload_id"), field(one, "secret")),
            ("w1".into(), SECRET.into())
        );
        assert_eq!(one.launch_id, asked[0].launch_id, "one launch");
        assert_eq!(one.launch_id.len(), 36);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_secret_is_not_in_the_launcher_either_once_the_command_runs() {
    let sts = Sts::binding(json!([{"env": "MAIL", "resource": "resource://mail"}]));
    let look = "tr '\\0' '\\n' < /proc/$PPID/environ; tr '\\0' ' ' < /proc/$PPID/cmdline";
    let (out, _) = ends(&sts.run(&["sh", "-c", look]), 0);
    assert!(
        out.contains("MAIL=value of MAIL"),
        "that is the launcher:\n{out}"
    );
    assert!(
        !out.contains("CARACAL_WORKLOAD") && !out.contains("AWS_"),
        "{out}"
    );
}

#[test]
fn arguments_arrive_as_they_are_and_no_shell_reads_them() {
    let sts = Sts::binding(json!([{"env": "A", "resource": "r"}]));
    let (out, _) = ends(
        &sts.run(&["printf", "%s|", "$A", "a b", "--help", "-v", "--", "*"]),
        0,
    );
    assert_eq!(out, "$A|a b|--help|-v|--|*|");
}

#[test]
fn the_command_ends_as_it_ends() {
    let sts = Sts::binding(json!([{"env": "A", "resource": "r"}]));
    for (command, code) in [
        ("true", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + 15),
        ("kill -KILL $$", 128 + 9),
        ("kill -INT $$", 128 + 2),
    ] {
        ends(&sts.run(&["sh", "-c", command]), code);
    }
    let (_, err) = ends(&sts.run(&["no-such-command-anywhere"]), 127);
    assert!(
        err.contains("no-such-command-anywhere cannot be started"),
        "{err}"
    );
    ends(&sts.run(&["/etc/hostname"]), 127);
}

#[test]
fn signals_reach_the_command_once() {
    let sts = Sts::binding(json!([{"env": "A", "resource": "r"}]));
    let script = "n=0; for s in HUP INT QUIT TERM; do trap \"n=\\$((n+1)); echo $s\" $s; done; \
                  trap 'echo USR1; exit $n' USR1; echo ready $$; while :; do sleep 0.02; done";
    let mut caracal = sts
        .command(&["sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(caracal.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let ready = lines.next().unwrap();
    let command: i32 = ready.strip_prefix("ready ").unwrap().parse().unwrap();
    let launcher = Pid::from_child(&caracal);
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::TERM, "TERM"),
    ] {
        kill_process(launcher, signal).unwrap();
        assert_eq!(lines.next().as_deref(), Some(name));
    }
    kill_process(Pid::from_raw(command).unwrap(), Signal::USR1).unwrap();
    assert_eq!(lines.next().as_deref(), Some("USR1"));
    assert_eq!(caracal.wait().unwrap().code(), Some(4), "each arrived once");
}

#[cfg(target_os = "linux")]
#[test]
fn a_launcher_that_is_killed_takes_its_command_with_it() {
    let sts = Sts::binding(json!([{"env": "A", "resource": "r"}]));
    // The pipe is open for as long as the command, or anybody that it started, lives.
    let mut caracal = sts
        .command(&["sh", "-c", "trap '' TERM HUP; echo ready; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = BufReader::new(caracal.stdout.take().unwrap());
    let mut line = String::new();
    pipe.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let launcher = Pid::from_child(&caracal);
    kill_process(launcher, Signal::KILL).unwrap();
    caracal.wait().unwrap();
    let (told, ended) = std::sync::mpsc::channel();
    let reading = std::thread::Builder::new().name("rest of the pipe".to_owned());
    let waiting = reading
        .spawn(move || {
            let mut rest = String::new();
            let _ = told.send(pipe.read_to_string(&mut rest).map(|_| rest));
        })
        .unwrap();
    let rest = ended.recv_timeout(std::time::Duration::from_secs(30));
    assert_eq!(
        rest.expect("the command goes on without its launcher")
            .unwrap(),
        ""
    );
    waiting.join().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_ignored_stays_ignored() {
    let sts = Sts::binding(json!([{"env": "A", "resource": "r"}]));
    let look = "grep SigIgn /proc/self/status";
    let caracal = env!("CARGO_BIN_EXE_caracal");
    let mask = |nohup: &str| {
        let script = format!("{nohup} exec {caracal} run -- {look}");
        let mut shell = sts.command(&[]);
        let environment: Vec<_> = shell
            .get_envs()
            .map(|(n, v)| (n.to_owned(), v.unwrap().to_owned()))
            .collect();
        shell = Command::new("sh");
        let output = shell
            .args(["-c", &script])
            .env_clear()
            .envs(environment)
            .output()
            .unwrap();
        let (out, _) = ends(&output, 0);
        u64::from_str_radix(out.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    assert_eq!(mask("trap '' HUP;") & 1, 1, "nohup holds");
    assert_eq!(mask("") & 1, 0);
}

#[test]
fn a_credential_that_cannot_be_had_stops_the_launch_unless_the_binding_forgives_it() {
    for (binding, code, says) in [
        (
            json!({"env": "A", "resource": "r"}),
            1,
            "A (r) cannot be had: 403 access_denied: because (request req-1)",
        ),
        (
            json!({"env": "A", "resource": "r", "optional": true}),
            1,
            "A (r) cannot be had",
        ),
        (
            json!({"env": "A", "resource": "r", "optional": true, "on_failure": "error"}),
            1,
            "A (r) cannot be had",
        ),
        (
            json!({"env": "A", "resource": "r", "optional": true, "on_failure": "warn"}),
            0,
            "A stays unset: 403",
        ),
    ] {
        let sts = Sts::new(move |asked, _| match asked.path.as_str() {
            "/v1/run/manifest" => (
                200,
                manifest(&json!([binding, {"env": "B", "resource": "b"}])),
            ),
            _ if field(asked, "env") == "A" => refused(403, "access_denied"),
            _ => (200, released(asked)),
        });
        let (out, err) = ends(&sts.run(&["sh", "-c", "echo started ${A-unset} $B"]), code);
        assert!(err.contains(says), "{err}");
        let started = if code == 0 {
            "started unset value of B\n"
        } else {
            ""
        };
        assert_eq!(out, started);
    }
}

#[test]
fn a_manifest_that_would_do_harm_starts_nothing() {
    for (bindings, says) in [
        (json!([]), "no bindings"),
        (
            json!([{"env": "LD_PRELOAD", "resource": "r"}]),
            "would let a credential run code",
        ),
        (
            json!([{"env": "node_options", "resource": "r"}]),
            "would let a credential run code",
        ),
        (
            json!([{"env": "A=B", "resource": "r"}]),
            "no name of a variable",
        ),
        (
            json!([{"env": "A", "resource": "r"}, {"env": "A", "resource": "s"}]),
            "bound twice",
        ),
    ] {
        let sts = Sts::binding(bindings);
        let (out, err) = ends(&sts.run(&["echo", "started"]), 1);
        assert!(err.contains(says) && out.is_empty(), "{out}{err}");
        assert_eq!(sts.asked().len(), 1, "no credential was asked for");
    }
    let sts = Sts::new(|asked, _| match asked.path.as_str() {
        "/v1/run/manifest" => (200, manifest(&json!([{"env": "A", "resource": "r"}]))),
        _ => (200, json!({"env": "A", "credential": "a\u{0}b"})),
    });
    let (out, err) = ends(&sts.run(&["echo", "started"]), 1);
    assert!(err.contains("NUL") && out.is_empty(), "{out}{err}");
}

#[test]
fn refusals_say_what_to_do_next() {
    for (status, error, says) in [
        (401, "access_denied", "rotate-secret"),
        (404, "resource_not_found", "because"),
        (429, "provider_rate_limited", "Try again shortly"),
        (503, "sts_unavailable", "Try again shortly"),
    ] {
        let sts = Sts::new(move |_, _| refused(status, error));
        let (_, err) = ends(&sts.run(&["true"]), 1);
        assert!(err.contains(says) && err.contains(error), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    let nobody = Command::new(env!("CARGO_BIN_EXE_caracal"))
        .args([
            "run",
            "--sts-url",
            "http://127.0.0.1:9",
            "--workload-id",
            "w1",
            "--",
            "true",
        ])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("CARACAL_WORKLOAD_SECRET", SECRET)
        .output()
        .unwrap();
    let (_, err) = ends(&nobody, 1);
    assert!(
        err.contains("no answer from the STS at http://127.0.0.1:9"),
        "{err}"
    );
    let garbled = Sts::new(|_, _| (200, json!("hello")));
    let (_, err) = ends(&garbled.run(&["true"]), 1);
    assert!(err.contains("not understood"), "{err}");
}

const HOLD: &str = "5c0e2f5e-1111-4222-8333-444455556666";

fn held() -> (u16, Value) {
    let body = json!({
        "error": "interaction_required", "error_description": "Human approval required",
        "approval_id": HOLD, "approval_type": "human_approval", "state": "pending",
        "binding": "ab".repeat(32), "approval_expires_at": "2099-01-01T00:00:00Z",
    });
    (401, body)
}

#[test]
fn an_approval_is_announced_waited_for_and_presented_once() {
    let poll = format!("/approvals/{HOLD}?wait=25");
    let at = poll.clone();
    let sts = Sts::new(move |asked, before| match asked.path.as_str() {
        "/v1/run/manifest" => (
            200,
            manifest(&json!([{"env": "A", "resource": "resource://a"}])),
        ),
        "/v1/run/credential" if field(asked, "approval_id") == HOLD => (200, released(asked)),
        "/v1/run/credential" => held(),
        path if path == at => {
            let state = ["pending", "approved"][before.min(1)];
            (
                200,
                json!({"id": HOLD, "state": state, "expires_at": "2099-01-01T00:00:00Z"}),
            )
        }
        _ => refused(404, "resource_not_found"),
    });
    let (out, err) = ends(&sts.run(&["sh", "-c", "echo $A"]), 0);
    assert_eq!(out, "value of A\n");
    let line: Value = err
        .lines()
        .find_map(|line| serde_json::from_str(line).ok())
        .unwrap();
    assert_eq!(
        line,
        json!({"resource": "resource://a", "approval_id": HOLD, "binding": "ab".repeat(32),
            "expires_at": "2099-01-01T00:00:00Z", "reason": "approval_required"})
    );
    let paths: Vec<_> = sts.asked().into_iter().map(|asked| asked.path).collect();
    let credential = "/v1/run/credential";
    assert_eq!(
        paths,
        ["/v1/run/manifest", credential, &poll, &poll, credential]
    );
}

#[test]
fn an_approval_that_is_refused_is_not_asked_for_again() {
    let sts = Sts::new(|asked, _| match asked.path.as_str() {
        "/v1/run/manifest" => (200, manifest(&json!([{"env": "A", "resource": "r"}]))),
        "/v1/run/credential" if field(asked, "approval_id") == HOLD => {
            refused(403, "access_denied")
        }
        "/v1/run/credential" => held(),
        _ => (
            200,
            json!({"id": HOLD, "state": "rejected", "expires_at": "2099-01-01T00:00:00Z"}),
        ),
    });
    let (out, err) = ends(&sts.run(&["echo", "started"]), 1);
    assert!(
        out.is_empty() && err.contains("A (r) cannot be had: 403"),
        "{err}"
    );
    assert_eq!(sts.asked().len(), 4);
}

#[test]
fn the_command_line_is_told_from_the_command() {
    let nothing = Path::new("/nonexistent");
    let caracal = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_caracal"))
            .args(arguments)
            .env_clear()
            .env("HOME", nothing)
            .output()
            .unwrap()
    };
    for arguments in [&["run"][..], &["run", "--bogus", "true"], &["run", "--"]] {
        assert_eq!(caracal(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let help = text(&caracal(&["run", "--help"]).stdout);
    for taught in [
        "CARACAL_WORKLOAD_SECRET_FILE",
        "EXIT CODE",
        "caracal run -- ",
    ] {
        assert!(help.contains(taught), "{help}");
    }
    assert!(!help.contains("supervise"), "{help}");
    let (_, err) = ends(&caracal(&["run", "true"]), 1);
    assert!(err.contains("CARACAL_WORKLOAD_ID"), "{err}");
}
