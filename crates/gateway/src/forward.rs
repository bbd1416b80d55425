//! From a directive to a request on its way (spec: gateway §4, §10, §11).

use axum::body::Body;
use caracal_client::{Directive, GatewayGrant};
use caracal_model::Refusal;
use caracal_net::Problem;
use caracal_net::egress::{ForwardError, Forwarder};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Method, Request, StatusCode, Uri};

use crate::config::Config;
use crate::credential;
use crate::evidence::{CLIENT_GONE, Ended};
use crate::target;
use crate::upload::{Broken, UploadWatch};

/// A call that ends without a response of its upstream: what is recorded, and what is answered.
#[derive(Debug)]
pub struct Failed {
    /// For the record.
    pub ended: Ended,
    /// For the caller.
    pub problem: Problem,
}

impl Failed {
    fn new(ended: Ended, status: StatusCode, why: &'static str) -> Self {
        Self {
            ended,
            problem: Problem::new(status, "internal_error").because(why),
        }
    }

    /// The upstream may not be reached.
    pub fn not_addressable() -> Self {
        let why = "upstream not addressable";
        Self::new(Ended::NotAddressable, StatusCode::BAD_GATEWAY, why)
    }

    fn build() -> Self {
        let why = "upstream request build failed";
        Self::new(Ended::BuildFailed, StatusCode::BAD_REQUEST, why)
    }

    /// The mandate was revoked while its call was being prepared: nothing was sent.
    pub fn revoked() -> Self {
        let refused = Refusal::Revoked.because("session revoked");
        Self {
            ended: Ended::Revoked,
            problem: refused.into(),
        }
    }

    /// The upstream answered with something that is no answer.
    pub fn unreachable() -> Self {
        Self::new(
            Ended::TransportError,
            StatusCode::BAD_GATEWAY,
            "upstream unreachable",
        )
    }
}

/// The upstream of a directive, once it was judged.
#[derive(Clone, Debug)]
pub struct Upstream {
    scheme: Scheme,
    authority: Authority,
    path: String,
    query: Option<String>,
    /// Lower case, without brackets.
    pub host: String,
}

impl Upstream {
    /// Reads the URL of a directive: absolute, http or https, no credentials, a host.
    pub fn read(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri
            .scheme()
            .filter(|s| **s == Scheme::HTTP || **s == Scheme::HTTPS)?
            .clone();
        let authority = uri.authority()?.clone();
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let host = authority.host().to_ascii_lowercase();
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Some(Self {
            scheme,
            authority,
            path: uri.path().to_owned(),
            query: uri.query().map(str::to_owned),
            host,
        })
    }

    /// Whether the call may go there: the host is allowed, and so is every address of it.
    pub async fn judge(
        &self,
        directive: &Directive,
        config: &Config,
        forwarder: &Forwarder,
    ) -> Result<(), Failed> {
        let allowed = &config.upstream_hosts;
        if !allowed.is_empty() && !allowed.contains(&self.host) {
            return Err(Failed::not_addressable());
        }
        if let Err(error) = forwarder.vet(self.authority.host()).await {
            tracing::warn!(host = self.host, %error, "upstream refused");
            return Err(Failed::not_addressable());
        }
        let hosts = &directive.allowed_token_hosts;
        if !hosts.is_empty()
            && !hosts
                .iter()
                .any(|host| host.eq_ignore_ascii_case(&self.host))
        {
            let why = "provider credential not allowed for upstream host";
            return Err(Failed::new(
                Ended::HostNotAllowed,
                StatusCode::BAD_GATEWAY,
                why,
            ));
        }
        Ok(())
    }

    /// The outbound request without its body. `headers` are the inbound ones, already cleaned.
    pub fn request(
        &self,
        method: Method,
        inbound: &Uri,
        mut headers: HeaderMap,
        grant: &GatewayGrant,
    ) -> Result<Parts, Failed> {
        let directive = &grant.directive;
        let placed = credential::place(&mut headers, directive, grant.access_token.as_ref());
        let in_query = placed.map_err(|error| {
            tracing::warn!(host = self.host, %error, "directive not usable");
            Failed::build()
        })?;
        let query = target::merged(self.query.as_deref(), inbound.query(), in_query);
        let query = query.map_err(|_| Failed::build())?;
        let mut below = target::joined(&self.path, inbound.path());
        if let Some(query) = query {
            below.push('?');
            below.push_str(&query);
        }
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(below)
            .build()
            .map_err(|_| Failed::build())?;
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = method;
        parts.uri = uri;
        parts.headers = headers;
        Ok(parts)
    }
}

/// What a failed send is to the caller. The URL is never told: it may carry a key.
pub fn failed(error: &ForwardError, upload: &UploadWatch) -> Failed {
    let ended = Ended::TransportError;
    match (upload.broken(), error) {
        (Some(Broken::TooLarge), _) => Failed {
            ended,
            problem: caracal_net::body::too_large(),
        },
        (Some(Broken::Gone), _) => Failed::new(ended, CLIENT_GONE, "client cancelled"),
        (Some(Broken::Stalled), _) => {
            Failed::new(ended, StatusCode::REQUEST_TIMEOUT, "request body timeout")
        }
        (None, ForwardError::TimedOut) => {
            Failed::new(ended, StatusCode::GATEWAY_TIMEOUT, "upstream timeout")
        }
        (None, error) => {
            tracing::warn!(%error, "upstream unreachable");
            Failed::unreachable()
        }
    }
}

/// A request and its body.
pub fn with_body<B>(parts: Parts, body: B) -> Request<Body>
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    Request::from_parts(parts, Body::new(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_absolute_http_urls_are_upstreams() {
        for (url, host) in [
            ("https://API.example/v2", Some("api.example")),
            ("http://127.0.0.1:9000", Some("127.0.0.1")),
            ("http://[::1]:9000/x", Some("::1")),
            ("https://api.example/v2#part", Some("api.example")),
            ("https://user:secret@api.example/", None),
            ("https://user@api.example/", None),
            ("ftp://api.example/", None),
            ("//api.example/", None),
            ("/v2", None),
            ("api.example", None),
            ("https://", None),
            ("", None),
        ] {
            let read = Upstream::read(url);
            assert_eq!(
                read.as_ref().map(|upstream| upstream.host.as_str()),
                host,
                "{url}"
            );
        }
    }

    #[test]
    fn bytes_of_path_and_query_reach_the_upstream_as_they_came() {
        let grant = |url: &str| GatewayGrant {
            directive: Directive {
                url: url.to_owned(),
                ..Directive::default()
            },
            expires_in: 1,
            access_token: Some(caracal_model::Secret::new("m".to_owned())),
        };
        for (url, inbound, expected) in [
            (
                "http://up",
                "/a%2Fb//c/?X-Sig=a%2Bb&b=2&a=1",
                "http://up/a%2Fb//c/?X-Sig=a%2Bb&b=2&a=1",
            ),
            ("http://up/", "//x/100%25?", "http://up//x/100%25?"),
            ("http://up:81/v2/", "/items/", "http://up:81/v2/items/"),
            ("http://up/v2", "/?a", "http://up/v2?a"),
            (
                "http://up/v2?k=1",
                "/x?k=2&z=%20",
                "http://up/v2/x?k=1&z=%20",
            ),
            ("http://up", "http://other.example/abs?q", "http://up/abs?q"),
        ] {
            let upstream = Upstream::read(url).unwrap();
            let inbound: Uri = inbound.parse().unwrap();
            let parts = upstream.request(Method::GET, &inbound, HeaderMap::new(), &grant(url));
            assert_eq!(parts.unwrap().uri.to_string(), expected);
        }
    }
}
