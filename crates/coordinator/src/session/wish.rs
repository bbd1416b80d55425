//! What a start of a Session asks for (spec: coordinator §6.1).

use caracal_store::sessions::Lifecycle;
use serde_json::Value;

use crate::failure::Failure;
use crate::fields::{Body, Fields, length};

const MAX_LABELS: usize = 32;
const MAX_LABEL: usize = 64;
const MAX_TTL: i64 = 86_400;
const DEFAULT_TTL: i64 = 3_600;

/// What is asked for, after defaults.
pub(super) struct Wish {
    pub(super) application: String,
    pub(super) subject_session: Option<String>,
    pub(super) subject_token: Option<String>,
    pub(super) parent: Option<String>,
    pub(super) lifecycle: Lifecycle,
    pub(super) labels: Vec<String>,
    pub(super) ttl: Option<i64>,
    pub(super) inherits: bool,
    pub(super) inherit_edge: Option<String>,
    pub(super) metadata: Value,
}

impl Wish {
    /// Reads it from the body of a request.
    ///
    /// # Errors
    /// `invalid_body` with every mistake.
    pub(super) fn read(body: &Body) -> Result<Self, Failure> {
        let mut fields = Fields::of(body);
        let lifecycles = [("task", Lifecycle::Task), ("service", Lifecycle::Service)];
        let lifecycle = fields
            .word("lifecycle", &lifecycles)
            .unwrap_or(Lifecycle::Task);
        let ttl = fields.int("ttl_seconds", 1..=MAX_TTL);
        if lifecycle == Lifecycle::Service && fields.get("ttl_seconds").is_some() {
            fields.wrong(
                "ttl_seconds",
                "must be absent: a service lives by its lease",
            );
        }
        let text = |text: Option<&str>| text.map(str::to_owned);
        let wish = Self {
            application: fields.required_text("application_id").to_owned(),
            subject_session: text(fields.text("subject_session_id")),
            subject_token: text(fields.text("subject_token")),
            parent: text(fields.nullable_text("parent_id")),
            lifecycle,
            labels: fields
                .texts("labels", MAX_LABELS, label)
                .unwrap_or_default(),
            ttl: (lifecycle == Lifecycle::Task).then_some(ttl.unwrap_or(DEFAULT_TTL)),
            inherits: fields
                .word("parent_authority", &[("inherit", true), ("none", false)])
                .unwrap_or(true),
            inherit_edge: text(fields.text("inherit_parent_edge_id")),
            metadata: Value::Object(fields.object("metadata").cloned().unwrap_or_default()),
        };
        fields.end()?;
        Ok(wish)
    }
}

fn label(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    if (1..=MAX_LABEL).contains(&length(text)) && !text.contains('\0') {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 characters")
    }
}
