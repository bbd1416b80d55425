//! What passes of the headers, both ways (spec: gateway §12).

use std::net::{IpAddr, SocketAddr};

use caracal_model::{Ids, RequestId};
use caracal_net::problem::X_REQUEST_ID;
use caracal_net::trace::{TRACEPARENT, TraceContext, current_trace};
use http::header::{
    ALT_SVC, CONNECTION, CONTENT_LENGTH, CONTENT_LOCATION, EXPECT, HOST, LOCATION,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, REFRESH, SERVER, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Announced on every proxied response, and set when a revocation cut one.
pub const X_CARACAL_REVOKED: HeaderName = HeaderName::from_static("x-caracal-revoked");
/// Life left of the ingress mandate.
pub const X_CARACAL_TOKEN_EXPIRES_IN: HeaderName =
    HeaderName::from_static("x-caracal-token-expires-in");
/// The resource that a call is for.
pub const X_CARACAL_RESOURCE: HeaderName = HeaderName::from_static("x-caracal-resource");
/// Refused: the client is who the mandate names.
pub const X_CARACAL_CLIENT_ID: HeaderName = HeaderName::from_static("x-caracal-client-id");
/// The mandate, for upstreams that take a provider's credential as well.
pub const X_CARACAL_IDENTITY: HeaderName = HeaderName::from_static("x-caracal-identity");

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Meant for one hop only.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What tells of the upstream's make, or moves a client on: what is said of an origin is said of ours.
const TELLTALE: [HeaderName; 6] = [
    SERVER,
    ALT_SVC,
    HeaderName::from_static("x-powered-by"),
    HeaderName::from_static("x-aspnet-version"),
    HeaderName::from_static("x-aspnetmvc-version"),
    REFRESH,
];

/// What the next hop is told of the one before.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The peer of the connection.
    pub peer: SocketAddr,
    /// Whether its connection is encrypted.
    pub tls: bool,
    /// Whether a proxy before us is believed (`TRUST_PROXY`).
    pub trust_proxy: bool,
}

/// Makes a caller's headers those of the upstream request, all but the credential. Answers the
/// trace id that they now carry.
pub fn outbound(
    headers: &mut HeaderMap,
    origin: Origin,
    request_id: &RequestId,
    ids: &Ids,
) -> Option<String> {
    let forwarded = Forwarded::of(headers, origin);
    remove_hop_by_hop(headers);
    // The lengths and expectations of this hop; the client sets its own.
    headers.remove(CONTENT_LENGTH);
    headers.remove(EXPECT);
    keep_foreign_baggage(headers);
    remove_prefixed(headers, &["x-caracal-", "x-forwarded-"]);
    headers.remove(FORWARDED);
    for name in [X_REAL_IP, X_REQUEST_ID] {
        remove_spelled(headers, &name);
    }
    set(headers, X_REQUEST_ID, request_id.as_str());
    forwarded.write(headers);
    headers.remove(HOST);
    trace(headers, ids)
}

