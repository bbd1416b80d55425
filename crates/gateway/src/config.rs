//! The settings of the Gateway (spec: gateway §17, operations §2.3).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use caracal_crypto::HmacKey;
use caracal_model::Secret;
use caracal_net::Limits;
use caracal_net::egress::{client_config, server_config};
use caracal_net::metrics::Access;
use caracal_net::settings::{Mistakes, Mode, Strings};
use url::Url;

/// Longest request head (spec: gateway §1): a bearer takes 8 KiB of it.
const HEAD: usize = 20 * 1024;

caracal_net::settings! {
    /// As declared; [`Config`] is what the service runs on.
    pub struct Settings {
        /// Posture: `dev`, or `rc` and `stable` for deployments.
        pub mode: Mode = var("CARACAL_MODE").or("stable"),
        /// Where the STS is. Outside of dev https, or a host of this machine or cluster.
        pub sts_url: Option<Url> = var("STS_URL")
            .needed("unless the STS runs in the same process").such_as("http://sts:8080"),
        /// Signs exchanges; hex, at least 32 bytes.
        pub gateway_key: Option<HmacKey> = var("GATEWAY_STS_HMAC_KEY").secret().needed("unless dev"),
        /// The issuer of every mandate; when unset, a mandate's own issuer must be its audience.
        pub issuer: Option<String> = var("ISSUER_URL").such_as("https://sts.example"),
        /// Lets an operator force a reload of the revocations.
        pub admin_token: Option<Secret<String>> = var("CARACAL_ADMIN_TOKEN").secret(),
        /// Lets a scraper read the metrics.
        pub metrics_bearer: Option<Secret<String>> = var("METRICS_BEARER").secret(),
        /// How long an exchange may take.
        pub sts_timeout: Duration = var("STS_TIMEOUT").or("5s").within("1ms", "10m"),
        /// How long an upstream may take to the head of its response.
        pub upstream_timeout: Duration = var("UPSTREAM_TIMEOUT").or("30s").within("1ms", "24h"),
        /// How long the head of a request may take.
        pub read_header_timeout: Duration = var("READ_HEADER_TIMEOUT").or("5s").within("1ms", "10m"),
        /// How long a request body may make no progress; longer than STS_TIMEOUT and
        /// UPSTREAM_TIMEOUT together.
        pub read_timeout: Duration = var("READ_TIMEOUT").or("45s").within("1ms", "24h"),
        /// How long a connection may be idle between requests.
        pub idle_timeout: Duration = var("IDLE_TIMEOUT").or("120s").within("1ms", "24h"),
        /// How long a caller may take nothing of a response.
        pub write_timeout: Duration = var("WRITE_TIMEOUT").or("60s").within("1ms", "24h"),
        /// How long an upstream may send nothing within a response.
        pub stream_idle_timeout: Duration = var("STREAM_IDLE_TIMEOUT").or("60s").within("1ms", "24h"),
        /// Longest request body; over it the answer is 413 payload_too_large.
        pub max_request_bytes: u64 = var("MAX_REQUEST_BYTES").or("10485760").within("1", "1099511627776"),
        /// Certificate chain of the listener, PEM; goes with TLS_KEY_FILE.
        pub tls_cert: Option<PathBuf> = var("TLS_CERT_FILE").such_as("/run/tls/tls.crt"),
        /// Key of the listener, PEM; goes with TLS_CERT_FILE.
        pub tls_key: Option<PathBuf> = var("TLS_KEY_FILE").such_as("/run/tls/tls.key"),
        /// More roots to trust, PEM.
        pub extra_ca: Option<PathBuf> = var("CARACAL_TLS_EXTRA_CA_FILE")
            .such_as("/etc/caracal/ca.pem"),
        /// When not empty, the only upstream hosts.
        pub upstream_hosts: Vec<String> = var("UPSTREAM_HOST_ALLOWLIST").or(" ")
            .such_as("crm.example,desk.example"),
        /// Where `/health`, `/ready`, `/metrics`, `/metrics.json` and `/capacity` are, so that an
        /// upstream's own can be reached. Unset, they are at the root.
        pub operator_prefix: Option<String> = var("GATEWAY_OPERATOR_PREFIX").such_as("/-/caracal"),
        /// Whether `X-Forwarded-For` and `X-Forwarded-Proto` of callers are believed.
        pub trust_proxy: bool = var("TRUST_PROXY").or("false"),
        /// Lets mandates pass unclaimed while the bus is out; dev only.
        pub jti_fail_open: bool = var("JTI_FAIL_OPEN").or("false"),
        /// Forbidden in deployments.
        pub insecure_sts: bool = var("INSECURE_STS").or("false"),
        /// Forbidden in deployments.
        pub insecure_http: bool = var("INSECURE_HTTP").or("false"),
    }
}

