//! Into a bucket of an S3 server that checks signatures, read back with DuckDB. Needs a Python with
//! `moto[s3,server]`, `boto3` and `duckdb`, named by `CARACAL_TEST_S3`; without one it is skipped.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use caracal_store::on_each_engine;
use serde_json::{Value, json};

use crate::stage::Stage;

const BUCKET: &str = "evidence";
/// The requests of `s3.py make`, before anybody has an identity.
const UNCHECKED: &str = "4";

/// A server that ends with its test.
struct Server {
    child: Child,
    python: String,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// `None` where there is no Python for it.
    async fn start() -> Option<Self> {
        #[expect(
            clippy::disallowed_methods,
            reason = "how tests are told of their tools"
        )]
        let Ok(python) = std::env::var("CARACAL_TEST_S3") else {
            println!("SKIPPED: CARACAL_TEST_S3 names no Python");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Command::new(&python)
            .args([
                "-m",
                "moto.server",
                "-H",
                "127.0.0.1",
                "-p",
                &port.to_string(),
            ])
            .env("INITIAL_NO_AUTH_ACTION_COUNT", UNCHECKED)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self {
            child,
            python,
            url: format!("http://127.0.0.1:{port}"),
        };
        for _ in 0..600 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok()
            {
                return Some(server);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the S3 server did not start");
    }

    /// What `s3.py` answers.
    fn ask(&self, what: &str, more: &[&str]) -> Value {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/export/s3.py");
        let output = Command::new(&self.python)
            .arg(script)
            .args([what, &self.url, BUCKET])
            .args(more)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

on_each_engine! {
    async fn a_bucket_takes_locked_objects_that_duckdb_reads(store: Store) {
        let Some(server) = Server::start().await else { return };
        let key = server.ask("make", &[]);
        let (id, secret) = (key["id"].as_str().unwrap(), key["secret"].as_str().unwrap());
        let settings = [
            ("AUDIT_EXPORT_S3_BUCKET", BUCKET),
            ("AUDIT_EXPORT_S3_ENDPOINT", server.url.as_str()),
            ("AUDIT_EXPORT_S3_REGION", "eu-central-1"),
            ("AUDIT_EXPORT_OBJECT_LOCK_MODE", "GOVERNANCE"),
            ("AUDIT_EXPORT_OBJECT_LOCK_DAYS", "30"),
            ("AWS_ACCESS_KEY_ID", id),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ];
        let mut stage = Stage::new(store);
        stage.events("b", 2).await;
        stage.events("a", 1).await;
        stage.hours_pass(1);
        let mut exporter = stage.exporter_with(&settings);
        assert_eq!(exporter.catch_up().await.unwrap(), 1);
        stage.events("b", 1).await;
        stage.hours_pass(1);
        assert_eq!(exporter.catch_up().await.unwrap(), 1);

        let told = server.ask("report", &[id, secret]);
        let row = |zone: &str, seq: u64| {
            json!([zone, seq, "allow", 1, "token_exchange", "resource://crm"])
        };
        assert_eq!(told["rows"], json!([row("a", 1), row("b", 1), row("b", 2), row("b", 3)]));
        let objects = told["objects"].as_object().unwrap();
        assert_eq!(objects.len(), 4, "two objects and their manifests: {objects:?}");
        for (key, object) in objects {
            assert_eq!(object["type"], "application/octet-stream", "{key}");
            assert_eq!(object["lock"], "GOVERNANCE", "{key}");
            assert_ne!(object["until"], "None", "{key}");
        }
        // Another exporter finds that all of it is there.
        assert_eq!(stage.exporter_with(&settings).catch_up().await.unwrap(), 0);
        // With a wrong key nothing is exported, and nothing is given up.
        stage.events("b", 1).await;
        stage.hours_pass(1);
        let mut wrong = settings;
        wrong[6].1 = "wrong";
        let refused = stage.exporter_with(&wrong).catch_up().await.unwrap_err();
        assert!(!refused.to_string().contains(id), "{refused}");
        assert_eq!(exporter.catch_up().await.unwrap(), 1);
    }
}
