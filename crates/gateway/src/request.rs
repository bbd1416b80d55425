//! A proxied request. [`handle`] is the order of its checks and steps (spec: gateway §3.1); each
//! takes what the one before has established.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use caracal_client::{GatewayExchange, GatewayGrant};
use caracal_model::{Mandate, Refusal, RequestId, Ticks, ZoneId};
use caracal_net::egress::ForwardBody;
use caracal_net::metrics::InFlight;
use caracal_net::{Peer, bearer};
use caracal_view::{ViewError, ZoneView};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, TE, TRAILER};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version};
use http_body::Body as _;

use crate::denial::{Cause, Denied, Rejection};
use crate::evidence::{CallRecord, Ended, OpenCall, fingerprint};
use crate::forward::{self, Failed, Upstream};
use crate::gateway::Gateway;
use crate::headers::{
    self, Origin, X_CARACAL_CLIENT_ID, X_CARACAL_RESOURCE, X_CARACAL_TOKEN_EXPIRES_IN,
};
use crate::mandate::{Admitted, Once, Unverified, Verified, bad_signature, revoked, stale};
use crate::progress::Stall;
use crate::relay::{Active, Relay};
use crate::revocation::RevocationWatch;
use crate::target;
use crate::upload::Upload;

const REVOKED_TRAILER: HeaderValue = HeaderValue::from_static("X-Caracal-Revoked");

/// Everything that is not an operator endpoint.
pub async fn proxy(
    State(gateway): State<Arc<Gateway>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Response {
    gateway.metrics.requests.inc();
    let started = gateway.clock.ticks();
    let outcome = Box::pin(handle(&gateway, &id, started, request)).await;
    let took = gateway.clock.ticks().since(started);
    gateway.metrics.request_seconds.took(took);
    outcome.unwrap_or_else(|rejection| {
        rejection.count(&gateway.metrics);
        if let Rejection::Denied(denied) = &rejection {
            gateway.scribe.denied_unproven(denied, &id);
        }
        let problem = rejection.into_problem();
        tracing::info!(
            request_id = %id,
            status = problem.status().as_u16(),
            error = problem.error(),
            description = problem.description(),
            "refused"
        );
        problem.respond(Some(&id))
    })
}

/// The order of the checks.
async fn handle(
    gateway: &Arc<Gateway>,
    id: &RequestId,
    started: Ticks,
    request: Request,
) -> Result<Response, Rejection> {
    let in_flight = InFlight::new(&gateway.metrics.requests_in_flight);
    let (head, body) = request.into_parts();
    // Before anything is checked, so that no revocation falls between a check and the response.
    let watch = RevocationWatch::new(&gateway.views);
    let bearer = bearer_of(&head.headers, gateway.config.max_bearer_bytes)?;
    let now = gateway.clock.now();
    let unverified = Unverified::parse(bearer)?;
    unverified.preflight(now)?;
    let resource = resource_of(&head.headers)?;
    let zone = unverified.claims()?.zone_id.clone();
    let path = target::decoded(head.uri.path()).map_err(|error| {
        Denied::new(
            Cause::PathTraversal,
            Refusal::BadRequest.because(error.to_string()),
        )
    })?;
    acceptable(&head, gateway.config.max_request_bytes)?;
    let since = gateway.clock.ticks();
    let zone = zone_of(gateway, &zone).await;
    let took = gateway.clock.ticks().since(since);
    gateway.metrics.stages.keys.took(took);
    let zone = zone?;

    let admitted = admit(gateway, unverified, &zone).await;
    let admitted = on_record(gateway, admitted, id, resource, bearer).await?;
    let grant = exchange(
        gateway,
        &admitted,
        id,
        bearer,
        resource,
        &head.method,
        &path,
    )
    .await?;

    let record = record(id, &admitted, resource, bearer, &head.method, &grant);
    drop(path);
    let call = OpenCall::new(gateway.scribe.clone(), record);
    let call = Call {
        gateway,
        admitted,
        call,
        watch,
        started,
        in_flight: Some(in_flight),
    };
    call.forward(head, body, grant, id).await
}

/// Steps 2 and 3.
fn bearer_of(headers: &HeaderMap, limit: usize) -> Result<&str, Denied> {
    // Judged on the raw header, so that an oversized token is told from an absent one.
    if headers
        .get(AUTHORIZATION)
        .is_some_and(|value| value.len() > limit + "Bearer ".len())
    {
        let why = "bearer token too large";
        return Err(Denied::new(
            Cause::BadBearer,
            Refusal::TokenInvalid.because(why),
        ));
    }
    let missing = Refusal::TokenInvalid.because("missing bearer token");
    bearer::token(headers).ok_or_else(|| Denied::new(Cause::MissingAuth, missing))
}

/// Steps 6 and 7. Two resource headers are as bad as none: which would the policy be asked about?
fn resource_of(headers: &HeaderMap) -> Result<&str, Denied> {
    let routing = |why| Denied::new(Cause::BadRouting, Refusal::BadRequest.because(why));
    if headers
        .get_all(X_CARACAL_CLIENT_ID)
        .iter()
        .any(|value| !value.is_empty())
    {
        return Err(routing("client identity derives from the bearer token"));
    }
    let mut values = headers.get_all(X_CARACAL_RESOURCE).iter();
    let (first, second) = (values.next(), values.next());
    let resource = first
        .filter(|_| second.is_none())
        .and_then(|value| value.to_str().ok());
    let resource = resource
        .map(str::trim)
        .filter(|resource| !resource.is_empty());
    resource.ok_or_else(|| routing("missing routing headers"))
}

/// What cannot be proxied at all.
fn acceptable(head: &Parts, limit: u64) -> Result<(), Denied> {
    if head.method == Method::CONNECT {
        let why = "CONNECT is not proxied";
        return Err(Denied::new(
            Cause::BadRequest,
            Refusal::MethodNotAllowed.because(why),
        ));
    }
    let declared = head
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|length: u64| length > limit) {
        let why = "request body too large";
        return Err(Denied::new(
            Cause::BadRequest,
            Refusal::PayloadTooLarge.because(why),
        ));
    }
    Ok(())
}

