use super::*;
use caracal_model::{TestClock, TestRng};
use std::fmt::Write as _;
use std::sync::Arc;

fn ids() -> Ids {
    Ids::new(Arc::new(TestClock::default()), Arc::new(TestRng::default()))
}

fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        )
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs.iter().map(pair) {
        headers.append(name, value);
    }
    headers
}

fn shown(headers: &HeaderMap) -> String {
    let mut lines: Vec<String> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()))
        .collect();
    lines.sort();
    lines.concat()
}

fn origin(trust_proxy: bool) -> Origin {
    Origin {
        peer: "203.0.113.9:4711".parse().unwrap(),
        tls: false,
        trust_proxy,
    }
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn what_a_caller_sends_about_hops_and_about_us_does_not_reach_the_upstream() {
    let mut headers = map(&[
        ("host", "gateway.example:8081"),
        ("connection", "keep-alive, X-Secret-Hop"),
        ("connection", "x-other-hop"),
        ("x-secret-hop", "1"),
        ("x-other-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("proxy-authorization", "Basic x"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("expect", "100-continue"),
        ("content-length", "5"),
        ("content-type", "application/json"),
        ("cookie", "a=1"),
        ("tracestate", "x=1"),
        ("traceparent", PARENT),
        (
            "baggage",
            "caracal.agent_session=s-1,caracal.hop=1,tenant=acme",
        ),
        ("baggage", "Caracal.X=2 , user = 7;p=1,caracalx=3"),
        ("x-caracal-resource", "resource://pipernet"),
        ("X-Caracal-Identity", "forged"),
        ("X_Caracal_Identity", "forged"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-port", "1"),
        ("forwarded", "for=10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("X_Real_IP", "10.0.0.1"),
        ("x_request-id", "forged"),
        ("x-request-id", "forged"),
    ]);
    let trace = outbound(
        &mut headers,
        origin(false),
        &RequestId::trusted("r-1"),
        &ids(),
    );
    assert_eq!(trace.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    insta::assert_snapshot!(shown(&headers), @r"
    baggage: tenant=acme,user = 7;p=1,caracalx=3
    content-type: application/json
    cookie: a=1
    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
    tracestate: x=1
    x-forwarded-for: 203.0.113.9
    x-forwarded-host: gateway.example:8081
    x-forwarded-proto: http
    x-request-id: r-1
    ");
}

#[test]
fn a_trusted_proxy_is_believed_when_it_makes_sense() {
    let mut table = String::new();
    for (trust, client, proto) in [
        (true, "198.51.100.7, 10.0.0.1", "https"),
        (true, "not an address", "gopher"),
        (false, "198.51.100.7", "https"),
    ] {
        let mut headers = map(&[("x-forwarded-for", client), ("x-forwarded-proto", proto)]);
        outbound(
            &mut headers,
            origin(trust),
            &RequestId::trusted("r"),
            &ids(),
        );
        let of = |name: &str| headers[name].to_str().unwrap().to_owned();
        writeln!(
            table,
            "{} {}",
            of("x-forwarded-for"),
            of("x-forwarded-proto")
        )
        .unwrap();
    }
    insta::assert_snapshot!(table, @r"
    198.51.100.7 https
    203.0.113.9 http
    203.0.113.9 http
    ");
}

#[test]
fn a_trace_is_kept_when_valid_and_else_begun() {
    for (value, kept) in [
        (PARENT, true),
        (
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            true,
        ),
        (
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            false,
        ),
        (
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            false,
        ),
        (
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            false,
        ),
        (
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            false,
        ),
        (
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            false,
        ),
        (
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            false,
        ),
        ("", false),
    ] {
        let mut headers = map(&[("traceparent", value)]);
        let trace = trace(&mut headers, &ids()).unwrap();
        let now = headers["traceparent"].to_str().unwrap();
        assert_eq!(now == value, kept, "{value}");
        let read = TraceContext::parse(now).unwrap().trace_text();
        assert_eq!(read, trace, "{now}");
    }
    let mut twice = map(&[("traceparent", PARENT), ("traceparent", PARENT)]);
    trace(&mut twice, &ids());
    assert_eq!(twice.get_all("traceparent").iter().count(), 1);
}

#[test]
fn what_an_upstream_says_of_itself_and_of_us_does_not_reach_the_caller() {
    let mut headers = map(&[
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("transfer-encoding", "chunked"),
        ("trailer", "x"),
        ("server", "nginx"),
        ("alt-svc", "h3=\"elsewhere.example:443\""),
        ("x-powered-by", "PHP"),
        ("x-aspnet-version", "1"),
        ("x-aspnetmvc-version", "1"),
        ("refresh", "0; url=http://elsewhere"),
        ("x-caracal-identity", "leak"),
        ("x-caracal-revoked", "true"),
        ("x-request-id", "upstream"),
        ("location", "https://elsewhere/"),
        ("content-location", "/v1/items/1"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("content-length", "5"),
        ("etag", "\"1\""),
    ]);
    inbound(&mut headers);
    insta::assert_snapshot!(shown(&headers), @r#"
    content-length: 5
    content-location: /v1/items/1
    etag: "1"
    set-cookie: a=1
    set-cookie: b=2
    "#);
}

#[test]
fn only_relative_locations_stay() {
    for (location, stays) in [
        ("/v1/items", true),
        ("items/1", true),
        ("?page=2", true),
        ("#top", true),
        ("../up", true),
        ("a/b:c", true),
        ("https://elsewhere/", false),
        ("javascript:alert(1)", false),
        ("//elsewhere/", false),
        ("/\\elsewhere", false),
        ("\\\\elsewhere", false),
        ("http:/elsewhere", false),
    ] {
        let mut headers = map(&[("location", location)]);
        inbound(&mut headers);
        assert_eq!(headers.contains_key("location"), stays, "{location}");
    }
}
