//! `caracal audit`: evidence as an operator reads, keeps and proves it.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use caracal_crypto::os::SystemClock;
use caracal_model::Secret;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::cli::Api;
use crate::config::Environment;
use crate::exit::Outcome;
use crate::home::{Home, read_secret};
use crate::web::{Call, Opened, Web};
use events::Events;

mod events;
mod explain;
mod export;
mod key;
mod keys;
mod live;
mod tail;
mod trace;
mod verify;

/// Read, export and verify evidence.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Verify ledgers against their chain and their checkpoints: through the API, in the database, or
    /// in an export
    Verify(Box<verify::Verify>),
    /// Print the public key of checkpoints, or the latest checkpoint of every zone to keep elsewhere
    Key(key::Key),
    /// List and replace the keys that checkpoints are signed with
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Say why a request was decided as it was, and what would have to change
    Explain(explain::Explain),
    /// Print events as they arrive
    Tail(tail::Tail),
    /// Show what all services recorded of a request, in its order
    Trace(trace::Trace),
    /// Write the events with their chain, one JSON object a line, or as Parquet
    Export(export::Export),
}

impl Audit {
    pub fn run(&self) -> Outcome {
        match self {
            Self::Verify(verify) => verify.run(),
            Self::Key(key) => key.run(),
            Self::Keys(keys) => keys.run(),
            Self::Explain(explain) => explain.run(),
            Self::Tail(tail) => tail.run(),
            Self::Trace(trace) => trace.run(),
            Self::Export(export) => export.run(),
        }
    }
}

/// The token given by file, or set, or the one of the deployment on this machine.
pub fn admin_token(
    api: &Api,
    environment: &Environment,
    home: &Home,
) -> anyhow::Result<Secret<String>> {
    if let Some(file) = &api.admin_token_file {
        return read_secret(file);
    }
    if let Some(token) = environment.get("CARACAL_ADMIN_TOKEN") {
        return Ok(Secret::new(token.to_owned()));
    }
    if let Some(file) = environment.get("CARACAL_ADMIN_TOKEN_FILE") {
        return read_secret(file.as_ref());
    }
    home.admin_token().context(
        "no admin token. Start a deployment with `caracal up`, set CARACAL_ADMIN_TOKEN, or give \
         --admin-token-file",
    )
}

/// A reader of the management API.
pub struct Reader {
    web: Web,
    api: String,
    token: Secret<String>,
}

impl Reader {
    pub fn open(api: &Api) -> anyhow::Result<Self> {
        let (environment, home) = api.data.open()?;
        let token = admin_token(api, &environment, &home)?;
        let url = match &api.api_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => crate::status::urls(&environment, &home).api,
        };
        let web = match url.starts_with("https:") {
            true => {
                if let Some(file) = &api.api_ca_file {
                    ensure!(
                        file.exists(),
                        "--api-ca-file: {} is not there",
                        file.display()
                    );
                }
                let set = environment.get("CARACAL_TLS_EXTRA_CA_FILE").map(Path::new);
                let extra_ca = api.api_ca_file.as_deref().or(set);
                let clock = Arc::new(SystemClock::new());
                Web::with_tls(extra_ca, clock)?
            }
            false => Web::new(),
        };
        Ok(Self {
            web,
            api: url,
            token,
        })
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(http::Method::GET, path).await
    }

    pub async fn post(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(http::Method::POST, path).await
    }

    /// As [`Reader::get`]; `None` when there is no such thing.
    pub async fn find(&self, path: &str) -> anyhow::Result<Option<Value>> {
        self.web.find(self.call(http::Method::GET, path)?).await
    }

    async fn ask(&self, method: http::Method, path: &str) -> anyhow::Result<Value> {
        self.web.json(self.call(method, path)?).await
    }

    fn call(&self, method: http::Method, path: &str) -> anyhow::Result<Call> {
        Call::new(method, format!("{}{path}", self.api)).bearer(self.token.expose())
    }

    /// Opens the events that a path answers with, after the one of this id.
    pub async fn events(&self, path: &str, after: Option<&str>) -> anyhow::Result<Events> {
        let url = format!("{}{path}", self.api);
        let what = format!("GET {url}");
        let mut call = Call::get(url).bearer(self.token.expose())?;
        if let Some(after) = after {
            call = call.header("last-event-id", after)?;
        }
        match self.web.open(call).await.context(what.clone())? {
            Opened::Stream(body) => Ok(Events::of(body)),
            Opened::Other => bail!("{what}: the answer is no stream of events; is that the API?"),
            Opened::Refused(answer) => Err(answer.refusal(&what)),
        }
    }

    /// The zone asked for; without one, the only zone that there is.
    pub async fn zone(&self, asked: Option<&str>) -> anyhow::Result<String> {
        if let Some(zone) = asked {
            return Ok(zone.to_owned());
        }
        let page = self.get("/v1/zones?limit=20").await?;
        let zones: Vec<(&str, &str)> = items(&page)
            .filter_map(|zone| Some((zone.get("id")?.as_str()?, zone.get("name")?.as_str()?)))
            .collect();
        match zones.as_slice() {
            [] => bail!(
                "there is no zone yet; make one through the API, or run `caracal demo --keep`"
            ),
            [(id, _)] => Ok((*id).to_owned()),
            many => {
                let list: Vec<_> = many
                    .iter()
                    .map(|(id, name)| format!("  --zone {id}  {name}"))
                    .collect();
                bail!("there are several zones; say which:\n{}", list.join("\n"))
            }
        }
    }
}

/// A request on record, for the commands that show one.
#[derive(Debug, Args)]
pub struct OfRequest {
    #[command(flatten)]
    api: Api,
    /// Id of the request, as its answer and its evidence have it
    request_id: String,
    /// Zone to read [default: the only one]
    #[arg(long)]
    zone: Option<String>,
    /// The whole answer, as JSON
    #[arg(long)]
    json: bool,
}

impl OfRequest {
    /// Shows what is known of it: `which` is the read below it, `text` tells it to a person.
    pub fn show(&self, which: &str, text: impl FnOnce(&Value) -> String) -> Outcome {
        crate::up::small_runtime()?.block_on(async {
            let reader = Reader::open(&self.api)?;
            let zone = reader.zone(self.zone.as_deref()).await?;
            let id = &self.request_id;
            let path = format!("/v1/zones/{zone}/audit/by-request/{id}{which}");
            let told = reader.get(&path).await?;
            if self.json {
                println!("{told}");
            } else {
                print!("{}", text(&told));
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// The items of a page.
pub fn items(page: &Value) -> impl Iterator<Item = &Value> {
    page.get("items")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}