/// The zone whose keys the mandate claims to be signed with. When neither memory nor the store may
/// answer, revocations are not known either (step 1).
async fn zone_of(gateway: &Gateway, zone: &ZoneId) -> Result<Arc<ZoneView>, Denied> {
    if gateway.strangers.knows(zone) {
        return Err(bad_signature());
    }
    match gateway.views.zone(zone).await {
        Ok(view) => Ok(view),
        Err(ViewError::UnknownZone) => {
            gateway.strangers.remember(zone.clone());
            Err(bad_signature())
        }
        Err(error) => {
            tracing::warn!(%zone, %error, "keys and revocations unavailable");
            Err(stale())
        }
    }
}

/// Steps 11 to 13.
async fn admit(
    gateway: &Gateway,
    unverified: Unverified<'_>,
    zone: &ZoneView,
) -> Result<Admitted, Denied> {
    let (issuer, now) = (gateway.config.issuer.as_deref(), gateway.clock.now());
    let (clock, stages) = (&gateway.clock, &gateway.metrics.stages);
    let since = clock.ticks();
    let verified = unverified.verify(&zone.keys, issuer, now);
    let then = clock.ticks();
    stages.verify.took(then.since(since));
    let verified: Verified = verified?;
    let once = Once {
        bus: &gateway.bus,
        floor_ms: gateway.config.floor_ms,
        fail_open: gateway.config.jti_fail_open,
    };
    let admitted = verified.admit(&gateway.views, once, clock.now()).await;
    stages.replay.took(clock.ticks().since(then));
    admitted
}

/// A denial of a proven mandate is recorded before it is answered.
async fn on_record(
    gateway: &Gateway,
    admitted: Result<Admitted, Denied>,
    id: &RequestId,
    resource: &str,
    bearer: &str,
) -> Result<Admitted, Rejection> {
    let denied = match admitted {
        Ok(admitted) => return Ok(admitted),
        Err(denied) => denied,
    };
    let recorded = gateway.scribe.denied(&denied, id, resource, bearer).await;
    recorded.map_err(|error| Rejection::NoEvidence(error.into()))?;
    Err(denied.into())
}