impl Settings {
    /// The rules that span several settings. `remote_sts` says whether the STS is another process.
    pub fn check(&self, remote_sts: bool, mistakes: &mut Mistakes) {
        let timeouts = ["READ_TIMEOUT", "STS_TIMEOUT", "UPSTREAM_TIMEOUT"];
        let told = timeouts.iter().any(|name| mistakes.tell_of(name));
        if !told && self.read_timeout <= self.sts_timeout + self.upstream_timeout {
            mistakes.add(
                "READ_TIMEOUT",
                "must be longer than STS_TIMEOUT and UPSTREAM_TIMEOUT together",
            );
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            mistakes.add(
                "TLS_CERT_FILE",
                "TLS_CERT_FILE and TLS_KEY_FILE go together",
            );
        }
        if let Some(prefix) = &self.operator_prefix
            && !is_prefix(prefix)
        {
            mistakes.add(
                "GATEWAY_OPERATOR_PREFIX",
                "must be a path of letters, digits, `-`, `_`, `.` and `~` without a slash at its \
                 end, for example /-/caracal",
            );
        }
        if let Some(file) = &self.extra_ca
            && let Err(error) = client_config(Some(file))
        {
            mistakes.add("CARACAL_TLS_EXTRA_CA_FILE", error.to_string());
        }
        if let (Some(chain), Some(key)) = (&self.tls_cert, &self.tls_key)
            && let Err(error) = server_config(chain, key)
        {
            mistakes.add("TLS_CERT_FILE", format!("or TLS_KEY_FILE: {error}"));
        }
        if remote_sts && self.sts_url.is_none() {
            mistakes.add("STS_URL", "is required, for example https://sts.example");
        }
        // What holds for a mode that was mistyped is not known.
        if !self.mode.is_published() || mistakes.tell_of("CARACAL_MODE") {
            return;
        }
        for (name, on) in [
            ("JTI_FAIL_OPEN", self.jti_fail_open),
            ("INSECURE_STS", self.insecure_sts),
            ("INSECURE_HTTP", self.insecure_http),
        ] {
            if on {
                mistakes.add(name, "is for CARACAL_MODE=dev only");
            }
        }
        if remote_sts && self.gateway_key.is_none() {
            mistakes.add(
                "GATEWAY_STS_HMAC_KEY",
                "is required: hex, at least 32 bytes",
            );
        }
        if remote_sts && !self.sts_url.as_ref().is_none_or(is_private_enough) {
            mistakes.add("STS_URL", "must be https, or name a host without a dot");
        }
    }
}

/// Whether paths may begin with this: what no proxy on the way writes in another way.
fn is_prefix(text: &str) -> bool {
    let is_segment = |segment: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        !matches!(segment, "" | "." | "..") && segment.bytes().all(is_plain)
    };
    let segments = text.strip_prefix('/');
    text.len() <= 128 && segments.is_some_and(|path| path.split('/').all(is_segment))
}

/// Whether exchanges may travel there: encrypted, or within the machine or the cluster.
fn is_private_enough(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    url.scheme() == "https" || matches!(host, "127.0.0.1" | "[::1]") || !host.contains(['.', ':'])
}

/// What the service runs on.
#[derive(Debug)]
pub struct Config {
    /// The issuer that mandates must name; when unset, their issuer must be their audience.
    pub issuer: Option<String>,
    /// A Gateway mandate made at this time (Unix milliseconds) or before is spent: claims of before
    /// a restart are not remembered (architecture §4).
    pub floor_ms: Option<u64>,
    /// `CARACAL_ADMIN_TOKEN`.
    pub admin_token: Option<Secret<String>>,
    /// Who may read metrics.
    pub metrics: Arc<Access>,
    /// An exchange.
    pub sts_timeout: Duration,
    /// Head of the upstream's response.
    pub upstream_timeout: Duration,
    /// Progress of a request body.
    pub read_timeout: Duration,
    /// Progress of a response body.
    pub stream_idle_timeout: Duration,
    /// Longest request body.
    pub max_request_bytes: u64,
    /// Longest bearer.
    pub max_bearer_bytes: usize,
    /// The only upstream hosts, unless empty.
    pub upstream_hosts: BTreeSet<String>,
    /// Before the paths of probes and metrics; empty for none.
    pub operator_prefix: String,
    /// Whether a proxy before us is believed.
    pub trust_proxy: bool,
    /// Whether mandates pass unclaimed while the bus is out (dev).
    pub jti_fail_open: bool,
    /// More roots to trust.
    pub extra_ca: Option<PathBuf>,
    /// Of the listener.
    pub limits: Limits,
}

