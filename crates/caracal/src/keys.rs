//! `caracal keys`: the signing keys of a zone, as the running STS has them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use caracal_model::Secret;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::cli::Data;
use crate::exit::Outcome;
use crate::home::{Home, read_secret};
use crate::web::{Call, Web, text};

/// Look at and rotate the keys that sign mandates.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// List a zone's keys: which signs, which will, which are kept
    #[command(after_help = "EXAMPLE\n  caracal keys list --zone ZONE")]
    List(List),
    /// Make a zone's next key: published now, signing in a quarter of an hour
    #[command(after_help = "\
EXAMPLES
  caracal keys rotate --zone ZONE               nobody notices
  caracal keys rotate --zone ZONE --emergency   the current key is known to have leaked

Verifiers may hold a key set for ten minutes. An emergency key signs at once, so those that do not
know it yet refuse its mandates until they have fetched it. The old key is published, and verifies,
for another 24 hours.")]
    Rotate(Rotate),
}

/// Whose keys, and where to ask.
#[derive(Debug, Args)]
struct At {
    #[command(flatten)]
    data: Data,
    /// The zone
    #[arg(long, value_name = "ZONE")]
    zone: String,
    /// URL of the STS [default: the running `up`'s]
    #[arg(long, value_name = "URL")]
    sts_url: Option<String>,
    /// File with the STS's admin token [default: STS_ADMIN_TOKEN, or the running `up`'s]
    #[arg(long, value_name = "FILE")]
    sts_token_file: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
pub struct Rotate {
    #[command(flatten)]
    at: At,
    /// Sign with the new key at once
    #[arg(long)]
    emergency: bool,
}

impl Keys {
    pub fn run(&self) -> Outcome {
        match self {
            Self::List(List { at }) => at.ask(Call::get, "", list),
            Self::Rotate(Rotate { at, emergency }) => {
                let query = if *emergency { "?emergency=true" } else { "" };
                let post = |url| Call::new(http::Method::POST, url);
                at.ask(post, &format!("/rotate{query}"), rotated)
            }
        }
    }
}

impl At {
    fn ask(
        &self,
        call: impl FnOnce(String) -> Call,
        what: &str,
        tell: impl FnOnce(&Value) -> anyhow::Result<()>,
    ) -> Outcome {
        let (environment, home) = self.data.open()?;
        let sts = match &self.sts_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => crate::status::urls(&environment, &home).sts,
        };
        let token = self.token(&environment, &home)?;
        let zone: String = url::form_urlencoded::byte_serialize(self.zone.as_bytes()).collect();
        let url = format!("{sts}/internal/zones/{zone}/signing-key{what}");
        let call = call(url).bearer(token.expose())?;
        let asked = async { Web::new().send(call, WITHIN).await };
        let answer = crate::up::small_runtime()?
            .block_on(asked)
            .with_context(|| {
                format!("the STS at {sts}. Is it running there? See `caracal status`")
            })?;
        match answer.status.as_u16() {
            200 => {}
            401 => {
                anyhow::bail!("the STS refuses the token: give STS_ADMIN_TOKEN or --sts-token-file")
            }
            404 if answer.code() == "not_found" => {
                anyhow::bail!(
                    "the STS at {sts} has no STS_ADMIN_TOKEN, so its keys are not managed"
                )
            }
            code => anyhow::bail!("the STS answers {code} {}", answer.said()),
        }
        let body = answer.value()?;
        if self.json {
            println!("{body}");
        } else {
            tell(&body)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn token(
        &self,
        environment: &crate::config::Environment,
        home: &Home,
    ) -> anyhow::Result<Secret<String>> {
        if let Some(file) = &self.sts_token_file {
            return read_secret(file);
        }
        if let Some(token) = environment.get("STS_ADMIN_TOKEN") {
            return Ok(Secret::new(token.to_owned()));
        }
        if let Some(file) = environment.get("STS_ADMIN_TOKEN_FILE") {
            return read_secret(file.as_ref());
        }
        read_secret(&home.secret("stsAdminToken"))
            .context("no token of the STS: set STS_ADMIN_TOKEN, or give --sts-token-file")
    }
}

/// How long the STS may take.
const WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

fn list(body: &Value) -> anyhow::Result<()> {
    let keys = body.get("keys").and_then(Value::as_array);
    println!(
        "{:<38} {:<8} {:<26} PUBLISHED UNTIL",
        "KEY", "STATE", "SIGNS FROM"
    );
    for key in keys.into_iter().flatten() {
        println!(
            "{:<38} {:<8} {:<26} {}",
            text(key, "kid")?,
            text(key, "state")?,
            text(key, "signs_from")?,
            text(key, "published_until").unwrap_or_else(|_| "-".to_owned()),
        );
    }
    Ok(())
}

fn rotated(body: &Value) -> anyhow::Result<()> {
    println!(
        "{} is published; it signs from {}",
        text(body, "kid")?,
        text(body, "signs_from")?
    );
    Ok(())
}
