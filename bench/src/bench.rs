//! The run: prepare, warm, measure step by step, count the evidence, clean up, report.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::admin::Admin;
use crate::args::{Args, Operation, Other, Step};
use crate::audit;
use crate::evidence::{self, Events, Evidence};
use crate::identity::{Identities, Maker};
use crate::latency::Tally;
use crate::load::Load;
use crate::procs::{self, Procs, Usage, Watched};
use crate::provision::{Provisioned, provision};
use crate::report::{Around, Report, StepReport};
use crate::spawn::Spawned;
use crate::upstream::Upstream;
use crate::wire::Base;

/// The very first, when nothing of the delegation is in any memory: one, and no more.
const fn first(operation: Operation) -> Step {
    Step {
        operation,
        counted: false,
        workers: 1,
        rate: Some(1),
        lasts: Duration::from_millis(1),
    }
}
/// How long the last events may take to arrive.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// Runs what the command line asks for; fails also when a call failed or evidence is missing.
pub fn run(mut args: Args) -> anyhow::Result<ExitCode> {
    if let Some(Other::Audit(args)) = &args.other {
        return audit::run(args).map(|()| ExitCode::SUCCESS);
    }
    let steps = args.steps()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(args.client_threads)
        .enable_all()
        .build()?;
    let report = runtime.block_on(Box::pin(async {
        let spawned = start(&mut args).await?;
        let measured = Box::pin(measure(&args, steps)).await;
        let mut stopped = None;
        let mut ready = None;
        if let Some(spawned) = spawned {
            ready = Some(ms(spawned.start_to_ready));
            stopped = Some(ms(spawned.stop().await?));
        }
        let mut report = measured?;
        report.start_to_ready_ms = ready;
        report.stop_ms = stopped;
        anyhow::Ok(report)
    }))?;
    println!("{}", report.render(args.format)?);
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Starts a server when asked to, and points the arguments at it.
async fn start(args: &mut Args) -> anyhow::Result<Option<Spawned>> {
    let Some(binary) = &args.spawn else {
        return Ok(None);
    };
    say("starting the server");
    let spawned = Spawned::start(binary, args.scratch.as_deref(), args.stock_limits).await?;
    args.api.clone_from(&spawned.api);
    args.sts.clone_from(&spawned.sts);
    args.gateway.clone_from(&spawned.gateway);
    args.coordinator.clone_from(&spawned.coordinator);
    args.admin_token = None;
    args.admin_token_file = Some(spawned.token_file.clone());
    args.pids = vec![Watched::server(spawned.pid)];
    Ok(Some(spawned))
}

async fn measure(args: &Args, steps: Vec<Step>) -> anyhow::Result<Report> {
    let procs = Procs::new(&args.pids)?;
    let upstream = Upstream::start(args.upstream_bytes)?;
    let upstream_url = format!("http://{}:{}", args.upstream_host, upstream.port());
    let mut admin = Admin::new(&Base::parse(&args.api)?, &token(args)?)?;
    say(&format!(
        "provisioning a zone with {} applications",
        args.identities
    ));
    let provisioned = Arc::new(provision(&mut admin, args.identities, &upstream_url).await?);
    let identities = Identities::make(Maker {
        sts: Base::parse(&args.sts)?,
        coordinator: Base::parse(&args.coordinator)?,
        provisioned: Arc::clone(&provisioned),
    });
    let load = Load {
        sts: Base::parse(&args.sts)?,
        gateway: Base::parse(&args.gateway)?,
        coordinator: Base::parse(&args.coordinator)?,
        identities: Arc::new(Box::pin(identities).await?),
    };
    let operation = steps.first().map_or(Operation::Call, |step| step.operation);
    let first = Box::pin(load.run(first(operation))).await?;
    let (reports, mut total) = tokio::select! {
        done = Box::pin(walk(args, &load, &procs, &steps)) => done?,
        failed = load.identities.keep_fresh() => {
            failed.context("an identity could not be renewed")?;
            bail!("the renewal of identities ended early");
        }
    };
    total.add(&first.tally)?;
    let evidence = settle(args, &mut admin, &provisioned, &load, &total).await?;
    if !args.keep {
        load.identities.end().await?;
        admin
            .delete(&format!("/v1/zones/{}", provisioned.zone))
            .await?;
    }
    Ok(Report {
        identities: args.identities,
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        client_threads: args.client_threads,
        upstream_bytes: args.upstream_bytes,
        policy_loaded_ms: ms(provisioned.policy_loaded_in),
        first_call_ms: first.tally.calls.ms(100.0),
        start_to_ready_ms: None,
        stop_ms: None,
        server_peak_rss_bytes: if procs.watches_any() {
            Some(procs.usage()?.peak_rss_bytes)
        } else {
            None
        },
        steps: reports,
        evidence,
        upstream_requests: upstream.served(),
    })
}

/// Warms up, then runs the counted steps; answers with their reports and the sum of everything.
async fn walk(
    args: &Args,
    load: &Load,
    procs: &Procs,
    steps: &[Step],
) -> anyhow::Result<(Vec<StepReport>, Tally)> {
    let mut total = Tally::new()?;
    let mut reports = Vec::new();
    for &step in steps {
        say(&describe(step));
        if !step.counted {
            total.add(&load.run(step).await?.tally)?;
            procs.rest().await?;
            continue;
        }
        let (server, client) = (procs.each()?, procs::own_cpu_seconds());
        let done = load.run(step).await?;
        let client_cpu_seconds = procs::own_cpu_seconds() - client;
        let resident = procs.each()?;
        procs.rest().await?;
        let around = Around {
            seconds: done.took.as_secs_f64(),
            server: spent(&server, &procs.each()?, &resident),
            client_cpu_seconds,
            client_threads: args.client_threads,
        };
        reports.push(StepReport::new(step, &done.tally, &around));
        total.add(&done.tally)?;
    }
    Ok((reports, total))
}

/// What each process spent between two looks, and held at the end of the load.
fn spent(
    before: &BTreeMap<String, Usage>,
    after: &BTreeMap<String, Usage>,
    resident: &BTreeMap<String, Usage>,
) -> BTreeMap<String, Usage> {
    let of = |looks: &BTreeMap<String, Usage>, name: &str| looks.get(name).copied();
    let each = after.iter().map(|(name, now)| {
        let was = of(before, name).unwrap_or_default();
        let held = of(resident, name).unwrap_or_default();
        let spent = Usage {
            cpu_seconds: now.cpu_seconds - was.cpu_seconds,
            ..held
        };
        (name.clone(), spent)
    });
    each.collect()
}

async fn settle(
    args: &Args,
    admin: &mut Admin,
    provisioned: &Provisioned,
    load: &Load,
    total: &Tally,
) -> anyhow::Result<Option<Evidence>> {
    if args.no_evidence {
        return Ok(None);
    }
    let forwarded = total.gateway.count();
    let bootstraps = load.identities.bootstraps.load(Ordering::Relaxed);
    let expected = Events {
        token_exchange: bootstraps + total.minted + forwarded,
        gateway_resource_request: forwarded,
    };
    say(&format!(
        "counting about {} audit events",
        expected.token_exchange + forwarded
    ));
    Ok(Some(
        evidence::count(admin, &provisioned.zone, expected, SETTLED_WITHIN).await?,
    ))
}

fn describe(step: Step) -> String {
    let load = step.rate.map_or_else(
        || format!("{} workers", step.workers),
        |rate| format!("{rate} a second"),
    );
    format!(
        "{}{}: {load}, {} s",
        if step.counted { "" } else { "warming up, " },
        step.operation.plural(),
        step.lasts.as_secs()
    )
}

/// The token given, or the file given, or the file that `caracal up` leaves.
fn token(args: &Args) -> anyhow::Result<String> {
    if let Some(token) = args
        .admin_token
        .as_deref()
        .filter(|token| !token.is_empty())
    {
        return Ok(token.to_owned());
    }
    let file = match &args.admin_token_file {
        Some(file) => file.clone(),
        None => home()?.join("secrets/caracalAdminToken"),
    };
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "no admin token: {} cannot be read. Set CARACAL_ADMIN_TOKEN or give --admin-token-file",
            file.display()
        )
    })?;
    Ok(text.trim().to_owned())
}

