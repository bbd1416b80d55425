//! A certified OpenID provider (npm: `oidc-provider`) for tests of upstream credentials and of users.
//!
//! A token endpoint on loopback is never asked, whatever is configured, so the provider runs in a
//! network namespace of its own, behind a private address that the deployment is told of. That
//! takes root, `ip`, `openssl`, `node` and the installed package (`CARACAL_TEST_OAUTH` names its
//! directory); where one of them is missing the tests are skipped, and say so. To run them:
//!
//! ```sh
//! npm install --prefix xtest/oauth --no-package-lock --ignore-scripts
//! CARACAL_TEST_OAUTH=$PWD/xtest/oauth cargo test -p xtest --test it provider
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use crate::Options;
use crate::http::{Http, Request};
use crate::process::Process;

const PORT: u16 = 8443;
const CONTROL: u16 = 8080;
/// Where a browser is sent after it has signed in.
pub const CALLBACK: &str = "https://us.example/callback";

/// The provider, and the namespace that it runs in.
pub struct OauthProvider {
    /// The process.
    pub process: Process,
    address: String,
    namespace: Namespace,
    directory: TempDir,
    http: Http,
}

/// A network namespace with one link to ours; ends when dropped.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.0]);
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

impl Namespace {
    /// With this address on its side of the link, and this one on ours.
    fn create(name: &str, theirs: &str, ours: &str) -> Option<Self> {
        let (near, far) = (format!("{name}n"), format!("{name}f"));
        if !run("ip", &["netns", "add", name]) {
            return None;
        }
        let namespace = Self(name.to_owned());
        let link = [
            "link", "add", &near, "type", "veth", "peer", "name", &far, "netns", name,
        ];
        let (theirs, ours) = (format!("{theirs}/30"), format!("{ours}/30"));
        let steps: [&[&str]; 6] = [
            &link,
            &["addr", "add", &ours, "dev", &near],
            &["link", "set", &near, "up"],
            &["-n", name, "addr", "add", &theirs, "dev", &far],
            &["-n", name, "link", "set", &far, "up"],
            &["-n", name, "link", "set", "lo", "up"],
        ];
        steps
            .iter()
            .all(|step| run("ip", step))
            .then_some(namespace)
    }
}

/// A key and its certificate for this address, below an authority of its own (`ca.pem`): rustls takes
/// no certificate of an authority for that of a server.
fn certify(directory: &Path, address: &str) -> Option<(String, String)> {
    let path = |name: &str| directory.join(name).display().to_string();
    std::fs::write(path("names"), format!("subjectAltName=IP:{address}")).ok()?;
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let steps = [
        format!(
            "req -x509 {new_key} -days 2 -subj /CN=caracal-test-authority -out {} -keyout {}",
            path("ca.pem"),
            path("ca.key")
        ),
        format!(
            "req {new_key} -subj /CN=caracal-test -out {} -keyout {}",
            path("request"),
            path("key")
        ),
        format!(
            "x509 -req -in {} -CA {} -CAkey {} -CAcreateserial -days 2 -extfile {} -out {}",
            path("request"),
            path("ca.pem"),
            path("ca.key"),
            path("names"),
            path("leaf.pem")
        ),
    ];
    let made = steps
        .iter()
        .all(|step| run("openssl", &step.split(' ').collect::<Vec<_>>()));
    let [leaf, authority] = ["leaf.pem", "ca.pem"].map(|name| std::fs::read_to_string(path(name)));
    std::fs::write(path("chain.pem"), leaf.ok()? + &authority.ok()?).ok()?;
    made.then(|| (path("chain.pem"), path("key")))
}

impl OauthProvider {
    /// Starts one that knows the public key of [`signer`]; `None`, which is said, where that is not
    /// possible.
    ///
    /// # Panics
    /// When everything is there and it does not start all the same.
    pub fn start(for_what: &str) -> Option<Self> {
        let provider = Self::try_start();
        if provider.is_none() {
            crate::visibly(&format!(
                "skipped {for_what}: needs root, ip, openssl, node and CARACAL_TEST_OAUTH"
            ));
        }
        provider
    }

