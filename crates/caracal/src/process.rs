//! A running process: listeners bound, services mounted, then an orderly end.
//!
//! The order of the end is the promise: nobody is accepted any more, whoever is being served is
//! finished, what they left as evidence is flushed, and only then the store is closed.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use caracal_net::{Server, Tasks};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::adapters::Adapters;
use crate::exit::Outcome;
use crate::platform::Settings;
use crate::roles::{Configured, Mounted, Role, mount};
use crate::{telemetry, term, traces};

/// How long the last spans may take.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// Niceness that lets a request interrupt the ledger, and the ledger keep up when all are busy.
const GIVES_WAY: i32 = 3;
/// What servers may take beyond their own time to drain, to notice that they are done.
const MARGIN: Duration = Duration::from_secs(1);

/// For a process that serves.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")
}

/// For what nobody waits for, beside the threads that serve: the ledger computes in long stretches, and
/// on few processors a request that arrives in between would wait for their end. Its threads give way.
/// To be dropped after the other.
pub fn background() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("background")
        .on_thread_start(|| {
            if let Err(error) = rustix::process::setpriority_process(None, GIVES_WAY) {
                tracing::warn!(%error, "the background runs at the priority of requests");
            }
        })
        .enable_all()
        .build()
        .context("no runtime")
}

/// Takes the ports.
pub async fn bind(addresses: &[(Role, SocketAddr)]) -> anyhow::Result<Vec<(Role, TcpListener)>> {
    let mut listeners = Vec::new();
    for (role, address) in addresses {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "{} cannot listen on {address}. If something else does, give --{}-port or --ports-from",
                role.name(),
                role.name()
            )
        })?;
        listeners.push((*role, listener));
    }
    Ok(listeners)
}

/// Serves until a signal, a panic or the end of a service; then ends in order.
pub async fn serve(
    configs: Vec<Configured>,
    settings: &Settings,
    adapters: Adapters,
    listeners: Vec<(Role, TcpListener)>,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> Outcome {
    let draining = CancellationToken::new();
    let exporting = Tasks::new();
    traces::start(settings, adapters.clock.clone(), &exporting)?;
    let mounted = Box::pin(mount(configs, settings, &adapters, &draining)).await?;
    let servers = Tasks::new();
    let longest = mounted
        .iter()
        .map(|part| part.limits.drain)
        .max()
        .unwrap_or_default();
    for (part, (role, listener)) in mounted.into_iter().zip(listeners) {
        let Mounted {
            router,
            limits,
            tls,
        } = part;
        let mut server = Server::new(listener, router, limits);
        if let Some(tls) = tls {
            server = server.with_tls(tls);
        }
        servers.spawn(role.name(), server.serve(servers.stop()));
    }
    ready()?;
    let failed = wait(&servers, &adapters).await?;
    draining.cancel();
    tracing::info!("stopping: finishing what is in flight");
    servers.shutdown(longest + MARGIN).await;
    adapters.shutdown().await;
    // Last: what was answered while the process ended is traced as well.
    exporting.shutdown(LAST_SPANS).await;
    tracing::info!("stopped");
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Waits for the reason to stop; true when it is a failure.
async fn wait(servers: &Tasks, adapters: &Adapters) -> anyhow::Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        name = servers.failed() => Some(name.into_owned()),
        name = adapters.failed() => Some(name),
    };
    if let Some(name) = &failed {
        tracing::error!(task = %name, "a task panicked: the process stops");
        let error = term::red("error:");
        telemetry::say(&format!(
            "{error} {name} failed; stopping. The log has the details"
        ));
    }
    Ok(failed.is_some())
}
