//! A client that says what it sends and keeps what it got.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: http::HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// A member of the body, as text.
    pub fn text(&self, member: &str) -> String {
        self.json()[member].as_str().unwrap_or_default().to_owned()
    }

    /// The request id that the answer names.
    pub fn request_id(&self) -> String {
        let id = self
            .headers
            .get("x-request-id")
            .and_then(|id| id.to_str().ok());
        id.unwrap_or_default().to_owned()
    }

    /// This answer, when it has this status.
    ///
    /// # Panics
    /// When it has another.
    #[track_caller]
    #[allow(
        clippy::must_use_candidate,
        reason = "often only the assertion is wanted"
    )]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        self
    }
}

/// A client with keep-alive connections.
#[derive(Clone)]
pub struct Http(Client<HttpConnector, Full<Bytes>>);

impl Default for Http {
    fn default() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }
}

/// What is sent.
pub struct Request<'a> {
    /// Method.
    pub method: &'a str,
    /// Whole URL.
    pub url: String,
    /// `Authorization: Bearer`.
    pub bearer: Option<&'a str>,
    /// Further headers.
    pub headers: Vec<(&'a str, String)>,
    /// Body.
    pub body: Bytes,
}

impl Http {
    /// Sends; a connection that fails or breaks is an error, not an answer.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn try_send(&self, request: Request<'_>) -> Result<Answer, String> {
        let mut builder = http::Request::builder()
            .method(request.method)
            .uri(&request.url);
        if let Some(bearer) = request.bearer {
            builder = builder.header("authorization", format!("Bearer {bearer}"));
        }
        for (name, value) in request.headers {
            builder = builder.header(name, value);
        }
        let whole = builder
            .body(Full::new(request.body))
            .map_err(|e| e.to_string())?;
        let response = self.0.request(whole).await.map_err(|e| e.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    /// As [`Http::try_send`].
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn send(&self, request: Request<'_>) -> Answer {
        let what = format!("{} {}", request.method, request.url);
        self.try_send(request)
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// `GET` of an address that may not answer.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn try_get(&self, url: &str) -> Result<Answer, String> {
        let request = Request {
            method: "GET",
            url: url.to_owned(),
            bearer: None,
            headers: vec![],
            body: Bytes::new(),
        };
        self.try_send(request).await
    }

    /// `GET`.
    pub async fn get(&self, url: impl Into<String>, bearer: Option<&str>) -> Answer {
        self.send(Request {
            method: "GET",
            url: url.into(),
            bearer,
            headers: vec![],
            body: Bytes::new(),
        })
        .await
    }

    /// Any method with a JSON body.
    pub async fn json(
        &self,
        method: &str,
        url: impl Into<String>,
        bearer: &str,
        body: &Value,
    ) -> Answer {
        let headers = vec![("content-type", "application/json".to_owned())];
        let body = Bytes::from(body.to_string());
        self.send(Request {
            method,
            url: url.into(),
            bearer: Some(bearer),
            headers,
            body,
        })
        .await
    }

    /// `POST` of a form.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn form(
        &self,
        url: impl Into<String>,
        fields: &[(&str, &str)],
    ) -> Result<Answer, String> {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let headers = vec![(
            "content-type",
            "application/x-www-form-urlencoded".to_owned(),
        )];
        self.try_send(Request {
            method: "POST",
            url: url.into(),
            bearer: None,
            headers,
            body: body.into(),
        })
        .await
    }
}
