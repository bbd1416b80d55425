use super::*;

#[derive(Clone, Copy)]
enum SecretIs {
    Required,
    Stored,
}

/// A key that stands in the open: it proves nothing to anybody.
fn pem(name: &str) -> String {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crypto/testdata");
    std::fs::read_to_string(directory.join(name)).unwrap()
}

fn stored(secret: SecretIs) -> Secrets {
    let names = ["api_key", "bearer_token", "password", "client_secret"];
    match secret {
        SecretIs::Required => Secrets::new(),
        SecretIs::Stored => names.map(|name| (name.to_owned(), "s".to_owned())).into(),
    }
}

fn answer(kind: &str, config: &Value, secret: SecretIs) -> String {
    let config = config.as_object().unwrap();
    match Kind::parse(kind).and_then(|kind| check(kind, config, &stored(secret))) {
        Ok(config) => format!("{} + {:?}", json!(config.public), config.secrets.keys()),
        Err(failure) => format!("{}: {}", failure.error, failure.description),
    }
}

#[test]
fn every_rule_names_its_field() {
    use SecretIs::{Required, Stored};
    let mut table = String::new();
    for (kind, config, secret) in [
        ("none", json!({}), Required),
        ("none", json!({"api_key": "k"}), Required),
        ("http_basic", json!({}), Required),
        (
            "api_key",
            json!({"header_name": "X-Key", "api_key": " k "}),
            Required,
        ),
        ("api_key", json!({"header_name": "X-Key"}), Required),
        ("api_key", json!({"header_name": "X-Key"}), Stored),
        ("api_key", json!({"api_key": "k"}), Required),
        (
            "api_key",
            json!({"header_name": "X-Caracal-Resource", "api_key": "k"}),
            Required,
        ),
        (
            "api_key",
            json!({"header_name": "Host", "api_key": "k"}),
            Required,
        ),
        (
            "api_key",
            json!({"header_name": "a b", "api_key": "k"}),
            Required,
        ),
        (
            "api_key",
            json!({"header_name": "X-Key", "auth_scheme": "Key", "api_key": "key abc"}),
            Required,
        ),
        (
            "api_key",
            json!({"auth_location": "query", "query_param_name": "key", "api_key": "k"}),
            Required,
        ),
        (
            "api_key",
            json!({"auth_location": "query", "query_param_name": "a b", "api_key": "k"}),
            Required,
        ),
        (
            "api_key",
            json!({"auth_location": "query", "query_param_name": "key", "auth_scheme": "K", "api_key": "k"}),
            Required,
        ),
        (
            "api_key",
            json!({"auth_location": "cookie", "api_key": "k"}),
            Required,
        ),
        (
            "bearer_token",
            json!({"bearer_token": "t", "allowed_token_hosts": ["API.example"], "forward_caracal_identity": true}),
            Required,
        ),
        (
            "bearer_token",
            json!({"bearer_token": "Bearer t"}),
            Required,
        ),
        ("bearer_token", json!({"bearer_token": "a\nb"}), Required),
        ("bearer_token", json!({"bearer_token": "  "}), Required),
        ("bearer_token", json!({"bearer_token": 7}), Required),
        (
            "bearer_token",
            json!({"bearer_token": "t", "auth_scheme": "9"}),
            Required,
        ),
        (
            "bearer_token",
            json!({"bearer_token": "t", "allowed_token_hosts": ["a..b"]}),
            Required,
        ),
        (
            "bearer_token",
            json!({"bearer_token": "t", "allow_runtime_injection": "yes"}),
            Required,
        ),
        (
            "bearer_token",
            json!({"bearer_token": "t", "query_param_name": "q"}),
            Required,
        ),
    ] {
        table.push_str(&format!(
            "{kind:<12} {config}\n    {}\n",
            answer(kind, &config, secret)
        ));
    }
    insta::assert_snapshot!(table, @r#"
    none         {}
        {} + []
    none         {"api_key":"k"}
        invalid_provider_config: api_key is not a field of kind none
    http_basic   {}
        invalid_provider_config: username is required
    api_key      {"api_key":" k ","header_name":"X-Key"}
        {"auth_location":"header","header_name":"X-Key"} + ["api_key"]
    api_key      {"header_name":"X-Key"}
        invalid_provider_config: api_key is required
    api_key      {"header_name":"X-Key"}
        {"auth_location":"header","header_name":"X-Key"} + []
    api_key      {"api_key":"k"}
        invalid_provider_config: header_name is required with auth_location header
    api_key      {"api_key":"k","header_name":"X-Caracal-Resource"}
        invalid_provider_config: header_name is a reserved header; choose another
    api_key      {"api_key":"k","header_name":"Host"}
        invalid_provider_config: header_name is a reserved header; choose another
    api_key      {"api_key":"k","header_name":"a b"}
        invalid_provider_config: header_name must be the name of an HTTP header
    api_key      {"api_key":"key abc","auth_scheme":"Key","header_name":"X-Key"}
        invalid_provider_config: api_key must not start with its scheme: it is added on use
    api_key      {"api_key":"k","auth_location":"query","query_param_name":"key"}
        {"auth_location":"query","query_param_name":"key"} + ["api_key"]
    api_key      {"api_key":"k","auth_location":"query","query_param_name":"a b"}
        invalid_provider_config: query_param_name must be letters, digits, `.`, `_`, `~` or `-`
    api_key      {"api_key":"k","auth_location":"query","auth_scheme":"K","query_param_name":"key"}
        invalid_provider_config: auth_scheme does not go with auth_location query
    api_key      {"api_key":"k","auth_location":"cookie"}
        invalid_provider_config: auth_location must be header or query
    bearer_token {"allowed_token_hosts":["API.example"],"bearer_token":"t","forward_caracal_identity":true}
        {"allowed_token_hosts":["api.example"],"forward_caracal_identity":true} + ["bearer_token"]
    bearer_token {"bearer_token":"Bearer t"}
        invalid_provider_config: bearer_token must not start with its scheme: it is added on use
    bearer_token {"bearer_token":"a\nb"}
        invalid_provider_config: bearer_token must be one line of text and not empty
    bearer_token {"bearer_token":"  "}
        invalid_provider_config: bearer_token must be one line of text and not empty
    bearer_token {"bearer_token":7}
        invalid_provider_config: bearer_token must be a string
    bearer_token {"auth_scheme":"9","bearer_token":"t"}
        invalid_provider_config: auth_scheme must be a letter, then letters, digits or `-`
    bearer_token {"allowed_token_hosts":["a..b"],"bearer_token":"t"}
        invalid_provider_config: allowed_token_hosts must be a list of at most 64 host names
    bearer_token {"allow_runtime_injection":"yes","bearer_token":"t"}
        invalid_provider_config: allow_runtime_injection must be true or false
    bearer_token {"bearer_token":"t","query_param_name":"q"}
        invalid_provider_config: query_param_name is not a field of kind bearer_token
    "#);
}

#[test]
fn every_rule_of_the_oauth_kinds_names_its_field() {
    let base = |kind: &str| match kind {
        "oauth2_client_credentials" => {
            json!({"token_endpoint": "https://id.example/token", "client_id": "c"})
        }
        _ => json!({
            "authorization_endpoint": "https://id.example/authorize", "redirect_uri": "https://us.example/cb",
            "token_endpoint": "https://id.example/token", "client_id": "c", "client_secret": "s",
        }),
    };
    let (key, other) = (pem("rsa.pkcs8.pem"), pem("p256.pkcs8.pem"));
    let certificate = pem("rsa.cert.pem");
    let jwt = "private_key_jwt";
    let (service, code) = ("oauth2_client_credentials", "oauth2_authorization_code");
    let mut table = String::new();
    for (kind, extra) in [
        (service, json!({})),
        (service, json!({"client_secret": "s"})),
        (
            service,
            json!({"client_secret": "s", "token_endpoint": null}),
        ),
        (
            service,
            json!({"client_secret": "s", "token_endpoint": "http://id.example/token"}),
        ),
        (
            service,
            json!({"client_secret": "s", "token_endpoint": "https://u@id.example/token"}),
        ),
        (
            service,
            json!({"client_secret": "s", "client_auth_method": "tls"}),
        ),
        (
            service,
            json!({"client_secret": "s", "client_auth_method": "none"}),
        ),
        (
            service,
            json!({"client_auth_method": "none", "scopes": ["a", "b"], "audience": "x"}),
        ),
        (
            service,
            json!({"client_auth_method": "none", "scopes": ["a b"]}),
        ),
        (
            service,
            json!({"client_auth_method": "none", "token_params": {"tenant": "t"}}),
        ),
        (
            service,
            json!({"client_auth_method": "none", "token_params": {"Scope": "t"}}),
        ),
        (
            service,
            json!({"client_auth_method": "none", "token_params": {"a": 1}}),
        ),
        (service, json!({"client_auth_method": jwt})),
        (
            service,
            json!({"client_auth_method": jwt, "private_key": "x"}),
        ),
        (
            service,
            json!({"client_auth_method": jwt, "private_key": key, "key_id": "k"}),
        ),
        (
            service,
            json!({"client_auth_method": jwt, "private_key": key, "client_secret": "s"}),
        ),
        (
            service,
            json!({"client_auth_method": jwt, "private_key": key, "certificate": certificate}),
        ),
        (
            service,
            json!({"client_auth_method": jwt, "private_key": other, "certificate": certificate}),
        ),
        (
            service,
            json!({"client_auth_method": jwt, "private_key": key, "certificate": "x"}),
        ),
        (service, json!({"client_secret": "s", "private_key": key})),
        (service, json!({"client_secret": "s", "key_id": "k"})),
        (
            service,
            json!({"client_secret": "s", "assertion_subject": "them"}),
        ),
        (service, json!({"grant_type": "jwt_bearer"})),
        (
            service,
            json!({"grant_type": "jwt_bearer", "private_key": key, "assertion_subject": "them"}),
        ),
        (
            service,
            json!({"grant_type": "jwt_bearer", "private_key": key, "audience": "x"}),
        ),
        (
            service,
            json!({"grant_type": "jwt_bearer", "private_key": key, "client_auth_method": jwt}),
        ),
        (
            service,
            json!({"grant_type": "jwt_bearer", "private_key": key, "certificate": certificate}),
        ),
        (code, json!({})),
        (code, json!({"client_secret": null})),
        (code, json!({"client_auth_method": "none"})),
        (
            code,
            json!({"client_secret": null, "client_auth_method": "none"}),
        ),
        (code, json!({"redirect_uri": "/cb"})),
        (
            code,
            json!({"authorization_endpoint": "http://id.example/authorize"}),
        ),
        (code, json!({"authorization_params": {"state": "s"}})),
        (
            code,
            json!({"revocation_endpoint": "https://id.example/revoke"}),
        ),
        (
            code,
            json!({"revocation_endpoint": "https://other.example/revoke"}),
        ),
        (code, json!({"grant_type": "client_credentials"})),
        (code, json!({"allow_runtime_injection": true})),
    ] {
        let mut config = base(kind);
        config
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let told = answer(kind, &config, SecretIs::Required);
        let shown = |text: &str| text.replace(&json!(certificate.trim()).to_string(), "CERT");
        let extra = extra.to_string();
        let extra = [&key, &other, &certificate]
            .iter()
            .fold(extra, |text, pem| {
                text.replace(&json!(pem).to_string(), "PEM")
            });
        table.push_str(&format!("{} {extra}\n    {}\n", &kind[7..], shown(&told)));
    }
    insta::assert_snapshot!(table, @r#"
    client_credentials {}
        invalid_provider_config: client_secret is required
    client_credentials {"client_secret":"s"}
        {"allowed_token_hosts":["id.example"],"client_auth_method":"client_secret_basic","client_id":"c","grant_type":"client_credentials","token_endpoint":"https://id.example/token"} + ["client_secret"]
    client_credentials {"client_secret":"s","token_endpoint":null}
        invalid_provider_config: token_endpoint is required
    client_credentials {"client_secret":"s","token_endpoint":"http://id.example/token"}
        invalid_provider_config: token_endpoint must be an https URL without credentials and fragment
    client_credentials {"client_secret":"s","token_endpoint":"https://u@id.example/token"}
        invalid_provider_config: token_endpoint must be an https URL without credentials and fragment
    client_credentials {"client_auth_method":"tls","client_secret":"s"}
        invalid_provider_config: client_auth_method must be one of client_secret_basic, client_secret_post, none, private_key_jwt
    client_credentials {"client_auth_method":"none","client_secret":"s"}
        invalid_provider_config: client_secret does not go with client_auth_method none
    client_credentials {"audience":"x","client_auth_method":"none","scopes":["a","b"]}
        {"allowed_token_hosts":["id.example"],"audience":"x","client_auth_method":"none","client_id":"c","grant_type":"client_credentials","scopes":["a","b"],"token_endpoint":"https://id.example/token"} + []
    client_credentials {"client_auth_method":"none","scopes":["a b"]}
        invalid_provider_config: scopes must be a list of at most 64 scopes, each without a space
    client_credentials {"client_auth_method":"none","token_params":{"tenant":"t"}}
        {"allowed_token_hosts":["id.example"],"client_auth_method":"none","client_id":"c","grant_type":"client_credentials","token_endpoint":"https://id.example/token","token_params":{"tenant":"t"}} + []
    client_credentials {"client_auth_method":"none","token_params":{"Scope":"t"}}
        invalid_provider_config: token_params may not set Scope
    client_credentials {"client_auth_method":"none","token_params":{"a":1}}
        invalid_provider_config: a in token_params must be one line of text
    client_credentials {"client_auth_method":"private_key_jwt"}
        invalid_provider_config: private_key is required
    client_credentials {"client_auth_method":"private_key_jwt","private_key":"x"}
        invalid_provider_config: private_key is not an RSA key of 2048 bits or more, nor a P-256, P-384 or P-521 key, in PEM
    client_credentials {"client_auth_method":"private_key_jwt","key_id":"k","private_key":PEM}
        {"allowed_token_hosts":["id.example"],"client_auth_method":"private_key_jwt","client_id":"c","grant_type":"client_credentials","key_id":"k","token_endpoint":"https://id.example/token"} + ["private_key"]
    client_credentials {"client_auth_method":"private_key_jwt","client_secret":"s","private_key":PEM}
        invalid_provider_config: client_secret does not go with private_key_jwt
    client_credentials {"certificate":PEM,"client_auth_method":"private_key_jwt","private_key":PEM}
        {"allowed_token_hosts":["id.example"],"certificate":CERT,"client_auth_method":"private_key_jwt","client_id":"c","grant_type":"client_credentials","token_endpoint":"https://id.example/token"} + ["private_key"]
    client_credentials {"certificate":PEM,"client_auth_method":"private_key_jwt","private_key":PEM}
        invalid_provider_config: certificate was not issued for private_key
    client_credentials {"certificate":"x","client_auth_method":"private_key_jwt","private_key":PEM}
        invalid_provider_config: certificate is not a certificate in PEM
    client_credentials {"client_secret":"s","private_key":PEM}
        invalid_provider_config: private_key goes with private_key_jwt or jwt_bearer only
    client_credentials {"client_secret":"s","key_id":"k"}
        invalid_provider_config: key_id goes with private_key_jwt or jwt_bearer only
    client_credentials {"assertion_subject":"them","client_secret":"s"}
        invalid_provider_config: assertion_subject goes with jwt_bearer only
    client_credentials {"grant_type":"jwt_bearer"}
        invalid_provider_config: private_key is required
    client_credentials {"assertion_subject":"them","grant_type":"jwt_bearer","private_key":PEM}
        {"allowed_token_hosts":["id.example"],"assertion_subject":"them","client_auth_method":"none","client_id":"c","grant_type":"jwt_bearer","token_endpoint":"https://id.example/token"} + ["private_key"]
    client_credentials {"audience":"x","grant_type":"jwt_bearer","private_key":PEM}
        invalid_provider_config: audience does not go with jwt_bearer
    client_credentials {"client_auth_method":"private_key_jwt","grant_type":"jwt_bearer","private_key":PEM}
        invalid_provider_config: client_auth_method must be one of client_secret_basic, client_secret_post, none
    client_credentials {"certificate":PEM,"grant_type":"jwt_bearer","private_key":PEM}
        invalid_provider_config: certificate goes with private_key_jwt only
    authorization_code {}
        {"allowed_token_hosts":["id.example"],"authorization_endpoint":"https://id.example/authorize","client_auth_method":"client_secret_basic","client_id":"c","redirect_uri":"https://us.example/cb","token_endpoint":"https://id.example/token"} + ["client_secret"]
    authorization_code {"client_secret":null}
        invalid_provider_config: client_secret is required
    authorization_code {"client_auth_method":"none"}
        invalid_provider_config: client_secret does not go with client_auth_method none
    authorization_code {"client_auth_method":"none","client_secret":null}
        {"allowed_token_hosts":["id.example"],"authorization_endpoint":"https://id.example/authorize","client_auth_method":"none","client_id":"c","redirect_uri":"https://us.example/cb","token_endpoint":"https://id.example/token"} + []
    authorization_code {"redirect_uri":"/cb"}
        invalid_provider_config: redirect_uri must be an absolute URI without a fragment
    authorization_code {"authorization_endpoint":"http://id.example/authorize"}
        invalid_provider_config: authorization_endpoint must be an https URL without credentials and fragment
    authorization_code {"authorization_params":{"state":"s"}}
        invalid_provider_config: authorization_params may not set state
    authorization_code {"revocation_endpoint":"https://id.example/revoke"}
        {"allowed_token_hosts":["id.example"],"authorization_endpoint":"https://id.example/authorize","client_auth_method":"client_secret_basic","client_id":"c","redirect_uri":"https://us.example/cb","revocation_endpoint":"https://id.example/revoke","token_endpoint":"https://id.example/token"} + ["client_secret"]
    authorization_code {"revocation_endpoint":"https://other.example/revoke"}
        invalid_provider_config: the host of revocation_endpoint must be in allowed_token_hosts
    authorization_code {"grant_type":"client_credentials"}
        invalid_provider_config: grant_type is not a field of kind oauth2_authorization_code
    authorization_code {"allow_runtime_injection":true}
        invalid_provider_config: allow_runtime_injection is not a field of kind oauth2_authorization_code
    "#);
}