/// Where `caracal up` keeps its data (operations specification §12).
fn home() -> anyhow::Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(home) = set("CARACAL_HOME") {
        return Ok(home);
    }
    if let Some(data) = set("XDG_DATA_HOME") {
        return Ok(data.join("caracal"));
    }
    let home = set("HOME").context("no admin token: set CARACAL_ADMIN_TOKEN")?;
    Ok(if cfg!(target_os = "macos") {
        home.join("Library/Application Support/caracal")
    } else {
        home.join(".local/share/caracal")
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Progress goes to standard error, so that the report can be piped.
fn say(what: &str) {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let at = BEGAN.get_or_init(Instant::now).elapsed();
    eprintln!("[{:7.1} s] {what}", at.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::fake;

    async fn run_against(url: &str, more: &str) -> Report {
        let line = format!(
            "caracal-bench --api {url} --sts {url} --gateway {url} --coordinator {url} \
             --admin-token t --identities 3 --warm-up 50ms --duration 200ms {more}"
        );
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        let steps = args.steps().unwrap();
        measure(&args, steps).await.unwrap()
    }

    #[tokio::test]
    async fn a_run_counts_its_calls_finds_its_evidence_and_cleans_up() {
        let (url, seen) = fake::start().await;
        let report = run_against(&url, "--workers 1,4").await;
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.steps.len(), 2);
        assert!(
            report.steps.iter().all(|step| step.calls > 10),
            "{report:?}"
        );
        assert_eq!(
            seen.ended.load(Ordering::Relaxed),
            3 * 2 + 1,
            "two Sessions each, and the zone"
        );
    }

    #[tokio::test]
    async fn an_open_loop_holds_its_rate() {
        let (url, _) = fake::start().await;
        let report = run_against(&url, "--rate 100 --max-in-flight 4 --mint-only").await;
        let step = report.steps.first().unwrap();
        assert_eq!(step.calls, 20, "100 a second for 200 ms");
        assert!(step.gateway_ms.is_none());
    }

    #[tokio::test]
    async fn operations_are_told_apart_by_what_each_process_spends_on_them() {
        let (url, seen) = fake::start().await;
        let own = std::process::id();
        let more = format!("--operations call,session --workers 2 --pids bench={own}");
        let report = run_against(&url, &more).await;
        let operations: Vec<_> = report.steps.iter().map(|step| step.operation).collect();
        assert_eq!(operations, [Operation::Call, Operation::Session]);
        let sessions = report.steps.last().unwrap();
        assert!(sessions.calls > 10 && sessions.start_ms.is_some() && sessions.mint_ms.is_none());
        assert!(seen.ended.load(Ordering::Relaxed) > sessions.calls);
        let processes = &sessions.server.as_ref().unwrap().processes;
        assert!(processes.contains_key("bench"), "{processes:?}");
    }

    #[tokio::test]
    async fn refusals_are_counted_by_code() {
        let (url, seen) = fake::start().await;
        seen.refuse_every.store(7, Ordering::Relaxed);
        let report = run_against(&url, "--workers 2 --no-evidence").await;
        let errors = &report.steps.first().unwrap().errors;
        assert!(
            errors.contains_key("gateway 503 sts_unavailable"),
            "{errors:?}"
        );
        assert!(!report.is_clean());
    }

    #[tokio::test]
    async fn missing_evidence_is_named() {
        let (url, seen) = fake::start().await;
        seen.exchanges.store(1500, Ordering::Relaxed);
        seen.forwarded.store(1500, Ordering::Relaxed);
        seen.lost.store(1, Ordering::Relaxed);
        let mut admin = Admin::new(&Base::parse(&url).unwrap(), "t").unwrap();
        let expected = Events {
            token_exchange: 1500,
            gateway_resource_request: 1500,
        };
        let evidence = evidence::count(&mut admin, "zone", expected, Duration::ZERO)
            .await
            .unwrap();
        let found = Events {
            token_exchange: 1499,
            gateway_resource_request: 1500,
        };
        assert_eq!((evidence.found, evidence.complete), (found, false));
    }
}
