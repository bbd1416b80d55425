use super::*;
use caracal_crypto::digest::b64url_decode;
use caracal_model::{Clock as _, TestClock, TestRng};
use serde_json::{Value, json};
use std::fmt::Write as _;

fn client(extra: &Value, secret: &Value) -> Client {
    let mut config = json!({
        "token_endpoint": "https://id.example/token", "client_id": "me & you",
        "allowed_token_hosts": ["id.example"],
    });
    let (all, extra) = (config.as_object_mut().unwrap(), extra.as_object().unwrap());
    all.extend(extra.clone());
    Client::read(&config, Some(secret.to_string().as_bytes())).unwrap()
}

fn key() -> String {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crypto/testdata");
    std::fs::read_to_string(directory.join("p256.pkcs8.pem")).unwrap()
}

/// A request as it is sent; of a JWT, its claims.
fn sent(request: &Request<Bytes>) -> String {
    let mut told = String::new();
    if let Some(value) = request.headers().get(AUTHORIZATION) {
        writeln!(told, "    {}", value.to_str().unwrap()).unwrap();
    }
    for (name, value) in form_urlencoded::parse(request.body()) {
        let claims = value.split('.').nth(1).filter(|_| value.starts_with("eyJ"));
        let value = claims.map_or(value.to_string(), |claims| {
            String::from_utf8(b64url_decode(claims).unwrap()).unwrap()
        });
        writeln!(told, "    {name}={value}").unwrap();
    }
    told
}

#[test]
fn every_grant_and_method_is_sent_as_specified() {
    let (clock, rng) = (TestClock::default(), TestRng::default());
    let (code, token) = (Secret::new("c".to_owned()), Secret::new("r".to_owned()));
    let verifier = Secret::new("v".to_owned());
    let secret = json!({"client_secret": "s:e c"});
    let key = json!({"private_key": key()});
    let full = json!({"scopes": ["a", "b"], "audience": "aud", "resource": "res", "token_params": {"tenant": "t"}});
    let post = json!({"client_auth_method": "client_secret_post", "redirect_uri": "https://us.example/cb"});
    let public = json!({"client_auth_method": "none"});
    let signed = json!({"client_auth_method": "private_key_jwt", "key_id": "k1"});
    let bearer = json!({"client_auth_method": "none", "grant_type": "jwt_bearer", "scopes": ["a"], "assertion_subject": "them"});
    let mut table = String::new();
    for (case, client, grant) in [
        ("basic, everything", client(&full, &secret), Grant::Service),
        (
            "post, code",
            client(&post, &secret),
            Grant::Code {
                code: &code,
                verifier: &verifier,
            },
        ),
        (
            "public, refresh",
            client(&public, &json!({})),
            Grant::Refresh(&token),
        ),
        (
            "assertion of a client",
            client(&signed, &key),
            Grant::Service,
        ),
        (
            "assertion as a grant",
            client(&bearer, &key),
            Grant::Service,
        ),
    ] {
        let request = client.token_request(grant, clock.now(), &rng).unwrap();
        writeln!(table, "{case}\n{}", sent(&request)).unwrap();
    }
    insta::assert_snapshot!(table, @r#"
    basic, everything
        Basic bWUrJTI2K3lvdTpzJTNBZStj
        grant_type=client_credentials
        scope=a b
        audience=aud
        resource=res
        tenant=t

    post, code
        grant_type=authorization_code
        code=c
        redirect_uri=https://us.example/cb
        code_verifier=v
        client_id=me & you
        client_secret=s:e c

    public, refresh
        grant_type=refresh_token
        refresh_token=r
        client_id=me & you

    assertion of a client
        grant_type=client_credentials
        client_id=me & you
        client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer
        client_assertion={"aud":"https://id.example/token","exp":1795392060,"iat":1795392000,"iss":"me & you","jti":"r80dezmoIOL0Zbmhap54bg","sub":"me & you"}

    assertion as a grant
        grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer
        assertion={"aud":"https://id.example/token","exp":1795392300,"iat":1795392000,"iss":"me & you","jti":"T0UJgBhdxAbsgUxyqLiL-A","scope":"a","sub":"them"}
    "#);
}

#[test]
fn a_client_without_its_secret_asks_nothing() {
    let (clock, rng) = (TestClock::default(), TestRng::default());
    for method in [
        "client_secret_basic",
        "client_secret_post",
        "private_key_jwt",
    ] {
        let client = client(&json!({"client_auth_method": method}), &json!({}));
        let refused = client.token_request(Grant::Service, clock.now(), &rng);
        assert!(matches!(refused, Err(TokenError::Config(_))), "{method}");
    }
}

#[test]
fn only_listed_https_hosts_see_a_credential() {
    let client = |hosts: &Value| client(&json!({"allowed_token_hosts": hosts}), &json!({}));
    let listed = json!(["ID.example"]);
    for (hosts, endpoint, expected) in [
        (&listed, "https://id.example/token", Ok(())),
        (&listed, "https://id.example:8443/token", Ok(())),
        (&listed, "https://ID.EXAMPLE/token", Ok(())),
        (
            &listed,
            "https://evil.example/token",
            Err(TokenError::NotAllowed),
        ),
        (
            &listed,
            "https://id.example.evil/token",
            Err(TokenError::NotAllowed),
        ),
        (
            &json!([]),
            "https://id.example/token",
            Err(TokenError::NotAllowed),
        ),
    ] {
        assert_eq!(
            client(hosts).permitted(endpoint).map(drop),
            expected,
            "{endpoint}"
        );
    }
    for endpoint in [
        "http://id.example/",
        "https://u:p@id.example/",
        "id.example",
        "",
    ] {
        let refused = client(&listed).permitted(endpoint);
        assert!(matches!(refused, Err(TokenError::Config(_))), "{endpoint}");
    }
}

#[test]
fn a_browser_is_sent_with_everything_that_the_flow_needs() {
    let config = json!({
        "authorization_endpoint": "https://id.example/authorize?tenant=t", "scopes": ["a", "b"],
        "redirect_uri": "https://us.example/cb", "authorization_params": {"prompt": "consent"},
    });
    let url = client(&config, &json!({}))
        .authorization_url("state", "verifier")
        .unwrap();
    let expected = "https://id.example/authorize?tenant=t&prompt=consent&response_type=code\
        &client_id=me+%26+you&redirect_uri=https%3A%2F%2Fus.example%2Fcb&state=state&scope=a+b\
        &code_challenge=iMnq5o6zALKXGivsnlom_0F5_WYda32GHkxlV7mq7hQ\
        &code_challenge_method=S256";
    assert_eq!(url, expected);
    let plain = json!({"authorization_endpoint": "http://id.example/authorize"});
    assert!(
        client(&plain, &json!({}))
            .authorization_url("s", "v")
            .is_err()
    );
}
