//! The HTTP client of the commands: what an operator's script would send, no more.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use caracal_model::Clock;
use caracal_net::egress::{AddressGuard, Egress, GuardedConnector, SystemResolver, client_config};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Most bytes of an answer that is read whole: a page of the largest events is less.
const MOST: usize = 128 * 1024 * 1024;
/// No answer within this is an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client. Most commands talk to this machine or through a forwarded port, so it speaks plain
/// HTTP, unless it was made [`Web::with_tls`].
#[derive(Clone, Debug)]
pub struct Web {
    plain: Client<HttpConnector, Full<Bytes>>,
    tls: Option<Client<GuardedConnector, Full<Bytes>>>,
}

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    url: String,
    pub headers: HeaderMap,
    body: Bytes,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    #[error("unreachable")]
    Unreachable,
    #[error("timeout")]
    Timeout,
}

impl Call {
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self {
            method,
            url: url.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::GET, url)
    }

    pub fn bearer(mut self, token: &str) -> anyhow::Result<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .ok()
            .context("the token holds characters that no header may hold")?;
        value.set_sensitive(true);
        self.headers.insert(AUTHORIZATION, value);
        Ok(self)
    }

    pub fn header(mut self, name: &'static str, value: &str) -> anyhow::Result<Self> {
        self.headers.insert(name, HeaderValue::from_str(value)?);
        Ok(self)
    }

    pub fn json(mut self, body: &Value) -> Self {
        self.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.body = Bytes::from(body.to_string());
        self
    }

    pub fn form(mut self, fields: &[(&str, &str)]) -> Self {
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        self.headers.insert(CONTENT_TYPE, form);
        let mut text = url::form_urlencoded::Serializer::new(String::new());
        text.extend_pairs(fields);
        self.body = Bytes::from(text.finish());
        self
    }
}

impl Web {
    pub fn new() -> Self {
        Self {
            plain: Client::builder(TokioExecutor::new()).build_http(),
            tls: None,
        }
    }

    /// One that also speaks HTTPS, and trusts what the operating system trusts and what `extra_ca`
    /// holds.
    pub fn with_tls(extra_ca: Option<&Path>, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let config = client_config(extra_ca)?;
        // Where to go is said by whoever runs the command.
        let egress = Egress::new(AddressGuard::operator(), Arc::new(SystemResolver), clock);
        let connector = GuardedConnector::new(egress, config);
        Ok(Self {
            tls: Some(Client::builder(TokioExecutor::new()).build(connector)),
            ..Self::new()
        })
    }

    /// Sends and reads the whole answer, whatever its status.
    pub async fn send(&self, call: Call, within: Duration) -> Result<Answer, NoAnswer> {
        let exchange = async { whole(self.ask(call).await?).await };
        tokio::time::timeout(within, exchange)
            .await
            .unwrap_or(Err(NoAnswer::Timeout))
    }

    /// Sends, and answers with the head; the body is the caller's to read.
    async fn ask(&self, call: Call) -> Result<Response<Incoming>, NoAnswer> {
        let uri: Uri = call.url.parse().map_err(|_| NoAnswer::Unreachable)?;
        let mut request = Request::new(Full::new(call.body));
        *request.method_mut() = call.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = call.headers;
        let answered = match &self.tls {
            Some(tls) if request.uri().scheme_str() == Some("https") => tls.request(request).await,
            _ => self.plain.request(request).await,
        };
        answered.map_err(|_| NoAnswer::Unreachable)
    }

    /// Opens a stream of events, which does not end by itself.
    pub async fn open(&self, call: Call) -> Result<Opened, NoAnswer> {
        let opening = async {
            let response = self.ask(call).await?;
            if response.status().is_success() {
                let kind = response.headers().get(CONTENT_TYPE);
                let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
                if !kind.starts_with("text/event-stream") {
                    return Ok(Opened::Other);
                }
                return Ok(Opened::Stream(response.into_body()));
            }
            Ok(Opened::Refused(whole(response).await?))
        };
        tokio::time::timeout(PATIENCE, opening)
            .await
            .unwrap_or(Err(NoAnswer::Timeout))
    }

    /// Sends, and takes nothing but success for an answer.
    pub async fn json(&self, call: Call) -> anyhow::Result<Value> {
        let what = format!("{} {}", call.method, call.url);
        let answer = self.answer(call, &what).await?;
        match answer.status.is_success() {
            true => answer.value(),
            false => Err(answer.refusal(&what)),
        }
    }

    /// The same; `None` when there is no such thing.
    pub async fn find(&self, call: Call) -> anyhow::Result<Option<Value>> {
        let what = format!("{} {}", call.method, call.url);
        let answer = self.answer(call, &what).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => answer.value().map(Some),
            _ => Err(answer.refusal(&what)),
        }
    }

    async fn answer(&self, call: Call, what: &str) -> anyhow::Result<Answer> {
        let sent = self.send(call, PATIENCE).await;
        sent.with_context(|| {
            format!(
                "{what}. Is Caracal running there? See `caracal status`, start it with `caracal up`"
            )
        })
    }
}

/// The answer to [`Web::open`].
#[derive(Debug)]
pub enum Opened {
    /// The events, to be read.
    Stream(Incoming),
    /// A success that is no stream of events.
    Other,
    /// Anything else.
    Refused(Answer),
}

async fn whole(response: Response<Incoming>) -> Result<Answer, NoAnswer> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MOST).collect().await;
    let body = body.map_err(|_| NoAnswer::Unreachable)?;
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: body.to_bytes(),
    })
}

impl Answer {
    /// The body as JSON; an empty one is null.
    pub fn value(&self) -> anyhow::Result<Value> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body).context("the answer is not JSON")
    }

    /// The first of these text fields of the body that is there.
    fn first_of(&self, fields: &[&str]) -> Option<String> {
        let body = self.value().ok()?;
        fields
            .iter()
            .find_map(|field| Some(body.get(field)?.as_str()?.to_owned()))
    }

    /// What a person is told of a refusal of `what`.
    pub fn refusal(&self, what: &str) -> anyhow::Error {
        if self.status == StatusCode::UNAUTHORIZED {
            return anyhow!(
                "{what}: 401 {}. Give the admin token of this deployment with --admin-token-file \
                 or CARACAL_ADMIN_TOKEN",
                self.code()
            );
        }
        anyhow!("{what}: {} {}", self.status.as_u16(), self.said())
    }

    /// The refusal's code.
    pub fn code(&self) -> String {
        self.first_of(&["reason", "error", "detail"])
            .unwrap_or_default()
    }

    /// The refusal's code and description.
    pub fn said(&self) -> String {
        match self.first_of(&["error_description", "message"]) {
            Some(description) => format!("{}: {description}", self.code()),
            None => self.code(),
        }
    }

    /// The request's id, under which evidence is found.
    pub fn request_id(&self) -> Option<&str> {
        self.headers.get("x-request-id")?.to_str().ok()
    }
}

/// A text field that the answer must have.
pub fn text(value: &Value, field: &str) -> anyhow::Result<String> {
    value
        .get(field)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("the answer has no text field `{field}`"))
}
