//! What is malformed, oversized, doubled, wrongly typed, unauthenticated or of another zone is
//! refused, on every endpoint: with the status and the code that clients branch on, with words that
//! say what to fix, with the request's id, and without a trace in the state.

mod api;
mod audit;
mod coordinator;
mod gateway;
mod sts;

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use xtest::http::{Answer, Request};
use xtest::{Agent, Stack, World, on_both_stacks};

on_both_stacks! {
    async fn what_is_wrong_is_refused_by_name_and_changes_nothing(stack: Arc<Stack>) {
        let scene = Scene::new(stack).await;
        let tables = [
            sts::cases(&scene).await,
            gateway::cases(&scene).await,
            coordinator::cases(&scene).await,
            api::cases(&scene).await,
            audit::cases(&scene),
        ];
        let before = scene.state().await;
        let mut wrong = Vec::new();
        let mut cases = 0;
        for case in tables.into_iter().flatten() {
            cases += 1;
            wrong.extend(scene.deviation(case, cases).await);
        }
        assert!(wrong.is_empty(), "{} of {cases}:\n{}", wrong.len(), wrong.join("\n"));
        assert_eq!(scene.state().await, before, "what was refused left traces");
        assert_eq!(scene.world.reached(), 0);
    }
}

/// Two zones, so that there is another one to be in.
pub struct Scene {
    /// The zone under test.
    pub world: World,
    /// Another.
    pub other: World,
    /// Sessions and a Delegation in the first.
    pub agent: Agent,
}

/// A request, and what it is to be answered with.
pub struct Case {
    /// What is wrong with it.
    pub what: String,
    /// The request.
    pub request: Request<'static>,
    /// `status code`; only a status where the answer is plain text.
    pub expected: &'static str,
}

impl Case {
    /// Of a method and a URL, with neither token nor body.
    pub fn new(what: &str, method: &'static str, url: String, expected: &'static str) -> Self {
        let request = Request {
            method,
            url,
            bearer: None,
            headers: vec![],
            body: Bytes::new(),
        };
        Self {
            what: what.to_owned(),
            request,
            expected,
        }
    }

    /// With a header; the same name may be given twice.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.request.headers.push((name, value.into()));
        self
    }

    /// With a bearer token.
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// With a body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.request.body = body.into();
        self
    }

    /// With a JSON body.
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json")
            .body(body.to_string())
    }
}

impl Scene {
    async fn new(stack: Arc<Stack>) -> Self {
        let world = World::new(Arc::clone(&stack)).await;
        let other = World::new(stack).await;
        let agent = world.agent().await;
        Self {
            world,
            other,
            agent,
        }
    }

    /// Whatever refused requests could have left behind.
    async fn state(&self) -> Value {
        let stack = &self.world.stack;
        let mut state = json!({});
        let mut paths = vec!["/v1/zones".to_owned(), "/v1/admin-tokens".to_owned()];
        for zone in [&self.world.zone, &self.other.zone] {
            for list in [
                "applications",
                "providers",
                "resources",
                "policies",
                "policy-sets",
            ] {
                paths.push(format!("/v1/zones/{zone}/{list}"));
            }
        }
        for path in paths {
            let mut page = stack.read(&path).await.expect(200).json();
            for item in page["items"].as_array_mut().into_iter().flatten() {
                // A look is not a change.
                item.as_object_mut().unwrap().remove("last_used_at");
            }
            state[&path] = page;
        }
        for world in [&self.world, &self.other] {
            for list in ["/agents", "/delegations/active"] {
                let page = world
                    .asks("GET", list, &stack.operator_token)
                    .await
                    .expect(200)
                    .json();
                state[format!("{}{list}", world.zone)] = page;
            }
        }
        state
    }

    /// How the answer differs from what was to be, if it does.
    async fn deviation(&self, case: Case, n: usize) -> Option<String> {
        let id = format!("case-{n}");
        let mut request = case.request;
        request.headers.push(("x-request-id", id.clone()));
        let line = format!("{} {} ({})", request.method, request.url, case.what);
        match self.world.stack.http.try_send(request).await {
            Err(error) => Some(format!("{line}: no answer: {error}")),
            Ok(answer) => found(&answer, &id, case.expected).map(|why| {
                format!(
                    "{line}: {why}\n    {}",
                    String::from_utf8_lossy(&answer.body).trim_end()
                )
            }),
        }
    }
}

fn found(answer: &Answer, id: &str, expected: &str) -> Option<String> {
    if answer.request_id() != id {
        return Some(format!(
            "the header names the request {:?}",
            answer.request_id()
        ));
    }
    let (status, code) = expected.split_once(' ').unwrap_or((expected, ""));
    if answer.status.to_string() != status {
        return Some(format!("{} instead of {expected}", answer.status));
    }
    if code.is_empty() {
        return None;
    }
    let body = answer.json();
    if body["error"] != code {
        return Some(format!(
            "{} {} instead of {expected}",
            answer.status, body["error"]
        ));
    }
    let says = |member: &str| body[member].as_str().is_some_and(|text| !text.is_empty());
    if !says("error_description") && !says("message") {
        return Some("it does not say what to fix".to_owned());
    }
    for member in ["requestId", "request_id"] {
        if body[member] != id {
            return Some(format!("{member} is {}", body[member]));
        }
    }
    let retry = answer.headers.contains_key("retry-after");
    (["429", "503"].contains(&status) && !retry).then(|| "no Retry-After".to_owned())
}