impl Config {
    /// Reads and checks everything; every mistake is added to `mistakes`.
    pub fn load(from: &dyn Strings, remote_sts: bool, mistakes: &mut Mistakes) -> Option<Self> {
        let settings = Settings::load_by(from, mistakes, |settings, mistakes| {
            settings.check(remote_sts, mistakes);
        });
        settings.map(Self::from)
    }
}

impl From<Settings> for Config {
    fn from(settings: Settings) -> Self {
        Self {
            issuer: settings.issuer,
            floor_ms: None,
            admin_token: settings.admin_token,
            metrics: Arc::new(Access {
                bearer: settings.metrics_bearer,
                open: !settings.mode.is_published(),
                json_refusal: false,
            }),
            sts_timeout: settings.sts_timeout,
            upstream_timeout: settings.upstream_timeout,
            read_timeout: settings.read_timeout,
            stream_idle_timeout: settings.stream_idle_timeout,
            max_request_bytes: settings.max_request_bytes,
            max_bearer_bytes: caracal_model::limits::MAX_BEARER_BYTES,
            upstream_hosts: settings.upstream_hosts.into_iter().collect(),
            operator_prefix: settings.operator_prefix.unwrap_or_default(),
            trust_proxy: settings.trust_proxy,
            jti_fail_open: settings.jti_fail_open,
            extra_ca: settings.extra_ca,
            limits: Limits {
                header_read: settings.read_header_timeout,
                idle: settings.idle_timeout,
                write_idle: settings.write_timeout,
                drain: Duration::from_secs(14),
                head_bytes: HEAD,
                ..Limits::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn load(pairs: &[(&str, &str)]) -> (Option<Config>, Mistakes) {
        let from: BTreeMap<String, String> = pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        let mut mistakes = Mistakes::default();
        (Config::load(&from, true, &mut mistakes), mistakes)
    }

    fn mistakes(pairs: &[(&str, &str)]) -> String {
        let (config, mistakes) = load(pairs);
        assert_eq!(config.is_some(), mistakes.is_empty());
        mistakes.to_string()
    }

    const KEY: (&str, &str) = (
        "GATEWAY_STS_HMAC_KEY",
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    );

    #[test]
    fn a_head_may_be_of_twenty_kibibytes() {
        let (config, _) = load(&[("STS_URL", "https://sts.example"), KEY]);
        assert_eq!(config.unwrap().limits.head_bytes, 20_480);
    }

    #[test]
    fn a_prefix_is_a_path_that_nobody_rewrites() {
        for good in ["/-/caracal", "/ops", "/a.b/~c_1"] {
            assert!(is_prefix(good), "{good}");
        }
        let long = format!("/{}", "a".repeat(128));
        for bad in [
            "", "/", "ops", "/ops/", "//ops", "/a/../b", "/%2d", "/{x}", "/a b", &long,
        ] {
            assert!(!is_prefix(bad), "{bad}");
        }
    }

    #[test]
    fn a_deployment_must_have_what_makes_it_safe() {
        assert_eq!(mistakes(&[("STS_URL", "https://sts.example"), KEY]), "");
        assert_eq!(mistakes(&[("STS_URL", "http://sts:8080"), KEY]), "");
        assert_eq!(
            mistakes(&[("STS_URL", "http://sts.example"), ("CARACAL_MODE", "dev")]),
            ""
        );
        let told = mistakes(&[
            ("STS_URL", "http://sts.example"),
            ("JTI_FAIL_OPEN", "yes"),
            ("READ_TIMEOUT", "35s"),
            ("TLS_KEY_FILE", "/key.pem"),
            ("GATEWAY_OPERATOR_PREFIX", "/ops/"),
        ]);
        insta::assert_snapshot!(told, @r"
        READ_TIMEOUT: must be longer than STS_TIMEOUT and UPSTREAM_TIMEOUT together
        TLS_CERT_FILE: TLS_CERT_FILE and TLS_KEY_FILE go together
        GATEWAY_OPERATOR_PREFIX: must be a path of letters, digits, `-`, `_`, `.` and `~` without a slash at its end, for example /-/caracal
        JTI_FAIL_OPEN: is for CARACAL_MODE=dev only
        GATEWAY_STS_HMAC_KEY: is required: hex, at least 32 bytes
        STS_URL: must be https, or name a host without a dot
        ");
    }
}
