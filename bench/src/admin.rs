//! The management API, as much of it as provisioning and counting need.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderName, Method, StatusCode};
use serde_json::Value;

use crate::wire::{Answer, Base, Conn};

/// A caller of the management API; waits out its rate limit.
pub struct Admin {
    conn: Conn,
    headers: [(HeaderName, HeaderValue); 2],
}

impl Admin {
    pub fn new(base: &Base, token: &str) -> anyhow::Result<Self> {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .context("the admin token holds characters that no header may hold")?;
        bearer.set_sensitive(true);
        let json = HeaderValue::from_static("application/json");
        Ok(Self {
            conn: Conn::new(base),
            headers: [(AUTHORIZATION, bearer), (CONTENT_TYPE, json)],
        })
    }

    pub async fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn delete(&mut self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::DELETE, path, None).await
    }

    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let target = self.conn.base().at(path);
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        // A body-less request carries no content type, as the published clients do.
        let used = if body.is_some() { 2 } else { 1 };
        for _ in 0..10 {
            let headers = self.headers.get(..used).unwrap_or_default();
            let answer = self
                .conn
                .send(method.clone(), &target, headers, bytes.clone())
                .await
                .map_err(|lost| no_answer(&method, path, self.conn.base(), lost.name()))?;
            if answer.status != StatusCode::TOO_MANY_REQUESTS {
                return read(&method, path, &answer);
            }
            let wait = answer.retry_after().unwrap_or(Duration::from_secs(5));
            tokio::time::sleep(wait.clamp(Duration::from_secs(1), Duration::from_secs(60))).await;
        }
        bail!("{method} {path}: still rate limited after 10 tries; set API_V1_RATE_LIMIT_PER_MIN=0")
    }
}

fn no_answer(method: &Method, path: &str, base: &Base, what: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{method} {path}: {what} at {}. Is the server running? Start it with `caracal up`, or \
         let this program start one with --spawn",
        base.authority()
    )
}

fn read(method: &Method, path: &str, answer: &Answer) -> anyhow::Result<Value> {
    if answer.status == StatusCode::UNAUTHORIZED {
        bail!(
            "{method} {path}: the admin token is not accepted. Give the token of this deployment \
             with --admin-token-file or CARACAL_ADMIN_TOKEN"
        );
    }
    if !answer.status.is_success() {
        let text = String::from_utf8_lossy(&answer.body);
        bail!(
            "{method} {path}: {} {}",
            answer.status.as_u16(),
            text.trim()
        );
    }
    if answer.body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&answer.body).with_context(|| format!("{method} {path}: not JSON"))
}

/// A text field that the answer must have.
pub fn text<'v>(value: &'v Value, field: &str) -> anyhow::Result<&'v str> {
    value
        .get(field)
        .and_then(Value::as_str)
        .with_context(|| format!("the answer has no text field `{field}`: {value}"))
}