/// Makes an upstream's headers those of the response.
pub fn inbound(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    remove_prefixed(headers, &["x-caracal-"]);
    for name in &TELLTALE {
        headers.remove(name);
    }
    // The request id is set by the server, once.
    headers.remove(X_REQUEST_ID);
    for name in [LOCATION, CONTENT_LOCATION] {
        if headers.get_all(&name).iter().any(leads_elsewhere) {
            headers.remove(&name);
        }
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // One `Connection: keep-alive` is what nearly every client sends.
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Underscores count as dashes: an upstream that hands headers on as variables reads them so.
fn remove_prefixed(headers: &mut HeaderMap, prefixes: &[&str]) {
    let dashed = |b: u8| if b == b'_' { b'-' } else { b };
    let starts = |name: &str, prefix: &str| {
        name.len() >= prefix.len()
            && name
                .bytes()
                .map(dashed)
                .zip(prefix.bytes())
                .all(|(n, p)| n == p)
    };
    let named = |name: &&HeaderName| prefixes.iter().any(|p| starts(name.as_str(), p));
    let found: Vec<HeaderName> = headers.keys().filter(named).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Removes a header under every spelling that an upstream may take for it, dashes or underscores.
pub fn remove_spelled(headers: &mut HeaderMap, name: &HeaderName) {
    headers.remove(name);
    let same = |other: &&HeaderName| {
        let dashed = |b: u8| if b == b'_' { b'-' } else { b };
        let (a, b) = (name.as_str().bytes(), other.as_str().bytes());
        a.map(dashed).eq(b.map(dashed))
    };
    let is_underscored = |other: &&HeaderName| other.as_str().contains('_');
    let others = headers
        .keys()
        .filter(|other| is_underscored(other) || name.as_str().contains('_'));
    let found: Vec<HeaderName> = others.filter(same).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Our own entries end here; everyone else's go on.
fn keep_foreign_baggage(headers: &mut HeaderMap) {
    if !headers.contains_key(BAGGAGE) {
        return;
    }
    let ours = |entry: &&[u8]| {
        let key = entry
            .split(|b| matches!(b, b'=' | b';'))
            .next()
            .unwrap_or(entry)
            .trim_ascii();
        key.len() >= 8
            && key
                .iter()
                .zip(b"caracal.")
                .all(|(k, c)| k.eq_ignore_ascii_case(c))
    };
    let kept: Vec<&[u8]> = headers
        .get_all(BAGGAGE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|entry| !entry.is_empty() && !ours(entry))
        .collect();
    let joined = HeaderValue::from_bytes(&kept.join(&b","[..]));
    match joined {
        Ok(joined) if !kept.is_empty() => headers.insert(BAGGAGE, joined),
        _ => headers.remove(BAGGAGE),
    };
}

/// The three forwarding headers, which always say what this hop saw.
struct Forwarded {
    client: IpAddr,
    host: Option<HeaderValue>,
    proto: &'static str,
}

impl Forwarded {
    fn of(headers: &HeaderMap, origin: Origin) -> Self {
        let said = |name: HeaderName| {
            let value = headers.get(name).filter(|_| origin.trust_proxy)?;
            value.to_str().ok()?.split(',').next().map(str::trim)
        };
        let proto = match said(X_FORWARDED_PROTO) {
            Some("http") => "http",
            Some("https") => "https",
            _ if origin.tls => "https",
            _ => "http",
        };
        Self {
            client: client_address(headers, origin),
            host: headers.get(HOST).cloned(),
            proto,
        }
    }

    fn write(self, headers: &mut HeaderMap) {
        set(headers, X_FORWARDED_FOR, &self.client.to_string());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(self.proto));
        if let Some(host) = self.host {
            headers.insert(X_FORWARDED_HOST, host);
        }
    }
}

/// Who calls: the peer, or whom a trusted proxy names first.
pub fn client_address(headers: &HeaderMap, origin: Origin) -> IpAddr {
    headers
        .get(X_FORWARDED_FOR)
        .filter(|_| origin.trust_proxy)
        .and_then(|value| value.to_str().ok()?.split(',').next()?.trim().parse().ok())
        .unwrap_or_else(|| origin.peer.ip())
}

/// Keeps a valid `traceparent` and replaces any other; answers its trace id. While this Gateway
/// takes part in the trace, its own span is what the upstream is called from.
fn trace(headers: &mut HeaderMap, ids: &Ids) -> Option<String> {
    let ours = current_trace();
    if let (None, Some(kept)) = (ours, TraceContext::of(headers)) {
        return Some(kept.trace_text());
    }
    let context = ours.unwrap_or_else(|| TraceContext::fresh(ids));
    headers.insert(TRACEPARENT, context.header()?);
    Some(context.trace_text())
}

/// Whether a location may take a client past us: it names a scheme or a host, or cannot be read.
/// Browsers read backslashes as slashes, so one is as good as a host.
fn leads_elsewhere(location: &HeaderValue) -> bool {
    let Ok(text) = location.to_str() else {
        return true;
    };
    let text = text.trim();
    let first = text.find([':', '/', '?', '#']);
    let has_scheme = first.is_some_and(|at| text.as_bytes().get(at) == Some(&b':'));
    has_scheme || text.starts_with("//") || text.contains(['\\', '\t', ' '])
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests;
