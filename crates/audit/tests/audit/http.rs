use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use caracal_audit::{Config, Deps, Health, router};
use caracal_bus::Bus;
use caracal_crypto::os::SystemClock;
use caracal_net::metrics::Registry;
use caracal_net::settings::Mistakes;
use caracal_store::on_each_engine;
use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;

use crate::{KEY, event, ingest};

fn config(pairs: &[(&str, &str)]) -> Result<Config, Mistakes> {
    let pairs = [&[("AUDIT_HMAC_KEY", KEY)], pairs].concat();
    let map: std::collections::BTreeMap<String, String> = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Config::read(&map)
}

async fn get(router: &Router, path: &str, bearer: &str) -> (u16, String) {
    let request = Request::get(path)
        .header("authorization", format!("Bearer {bearer}"))
        .body(Body::empty())
        .unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

on_each_engine! {
    async fn the_routes_answer_as_published(store: Store) {
        let ingest = Arc::new(ingest(&store));
        let texts = (0..3).map(|n| event(&format!("e{n}"))).collect();
        ingest.commit(texts).await.unwrap();
        let settings = [("AUDIT_ADMIN_TOKEN", "admin"), ("METRICS_BEARER", "metrics")];
        let deps = Deps { ingest: Arc::clone(&ingest), stream: None, registry: Registry::new(&caracal_audit::CATALOGUE, Arc::new(SystemClock::new())) };
        let open = router(config(&settings).unwrap(), deps);
        let closed = router(config(&[]).unwrap(), Deps { ingest, stream: None, registry: Registry::new(&caracal_audit::CATALOGUE, Arc::new(SystemClock::new())) });

        let mut table = String::new();
        for (app, path, bearer) in [
            (&open, "/health", ""),
            (&open, "/ready", ""),
            (&open, "/nothing", ""),
            (&open, "/metrics", "wrong"),
            (&closed, "/metrics", ""),
            (&closed, "/api/audit/search?zone_id=z1", "admin"),
            (&open, "/api/audit/search?zone_id=z1", "wrong"),
            (&open, "/api/audit/search", "admin"),
            (&open, "/api/audit/search?zone_id=z2", "admin"),
        ] {
            let (status, body) = get(app, path, bearer).await;
            let body = body.split("\"request").next().unwrap_or_default();
            let row = format!("{path:<29} | {status} {}", body.trim());
            writeln!(table, "{}", row.trim_end()).unwrap();
        }
        insta::allow_duplicates!(insta::assert_snapshot!(table, @r#"
        /health                       | 200
        /ready                        | 200 {"ready":true}
        /nothing                      | 404 {"error":"not_found","error_description":"no such route"}
        /metrics                      | 401 unauthorized
        /metrics                      | 401 unauthorized
        /api/audit/search?zone_id=z1  | 404 not found
        /api/audit/search?zone_id=z1  | 401 unauthorized
        /api/audit/search             | 400 zone_id is required
        /api/audit/search?zone_id=z2  | 200 {"events":null,"next_cursor":""}
        "#));

        let (status, body) = get(&open, "/metrics", "metrics").await;
        assert_eq!(status, 200);
        assert!(body.contains("caracal_audit_inserts_total 3"), "{body}");
        assert!(body.contains("caracal_audit_ingest_batch_size_count 1"), "{body}");
        // The export is registered by whoever runs one.
        let differences = caracal_audit::CATALOGUE.differences(&body);
        assert!(differences.iter().all(|one| one.contains("export")), "{differences:?}");
        let (_, json) = get(&open, "/metrics.json", "metrics").await;
        assert!(json.contains("\"inserts_total\":3"), "{json}");
    }

    async fn the_search_walks_the_chain(store: Store) {
        let ingest = Arc::new(ingest(&store));
        let texts: Vec<String> = (0..5).map(|n| event(&format!("e{n}"))).collect();
        ingest.commit(texts.clone()).await.unwrap();
        let settings = [("AUDIT_ADMIN_TOKEN", "admin")];
        let app = router(config(&settings).unwrap(), Deps { ingest, stream: None, registry: Registry::new(&caracal_audit::CATALOGUE, Arc::new(SystemClock::new())) });
        let search = async |rest: &str| -> serde_json::Value {
            let path = format!("/api/audit/search?zone_id=z1{rest}");
            let (status, body) = get(&app, &path, "admin").await;
            assert_eq!(status, 200, "{body}");
            serde_json::from_str(&body).unwrap()
        };
        let page = search("&limit=2").await;
        assert_eq!(page["next_cursor"], "2");
        let found = page["events"].as_array().unwrap();
        assert_eq!(found.len(), 2);
        let text: serde_json::Value = serde_json::from_str(&texts[1]).unwrap();
        assert_eq!(found[1]["Event"], text);
        assert_eq!(found[0]["PrevContentSHA256"], "");
        assert_eq!(found[1]["PrevContentSHA256"], found[0]["ContentSHA256"]);
        assert_eq!(found[1]["ChainSeq"], 2);
        let rest = search("&cursor=2&limit=x").await;
        assert_eq!(rest["events"].as_array().unwrap().len(), 3);
        let one = search("&request_id=request-of-e3").await;
        assert_eq!(one["events"].as_array().unwrap().len(), 1);
        let none = search("&decision=deny").await;
        assert_eq!((&none["events"], &none["next_cursor"]), (&serde_json::Value::Null, &"".into()));
        let past = search("&since=2020-01-01T00:00:00Z&until=2020-01-02T00:00:00Z").await;
        assert!(past["events"].is_null());
    }

    async fn readiness_names_what_is_away(store: Store) {
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        let stream = Some((bus, Health::default()));
        let deps = Deps { ingest: Arc::new(ingest(&store)), stream, registry: Registry::new(&caracal_audit::CATALOGUE, Arc::new(SystemClock::new())) };
        let waiting = router(config(&[]).unwrap(), deps);
        let (status, body) = get(&waiting, "/ready", "").await;
        assert_eq!(status, 503);
        assert_eq!(body, r#"{"error":"consumer_unhealthy","ok":false,"ready":false,"reason":"consumer_unhealthy"}"#);
        assert_eq!(get(&waiting, "/health", "").await.0, 200);

        let deps = Deps { ingest: Arc::new(ingest(&store)), stream: None, registry: Registry::new(&caracal_audit::CATALOGUE, Arc::new(SystemClock::new())) };
        let app = router(config(&[]).unwrap(), deps);
        assert_eq!(get(&app, "/ready", "").await, (200, r#"{"ready":true}"#.to_owned()));
        store.shutdown().await;
        let (status, body) = get(&app, "/ready", "").await;
        assert!(status == 503 && body.contains("postgres_unreachable"), "{status} {body}");
    }
}

#[test]
fn a_key_is_required_outside_of_dev() {
    let none = std::collections::BTreeMap::new();
    assert!(
        Config::read(&none)
            .unwrap_err()
            .to_string()
            .contains("AUDIT_HMAC_KEY")
    );
    let dev = std::collections::BTreeMap::from([("CARACAL_MODE".to_owned(), "dev".to_owned())]);
    assert!(Config::read(&dev).is_ok());
}