    fn try_start() -> Option<Self> {
        let (_, jwk) = signer();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let package = PathBuf::from(std::env::var_os("CARACAL_TEST_OAUTH")?);
        let n = std::process::id()
            .wrapping_mul(4)
            .wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
            % 16_384;
        let base = n * 4;
        let host = |of: u32| format!("10.203.{}.{}", (base + of) / 256, (base + of) % 256);
        let (ours, address) = (host(1), host(2));
        let namespace = Namespace::create(&format!("cvt{n}"), &address, &ours)?;
        let directory = tempfile::tempdir().expect("a directory");
        let certified = certify(directory.path(), &address);
        let (Some((certificate, key)), true) = (certified, run("node", &["--version"])) else {
            return None;
        };
        let script = package.join("provider.mjs").display().to_string();
        let (port, control) = (PORT.to_string(), CONTROL.to_string());
        let arguments = [
            "netns",
            "exec",
            &namespace.0,
            "node",
            &script,
            &address,
            &port,
            &control,
            &certificate,
            &key,
            CALLBACK,
        ];
        let environment = vec![("CLIENT_JWK".to_owned(), jwk.to_owned())];
        let log = directory.path().join("log");
        let mut process = Process::new("oauth", "ip".into(), arguments, environment, log);
        process.start();
        Some(Self {
            process,
            address,
            namespace,
            directory,
            http: Http::default(),
        })
    }

    /// Settings under which a deployment trusts and reaches it.
    #[must_use]
    pub fn options(&self) -> Options {
        let ca = self.ca().display().to_string();
        Options::default()
            .env("CARACAL_TLS_EXTRA_CA_FILE", &ca)
            .env("CARACAL_PRIVATE_EGRESS_HOSTS", &self.address)
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// An endpoint.
    #[must_use]
    pub fn endpoint(&self, path: &str) -> String {
        format!("https://{}:{PORT}/{path}", self.address)
    }

    /// Waits until it answers.
    pub async fn is_up(&self) {
        let what = format!("the provider in {} is up", self.namespace.0);
        crate::eventually(&what, async || self.ask("").await.is_ok()).await;
    }

    async fn ask(&self, path: &str) -> Result<Value, String> {
        let request = Request {
            method: "GET",
            url: format!("http://{}:{CONTROL}/{path}", self.address),
            bearer: None,
            headers: vec![],
            body: bytes::Bytes::new(),
        };
        let answer = self.http.try_send(request).await?;
        if answer.status == 200 {
            Ok(answer.json())
        } else {
            Err(String::from_utf8_lossy(&answer.body).into_owned())
        }
    }

    /// Signs in with a browser that is sent to this URL; answers where it ends up.
    ///
    /// # Panics
    /// When the provider does not let it in.
    pub async fn browse(&self, url: &str) -> String {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("url", url)
            .finish();
        let answer = self
            .ask(&format!("browse?{query}"))
            .await
            .expect("a sign-in");
        answer["location"].as_str().unwrap_or_default().to_owned()
    }

    /// What its ID tokens say that it is.
    #[must_use]
    pub fn issuer(&self) -> String {
        format!("https://{}:{PORT}", self.address)
    }

    /// The ID token of the user `alice`, who signs in at this client: `web` or `other`.
    ///
    /// # Panics
    /// When the provider does not let her in.
    pub async fn id_token(&self, client: &str) -> String {
        let answer = self.ask(&format!("id-token?client={client}")).await;
        let answer = answer.expect("a sign-in");
        answer["id_token"].as_str().expect("an ID token").to_owned()
    }

    /// What the provider knows of a token.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn about(&self, token: &str) -> Value {
        self.ask(&format!("about?token={token}"))
            .await
            .expect("an answer")
    }

    /// How often its token endpoint was asked.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn asked(&self) -> u64 {
        let answer = self.ask("").await.expect("an answer");
        answer["asked"]["/token"].as_u64().unwrap_or(0)
    }
}

/// A private key of these tests, and its public half as the provider is told it. Both stand in the
/// open: they prove nothing to anybody.
///
/// # Panics
/// When the file is not there.
#[must_use]
pub fn signer() -> (String, &'static str) {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/crypto/testdata/p256.pkcs8.pem");
    let pem = std::fs::read_to_string(file).expect("a key");
    let jwk = concat!(
        r#"{"kty":"EC","crv":"P-256","kid":"k1","use":"sig","alg":"ES256","#,
        r#""x":"fiPB9DLHKqFJa3zp0-6yk3_lYbCuGB0OdKJhT6O750Q","#,
        r#""y":"DsiOIoQ7kB2OCP8hXiM7BrrA6nxlQlFJSGG6nH5rjqE"}"#
    );
    (pem, jwk)
}