/// Steps 14 and 15.
async fn exchange(
    gateway: &Gateway,
    admitted: &Admitted,
    id: &RequestId,
    token: &str,
    resource: &str,
    method: &Method,
    path: &str,
) -> Result<GatewayGrant, Rejection> {
    let started = gateway.clock.ticks();
    let request = GatewayExchange {
        token,
        mandate: admitted.claims(),
        resource,
        method: method.as_str(),
        path,
        request_id: id,
        within: gateway.config.sts_timeout,
    };
    let grant = gateway.exchange.exchange(request).await;
    let took = gateway.clock.ticks().since(started);
    gateway.metrics.stages.exchange.took(took);
    gateway
        .metrics
        .sts_exchange_latency_ms
        .set(i64::try_from(took.as_millis()).unwrap_or(i64::MAX));
    grant.map_err(Rejection::Exchange)
}

/// Whether the caller reads trailers (RFC 9110 §6.5.1). To any other, a response that was cut and
/// ends with one would look complete.
fn takes_trailers(head: &Parts) -> bool {
    let lines = head
        .headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut codings = lines.flat_map(|line| line.split(','));
    head.version >= Version::HTTP_11
        && codings.any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

fn expects_a_body(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// Whom the upstream is told that the call comes from.
fn origin(peer: Option<&Peer>, trust_proxy: bool) -> Origin {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    let (peer, tls) = peer.map_or((unknown, false), |peer| (peer.address, peer.tls));
    Origin {
        peer,
        tls,
        trust_proxy,
    }
}

fn record(
    id: &RequestId,
    admitted: &Admitted,
    resource: &str,
    bearer: &str,
    method: &Method,
    grant: &GatewayGrant,
) -> CallRecord {
    let mandate: &Arc<Mandate> = admitted.claims();
    let directive = &grant.directive;
    CallRecord {
        mandate: mandate.clone(),
        request_id: id.clone(),
        resource: resource.to_owned(),
        fingerprint: fingerprint(bearer),
        method: method.as_str().to_owned(),
        trace_id: None,
        upstream_host: None,
        auth_mode: directive.auth_mode.name(),
        provider_id: directive.provider_id.clone(),
        connection_id: directive.connection_id.clone(),
        gateway_status: 0,
        upstream_status: None,
        latency_ms: 0,
        response_bytes: 0,
        revoked: false,
    }
}

/// A call that was admitted and has its directive.
struct Call<'g> {
    gateway: &'g Arc<Gateway>,
    admitted: Admitted,
    call: OpenCall,
    watch: RevocationWatch,
    started: Ticks,
    in_flight: Option<InFlight>,
}

impl Call<'_> {
    /// Steps 16 to 19, and the way back.
    async fn forward(
        mut self,
        head: Parts,
        body: Body,
        grant: GatewayGrant,
        id: &RequestId,
    ) -> Result<Response, Rejection> {
        self.watch.follow(self.admitted.claims().clone());
        let trailers = takes_trailers(&head);
        match self.send(head, body, &grant, id).await {
            Ok(response) => self.respond(response, trailers).await,
            Err(failed) => Err(self.give_up(failed).await),
        }
    }

    async fn send(
        &mut self,
        head: Parts,
        body: Body,
        grant: &GatewayGrant,
        id: &RequestId,
    ) -> Result<http::Response<ForwardBody>, Failed> {
        let gateway = self.gateway;
        let upstream = Upstream::read(&grant.directive.url);
        let Parts {
            method,
            uri,
            mut headers,
            extensions,
            ..
        } = head;
        let declared = headers.contains_key(CONTENT_LENGTH);
        let origin = origin(extensions.get(), gateway.config.trust_proxy);
        let trace_id = headers::outbound(&mut headers, origin, id, &gateway.ids);
        if let Some(record) = self.call.record() {
            record.trace_id = trace_id;
            record.upstream_host = upstream.as_ref().map(|upstream| upstream.host.clone());
        }
        let upstream = upstream.ok_or_else(Failed::not_addressable)?;
        upstream
            .judge(&grant.directive, &gateway.config, &gateway.forwarder)
            .await?;
        let mut parts = upstream.request(method, &uri, headers, grant)?;
        if self.watch.is_tripped() {
            return Err(Failed::revoked());
        }
        let stall = Stall::new(gateway.clock.clone(), gateway.config.read_timeout);
        let (upload, uploading) = Upload::new(body, gateway.config.max_request_bytes, stall);
        if upload.is_end_stream() && (declared || expects_a_body(&parts.method)) {
            // Some servers answer 411 to a request that could have a body and does not say.
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        }
        let outbound = forward::with_body(parts, upload);
        let sent = gateway.clock.ticks();
        let response = gateway
            .forwarder
            .send(outbound, gateway.config.upstream_timeout)
            .await;
        let took = gateway.clock.ticks().since(sent);
        gateway.metrics.stages.upstream.took(took);
        let response = response.map_err(|error| forward::failed(&error, &uploading))?;
        // Nobody asked to switch protocols.
        if response.status().is_informational() {
            return Err(Failed::unreachable());
        }
        Ok(response)
    }

    /// The response as the caller gets it.
    async fn respond(
        mut self,
        response: http::Response<ForwardBody>,
        trailers: bool,
    ) -> Result<Response, Rejection> {
        let (mut head, body) = response.into_parts();
        let latency = self.latency_ms();
        if let Some(record) = self.call.record() {
            record.upstream_status = Some(head.status.as_u16());
            record.gateway_status = head.status.as_u16();
            record.latency_ms = latency;
        }
        if self.watch.is_tripped() {
            return Err(self.cut_before_the_head().await);
        }
        headers::inbound(&mut head.headers);
        let left = self.admitted.seconds_left(self.gateway.clock.now());
        head.headers
            .insert(X_CARACAL_TOKEN_EXPIRES_IN, HeaderValue::from(left));
        head.headers.insert(TRAILER, REVOKED_TRAILER);
        let metrics = &self.gateway.metrics;
        let active = Active::new(
            metrics.active_streams.clone(),
            metrics.requests_allowed.clone(),
            self.in_flight.take(),
        );
        if body.is_end_stream() {
            // The head is the whole answer.
            self.on_record(Ended::Executed).await?;
            return Ok(Response::from_parts(head, Body::empty()));
        }
        let stall = Stall::new(
            self.gateway.clock.clone(),
            self.gateway.config.stream_idle_timeout,
        );
        let relay = Relay::new(body, trailers, self.call, self.watch, stall, active);
        Ok(Response::from_parts(head, Body::new(relay)))
    }

    /// It happened, but its answer is no longer for this caller.
    async fn cut_before_the_head(mut self) -> Rejection {
        let denied = revoked();
        if let Some(record) = self.call.record() {
            record.gateway_status = denied.refused().refusal.row().status;
            record.revoked = true;
        }
        match self.on_record(Ended::Executed).await {
            Ok(()) => denied.into(),
            Err(rejection) => rejection,
        }
    }

    /// No response: recorded, then told.
    async fn give_up(mut self, failed: Failed) -> Rejection {
        let latency = self.latency_ms();
        if let Some(record) = self.call.record() {
            record.gateway_status = failed.problem.status().as_u16();
            record.latency_ms = latency;
            record.revoked = failed.ended == Ended::Revoked;
        }
        match self.on_record(failed.ended).await {
            Ok(()) if failed.ended == Ended::Revoked => revoked().into(),
            Ok(()) => Rejection::Upstream(failed.problem),
            Err(rejection) => rejection,
        }
    }

    async fn on_record(&mut self, ended: Ended) -> Result<(), Rejection> {
        let recorded = self.call.close(ended).await;
        recorded.map_err(|error| Rejection::NoEvidence(error.into()))
    }

    fn latency_ms(&self) -> u64 {
        let took = self.gateway.clock.ticks().since(self.started);
        u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
    }
}
