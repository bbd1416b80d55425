//! `caracal demo`: the whole idea in seven steps, against a running deployment and over its public
//! wire, so that whoever reads this file sees what an application sends.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use axum::Router;
use clap::Args;
use http::StatusCode;
use serde_json::{Value, json};

use crate::cli::Api;
use crate::exit::Outcome;
use crate::term;
use crate::web::{Answer, text};

mod stage;

use stage::{Stage, Zone};

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLE\n  caracal up --detach && caracal demo")]
pub struct Demo {
    #[command(flatten)]
    api: Api,
    /// Leave the zone in place, to look around in it
    #[arg(long)]
    keep: bool,
}

impl Demo {
    pub fn run(&self) -> Outcome {
        crate::up::small_runtime()?.block_on(async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
            let upstream = format!("http://{}", listener.local_addr()?);
            let tickets = Router::new().fallback(|| async {
                axum::Json(json!({ "tickets": ["printer on fire", "forgot password"] }))
            });
            tokio::select! {
                served = async { axum::serve(listener, tickets).await } => {
                    served?;
                    bail!("the demo's upstream ended early")
                }
                played = self.play(&upstream) => played,
            }
        })
    }

    async fn play(&self, upstream: &str) -> Outcome {
        let stage = Stage::open(&self.api)?;
        let zone = stage.build(upstream).await?;
        let told = tell(&stage, &zone).await;
        if !self.keep {
            stage.remove(&zone).await?;
        }
        told?;
        if self.keep {
            println!(
                "\nThe zone is still there. Its evidence: caracal audit tail --zone {}",
                zone.id
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The story. Each step prints what it did, and fails when the answer is not the one expected.
async fn tell(stage: &Stage, zone: &Zone) -> anyhow::Result<()> {
    title(
        1,
        "An operator registers a help desk and an agent that may read its tickets",
    );
    say(&format!("zone {}", zone.id));
    say(&format!(
        "resource {} with desk:read and desk:write",
        zone.resource
    ));
    say("policy grants the agent desk:read, nothing else");

    title(
        2,
        "The agent starts a Session and delegates to a helper's Session, for 15 minutes",
    );
    let helper = stage.delegate(zone).await?;
    say(&format!("Delegation {}", helper.edge));

    title(
        3,
        "The helper reads tickets: mint a mandate for one call, present it to the Gateway",
    );
    let minted = stage.mint(zone, &helper, "desk:read").await?;
    let mandate = expect(&minted, StatusCode::OK)?;
    let answer = stage.call(zone, &text(&mandate, "access_token")?).await?;
    let body = expect(&answer, StatusCode::OK)?;
    verdict(true, &answer, &body.to_string());

    title(
        4,
        "The helper asks for desk:write, which the Delegation holds and the policy does not",
    );
    let refused = stage.mint(zone, &helper, "desk:write").await?;
    expect(&refused, StatusCode::FORBIDDEN)?;
    verdict(false, &refused, &refused.said());

    title(
        5,
        "The operator's emergency brake: the Delegation is revoked while a mandate is out",
    );
    let mandate = expect(
        &stage.mint(zone, &helper, "desk:read").await?,
        StatusCode::OK,
    )?;
    stage.revoke(zone, &helper).await?;
    say("revoked");

    title(6, "The mandate that was minted before is worth nothing now");
    let cut = stage.call(zone, &text(&mandate, "access_token")?).await?;
    expect(&cut, StatusCode::UNAUTHORIZED)?;
    verdict(false, &cut, &cut.said());

    title(
        7,
        "The ledger explains the denial of step 4 by its request id",
    );
    let request = refused
        .request_id()
        .context("the answer has no X-Request-Id")?;
    explain(&stage.explanation(zone, request).await?);
    Ok(())
}

fn title(n: u8, what: &str) {
    println!("\n{} {}", term::dim(&format!("{n}.")), term::bold(what));
}

fn say(what: &str) {
    println!("   {what}");
}

fn verdict(allowed: bool, answer: &Answer, what: &str) {
    let word = if allowed {
        term::green("allowed")
    } else {
        term::red("refused")
    };
    println!("   {word} {} {what}", answer.status.as_u16());
    if let Some(id) = answer.request_id() {
        println!("   {}", term::dim(&format!("request {id}")));
    }
}

fn expect(answer: &Answer, status: StatusCode) -> anyhow::Result<Value> {
    if answer.status != status {
        bail!(
            "expected {status}, but the answer is {} {}",
            answer.status.as_u16(),
            answer.said()
        );
    }
    answer.value()
}

fn explain(explanation: &Value) {
    say(&format!(
        "final decision: {}",
        explanation
            .get("final_decision")
            .and_then(Value::as_str)
            .unwrap_or("unknown")
    ));
    for denied in explanation
        .get("denied")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        for (field, of) in [
            ("event", "event_type"),
            ("status", "evaluation_status"),
            ("why", "diagnostics"),
        ] {
            if let Some(value) = denied.get(of) {
                say(&format!("{field:<7} {value}"));
            }
        }
        if let Some(labels) = denied.pointer("/policy_input/principal/labels") {
            say(&format!("{:<7} {labels}", "labels"));
        }
        if let Some(scopes) = denied.pointer("/policy_input/context/requested_scopes") {
            say(&format!("{:<7} {scopes}", "asked"));
        }
    }
}
