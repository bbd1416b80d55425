//! How a request is refused, and what that counts as (spec: gateway §3.1).

use caracal_client::ExchangeRefused;
use caracal_model::{ApplicationId, Jti, Mandate, Refused, ZoneId};
use caracal_net::Problem;

use crate::metrics::Metrics;

/// Which counter a denial raises, next to `requests_denied`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// No bearer.
    MissingAuth,
    /// A bearer that is none of ours, or not meant for the Gateway.
    BadBearer,
    /// Too little life left.
    Expiring,
    /// Routing headers or claims.
    BadRouting,
    /// The path.
    PathTraversal,
    /// The signature.
    Signature,
    /// Used before.
    JtiReplay,
    /// Revoked.
    Revoked,
    /// Revocations unknown.
    RevocationStale,
    /// The request as such: method, size.
    BadRequest,
    /// A dependency of ours.
    Unavailable,
}

impl Cause {
    /// Whether it comes before anything was proven. The others are of a call that has a record of its
    /// own, or are our fault.
    pub const fn is_unproven(self) -> bool {
        matches!(
            self,
            Self::MissingAuth
                | Self::BadBearer
                | Self::Expiring
                | Self::BadRouting
                | Self::PathTraversal
                | Self::Signature
                | Self::BadRequest
        )
    }

    /// As counters and evidence name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MissingAuth => "missing_auth",
            Self::BadBearer => "bad_bearer",
            Self::Expiring => "expiring",
            Self::BadRouting => "bad_routing",
            Self::PathTraversal => "path_traversal",
            Self::Signature => "signature",
            Self::JtiReplay => "jti_replay",
            Self::Revoked => "revoked",
            Self::RevocationStale => "revocation_stale",
            Self::BadRequest => "bad_request",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A denial before the exchange.
#[derive(Clone, Debug)]
pub struct Denied(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    cause: Cause,
    refused: Refused,
    whose: Option<Whose>,
}

/// Whom a proven mandate names: only then is a denial evidence.
#[derive(Clone, Debug)]
pub struct Whose {
    /// Its zone.
    pub zone: ZoneId,
    /// Its application.
    pub application: ApplicationId,
    /// Its id.
    pub jti: Jti,
}

impl Denied {
    /// A denial of nobody in particular.
    pub fn new(cause: Cause, refused: Refused) -> Self {
        Self(Box::new(Inner {
            cause,
            refused,
            whose: None,
        }))
    }

    /// The same, of whom this mandate names. Its signature must have been verified.
    #[must_use]
    pub fn of(mut self, mandate: &Mandate) -> Self {
        self.0.whose = Some(Whose {
            zone: mandate.zone_id.clone(),
            application: mandate.client_id.clone(),
            jti: mandate.jti.clone(),
        });
        self
    }

    /// Why.
    pub fn cause(&self) -> Cause {
        self.0.cause
    }

    /// What the caller is told.
    pub fn refused(&self) -> &Refused {
        &self.0.refused
    }

    /// Whom a verified mandate named.
    pub fn whose(&self) -> Option<&Whose> {
        self.0.whose.as_ref()
    }
}

/// Every way in which a request gets no response of its upstream.
#[derive(Debug)]
pub enum Rejection {
    /// Before the exchange.
    Denied(Denied),
    /// By the STS.
    Exchange(ExchangeRefused),
    /// After the exchange: the upstream, or the way there.
    Upstream(Problem),
    /// For want of evidence.
    NoEvidence(Refused),
}

impl From<Denied> for Rejection {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl Rejection {
    /// Counts it.
    pub fn count(&self, metrics: &Metrics) {
        match self {
            Self::Denied(denied) => {
                metrics.requests_denied.inc();
                if let Some(counter) = denied.cause().counter(metrics) {
                    counter.inc();
                }
            }
            Self::Exchange(_) => {
                metrics.requests_denied.inc();
                metrics.sts_exchange_errors.inc();
            }
            Self::Upstream(_) => {
                metrics.upstream_errors.inc();
            }
            Self::NoEvidence(_) => {
                metrics.requests_denied.inc();
            }
        }
    }

    /// The answer.
    pub fn into_problem(self) -> Problem {
        match self {
            Self::Denied(denied) => Problem::from(denied.0.refused),
            Self::Exchange(refused) => Problem::from(refused),
            Self::Upstream(problem) => problem,
            Self::NoEvidence(refused) => Problem::from(refused),
        }
    }
}

impl Cause {
    fn counter(self, metrics: &Metrics) -> Option<&caracal_net::metrics::Counter> {
        Some(match self {
            Self::MissingAuth => &metrics.denials_missing_auth,
            Self::BadBearer => &metrics.denials_bad_bearer,
            Self::Expiring => &metrics.denials_expiring,
            Self::BadRouting => &metrics.denials_bad_routing,
            Self::PathTraversal => &metrics.denials_path_traversal,
            Self::Signature => &metrics.denials_signature,
            Self::JtiReplay => &metrics.denials_jti_replay,
            Self::Revoked => &metrics.denials_revoked,
            Self::RevocationStale => &metrics.denials_revocation_stale,
            Self::BadRequest | Self::Unavailable => return None,
        })
    }
}
