//! How the object store's library reaches S3: through our own client and TLS, and with the headers
//! that lock an object, for which the library has no option.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use caracal_crypto::digest::hex_decode;
use caracal_model::{Clock, Secret};
use caracal_net::egress::{AddressGuard, Egress, GuardedConnector, SystemResolver, client_config};
use http::header::{AUTHORIZATION, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::aws::{
    AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredentialProvider, Checksum,
};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};

use crate::ExportError;
use crate::config::{Config, LockMode};

/// How long one request may take, its upload included.
const REQUEST_WITHIN: Duration = Duration::from_secs(300);

const LOCK_MODE: HeaderName = HeaderName::from_static("x-amz-object-lock-mode");
const LOCK_UNTIL: HeaderName = HeaderName::from_static("x-amz-object-lock-retain-until-date");
/// Which of its checksum headers S3 is to go by; it takes no locked object without one.
const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-sdk-checksum-algorithm");
const CONTENT_SHA256: &str = "x-amz-content-sha256";

/// Opens a bucket; nothing is asked of it yet.
pub(crate) fn open(
    config: &Config,
    bucket: &str,
    extra_ca: Option<&std::path::Path>,
    clock: Arc<dyn Clock>,
) -> Result<AmazonS3, ExportError> {
    let tls = client_config(extra_ca)?;
    // The operator named this server and the sources of credentials: every address is right.
    let egress = Egress::new(
        AddressGuard::operator(),
        Arc::new(SystemResolver),
        Arc::clone(&clock),
    );
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build(GuardedConnector::new(egress, tls));
    let credentials = Arc::new(OnceLock::new());
    let lock = config.lock().map(|mode| Lock {
        mode,
        days: config.lock_days,
        region: config.region.clone(),
        credentials: Arc::clone(&credentials),
        clock,
    });
    let http = Http {
        client,
        lock: lock.map(Arc::new),
    };
    let store = builder(config, bucket).with_http_connector(http).build()?;
    // Set once, right after it is known.
    let _ = credentials.set(Arc::clone(store.credentials()));
    Ok(store)
}

fn builder(config: &Config, bucket: &str) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&config.region)
        // Required with object lock, and a second look at what arrived without.
        .with_checksum_algorithm(Checksum::SHA256)
        .with_virtual_hosted_style_request(config.endpoint.is_none());
    if let Some(endpoint) = &config.endpoint {
        builder = builder
            .with_allow_http(endpoint.starts_with("http://"))
            .with_endpoint(endpoint);
    }
    for (key, value) in credentials(config) {
        if let Some(value) = value {
            builder = builder.with_config(key, value);
        }
    }
    builder
}

fn credentials(config: &Config) -> [(AmazonS3ConfigKey, Option<&str>); 9] {
    [
        (
            AmazonS3ConfigKey::AccessKeyId,
            expose(&config.access_key_id),
        ),
        (
            AmazonS3ConfigKey::SecretAccessKey,
            expose(&config.secret_access_key),
        ),
        (AmazonS3ConfigKey::Token, expose(&config.session_token)),
        (AmazonS3ConfigKey::RoleArn, config.role_arn.as_deref()),
        (
            AmazonS3ConfigKey::RoleSessionName,
            config.role_session_name.as_deref(),
        ),
        (
            AmazonS3ConfigKey::WebIdentityTokenFile,
            config.web_identity_token_file.as_deref(),
        ),
        (
            AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
            config.container_relative_uri.as_deref(),
        ),
        (
            AmazonS3ConfigKey::ContainerCredentialsFullUri,
            config.container_full_uri.as_deref(),
        ),
        (
            AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
            config.container_token_file.as_deref(),
        ),
    ]
}

fn expose(secret: &Option<Secret<String>>) -> Option<&str> {
    secret.as_ref().map(|secret| secret.expose().as_str())
}

/// Our client, as the library wants it.
#[derive(Clone)]
struct Http {
    client: Client<GuardedConnector, HttpRequestBody>,
    lock: Option<Arc<Lock>>,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Http(..)")
    }
}

impl HttpConnector for Http {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Http {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if let Some(lock) = &self.lock
            && Lock::is_for(&request)
        {
            lock.put_on(&mut request)
                .await
                .map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        }
        let sending = self.client.request(request);
        let response = tokio::time::timeout(REQUEST_WITHIN, sending)
            .await
            .map_err(|late| HttpError::new(HttpErrorKind::Timeout, late))?
            .map_err(|error| {
                let kind = if error.is_connect() {
                    HttpErrorKind::Connect
                } else {
                    HttpErrorKind::Request
                };
                HttpError::new(kind, error)
            })?;
        let body = |error| HttpError::new(HttpErrorKind::Interrupted, error);
        Ok(response.map(|incoming| HttpResponseBody::new(incoming.map_err(body))))
    }
}

/// Locks what is created.
struct Lock {
    mode: LockMode,
    days: u32,
    region: String,
    credentials: Arc<OnceLock<AwsCredentialProvider>>,
    clock: Arc<dyn Clock>,
}

impl Lock {
    /// Only what is created is locked, which the library marks so.
    fn is_for(request: &HttpRequest) -> bool {
        request.method() == Method::PUT && request.headers().contains_key(IF_NONE_MATCH)
    }

    /// Adds the headers, and signs again: S3 takes none of its headers unsigned.
    async fn put_on(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        let generic =
            |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic {
                store: "object lock",
                source,
            };
        let headers = request.headers_mut();
        headers.insert(LOCK_MODE, HeaderValue::from_static(self.mode.name()));
        let until = HeaderValue::from_str(&self.until()).map_err(|error| generic(error.into()))?;
        headers.insert(LOCK_UNTIL, until);
        headers.insert(CHECKSUM, HeaderValue::from_static("SHA256"));
        let digest = digest(headers);
        headers.remove(AUTHORIZATION);
        let provider = self
            .credentials
            .get()
            .ok_or_else(|| generic("the bucket is not open yet".into()))?;
        let credential = provider.get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(request, digest.as_deref())
    }

    fn until(&self) -> String {
        let days = Duration::from_secs(u64::from(self.days) * 24 * 3_600);
        self.clock.now().plus(days).iso_seconds()
    }
}

/// The digest of the body that the first signature was over.
fn digest(headers: &HeaderMap) -> Option<Vec<u8>> {
    hex_decode(headers.get(CONTENT_SHA256)?.to_str().ok()?).ok()
}
