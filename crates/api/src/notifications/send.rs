//! One signed request to a webhook (spec: audit-and-streams §13).

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use caracal_crypto::mac::HmacKey;
use caracal_model::{Secret, Timestamp};
use caracal_net::egress::{AddressGuard, Bounds, Fetcher};
use http::Request;
use http::header::CONTENT_TYPE;
use url::{Host, Url};

/// How long a webhook has for its answer.
const WITHIN: Duration = Duration::from_secs(10);
/// What of an answer is read at most; it is not looked at.
const ANSWER: usize = 64 * 1024;

/// The ways out to webhooks.
#[derive(Clone, Debug)]
pub struct Hooks {
    /// https, to where tenants may send us.
    pub strict: Fetcher,
    /// http to this machine, where the deployment allows it.
    pub loopback: Option<Fetcher>,
}

/// What came of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// The answer, if there was one.
    pub status: Option<u16>,
    /// Why it was not taken; none when it was.
    pub error: Option<String>,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Message<'m> {
    /// `X-Caracal-Event`: the type.
    pub event_type: &'m str,
    /// `X-Caracal-Delivery`.
    pub delivery: &'m str,
    /// `X-Caracal-Sink`.
    pub sink: &'m str,
    /// When it is signed.
    pub at: Timestamp,
    /// The exact body.
    pub body: &'m str,
}

/// `X-Caracal-Signature`.
pub fn signature(secret: &Secret<Vec<u8>>, seconds: i64, body: &str) -> String {
    let key = HmacKey::from_bytes(Secret::new(secret.expose().clone()));
    let message = format!("{seconds}.{body}");
    format!("v1={}", key.sign_hex(message.as_bytes()))
}

impl Hooks {
    /// Whether a webhook may be there.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn check(&self, url: &str) -> Result<(), String> {
        let parsed = Url::parse(url).map_err(|_| "url must be an absolute URL".to_owned())?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err("url must not carry a user or a password".to_owned());
        }
        if parsed.fragment().is_some() || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("url must not have a fragment or white space".to_owned());
        }
        match (parsed.scheme(), parsed.host()) {
            ("https", Some(host)) => {
                let address = match host {
                    Host::Ipv4(address) => Some(IpAddr::V4(address)),
                    Host::Ipv6(address) => Some(IpAddr::V6(address)),
                    Host::Domain(_) => None,
                };
                let blocked = |address| AddressGuard::strict([]).judge("", address).is_err();
                if address.is_some_and(blocked) {
                    return Err("url names an address that may not be asked".to_owned());
                }
                Ok(())
            }
            ("http", Some(host)) if is_loopback(&host) => match self.loopback {
                Some(_) => Ok(()),
                None => Err("http to this machine is for development; use https".to_owned()),
            },
            _ => Err("url must be https, or http to localhost, 127.0.0.1 or [::1]".to_owned()),
        }
    }

    /// Sends; any 2xx within ten seconds is success, a redirect is not.
    pub async fn send(&self, url: &str, secret: &Secret<Vec<u8>>, message: Message<'_>) -> Attempt {
        let failed = |error: String| Attempt {
            status: None,
            error: Some(error),
        };
        if let Err(why) = self.check(url) {
            return failed(why);
        }
        let strict = url.starts_with("https:");
        let fetcher = if strict {
            Some(&self.strict)
        } else {
            self.loopback.as_ref()
        };
        let Some(fetcher) = fetcher else {
            return failed("http is not allowed here".to_owned());
        };
        let seconds = message.at.unix_seconds();
        let request = Request::post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("X-Caracal-Event", message.event_type)
            .header("X-Caracal-Delivery", message.delivery)
            .header("X-Caracal-Sink", message.sink)
            .header("X-Caracal-Timestamp", seconds)
            .header(
                "X-Caracal-Signature",
                signature(secret, seconds, message.body),
            )
            .body(Bytes::copy_from_slice(message.body.as_bytes()));
        let Ok(request) = request else {
            return failed("the request cannot be made".to_owned());
        };
        let bounds = Bounds {
            within: WITHIN,
            bytes: ANSWER,
        };
        match fetcher.fetch(request, bounds).await {
            Ok(response) if response.status().is_success() => Attempt {
                status: Some(response.status().as_u16()),
                error: None,
            },
            Ok(response) => Attempt {
                status: Some(response.status().as_u16()),
                error: Some(format!("answered {}", response.status().as_u16())),
            },
            Err(error) => failed(error.to_string()),
        }
    }
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost",
        Host::Ipv4(address) => address.octets() == [127, 0, 0, 1],
        Host::Ipv6(address) => address.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(secret: &str, seconds: i64, body: &str) -> String {
        signature(&Secret::new(secret.as_bytes().to_vec()), seconds, body)
    }

    #[test]
    fn the_vectors_of_the_specification_hold() {
        let body = r#"{"id":"evt-1","type":"step_up_issued","zone_id":"zone-1","decision":"pending","occurred_at":"2026-05-21T12:00:00.000Z","data":{}}"#;
        assert_eq!(
            signed("nsk_test", 1_779_364_800, body),
            "v1=365e3fb69ecd5649ecf150c56159fc129e41f0ea44d9778b6495f2be7c3a5c6f"
        );
        let secret = format!("nsk_{}", "0".repeat(48));
        assert_eq!(
            signed(
                &secret,
                1_700_000_000,
                r#"{"id":"e1","type":"step_up_issued"}"#
            ),
            "v1=9c80a4548230cba728bc09ec7d3fb622b8d66af1a5d0cb5316369e855cdbbd4b"
        );
    }

    #[test]
    fn a_webhook_is_https_or_on_this_machine_where_that_is_allowed() {
        let clock = std::sync::Arc::new(caracal_model::TestClock::default());
        let hooks = |loopback: bool| Hooks {
            strict: Fetcher::strict([], None, clock.clone()),
            loopback: loopback.then(|| Fetcher::loopback(clock.clone())),
        };
        for (url, closed, open) in [
            ("https://hooks.example/a?b=c", true, true),
            ("https://93.184.216.34/", true, true),
            ("http://localhost:8080/", false, true),
            ("http://127.0.0.1:8080/", false, true),
            ("http://[::1]:8080/", false, true),
            ("http://127.0.0.2/", false, false),
            ("http://hooks.example/", false, false),
            ("https://10.0.0.1/", false, false),
            ("https://127.0.0.1/", false, false),
            ("https://[::1]/", false, false),
            ("https://169.254.169.254/latest", false, false),
            ("https://0x7f.1/", false, false),
            ("https://user@hooks.example/", false, false),
            ("https://hooks.example/#a", false, false),
            ("ftp://hooks.example/", false, false),
            ("hooks.example", false, false),
            ("", false, false),
        ] {
            assert_eq!(hooks(false).check(url).is_ok(), closed, "{url}");
            assert_eq!(hooks(true).check(url).is_ok(), open, "{url}");
        }
    }
}
