//! One kept-alive HTTP/1.1 connection, and the cheapest request that hyper can make.
//!
//! A pool would cost a lock and a lookup per call; each worker owns its connections instead.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// No answer within this is counted as `timeout`.
const PATIENCE: Duration = Duration::from_secs(30);

/// A base URL, taken apart once.
#[derive(Clone, Debug)]
pub struct Base {
    authority: Arc<str>,
    host: HeaderValue,
    path: Arc<str>,
}

impl Base {
    /// Reads `http://host[:port][/path]`.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let Some(rest) = url.trim_end_matches('/').strip_prefix("http://") else {
            bail!("`{url}`: give a plain http:// URL; this program does not speak TLS");
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.is_empty() || authority.contains('@') {
            bail!("`{url}` has no usable host");
        }
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let dial = if has_port {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        };
        let host = HeaderValue::from_str(authority).context("the host name is not valid")?;
        Ok(Self {
            authority: dial.into(),
            host,
            path: path.into(),
        })
    }

    /// The path of an endpoint below this base.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.path)
    }

    /// What is dialled, for messages.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

/// Why there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// Nobody listens.
    Connect,
    /// The connection broke.
    Broken,
    /// It took too long.
    Timeout,
}

impl Lost {
    /// For the table of errors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "no connection",
            Self::Broken => "connection broke",
            Self::Timeout => "timeout",
        }
    }
}

/// An answer with its whole body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The `error` code of the body, if it has one.
    pub fn code(&self) -> String {
        serde_json::from_slice::<serde_json::Value>(&self.body)
            .ok()
            .and_then(|body| Some(body.get("error")?.as_str()?.to_owned()))
            .unwrap_or_else(|| "no code".to_owned())
    }

    /// `Retry-After` in seconds, if given so.
    pub fn retry_after(&self) -> Option<Duration> {
        let text = self.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
        Some(Duration::from_secs(text.trim().parse().ok()?))
    }
}

/// A connection that is made on first use and made again after a failure.
pub struct Conn {
    base: Base,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Conn {
    pub fn new(base: &Base) -> Self {
        Self {
            base: base.clone(),
            sender: None,
        }
    }

    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Sends one request and reads the whole answer.
    pub async fn send(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(http::HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Answer, Lost> {
        let exchange = tokio::time::timeout(PATIENCE, self.exchange(method, target, headers, body));
        let answer = exchange.await.unwrap_or(Err(Lost::Timeout));
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }

    async fn exchange(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(http::HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Answer, Lost> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, self.base.host.clone());
        for (name, value) in headers {
            request = request.header(name, value.clone());
        }
        let request = request.body(Full::new(body)).map_err(|_| Lost::Broken)?;
        let response = self
            .ready()
            .await?
            .send_request(request)
            .await
            .map_err(|_| Lost::Broken)?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|_| Lost::Broken)?.to_bytes();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    async fn ready(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, Lost> {
        let usable = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            self.sender = Some(self.connect().await?);
        }
        self.sender.as_mut().ok_or(Lost::Connect)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Lost> {
        let stream = TcpStream::connect(&*self.base.authority)
            .await
            .map_err(|_| Lost::Connect)?;
        stream.set_nodelay(true).map_err(|_| Lost::Connect)?;
        let (mut sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Lost::Connect)?;
        tokio::spawn(connection);
        sender.ready().await.map_err(|_| Lost::Connect)?;
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_are_plain_http() {
        let base = Base::parse("http://localhost:8080/").unwrap();
        assert_eq!(
            (base.authority(), base.at("/health").as_str()),
            ("localhost:8080", "/health")
        );
        let base = Base::parse("http://caracal.test/sts").unwrap();
        assert_eq!(
            (base.authority(), base.at("/x").as_str()),
            ("caracal.test:80", "/sts/x")
        );
        for bad in ["https://a", "localhost:1", "http://", "http://u@h"] {
            assert!(Base::parse(bad).is_err(), "{bad}");
        }
    }
}
