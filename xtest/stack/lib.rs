//! What the end-to-end tests are written with: the built binary in both deployments, a client, and
//! a provisioned zone.
//!
//! A [`Stack`] is a deployment of its own: ports, directories, database and Redis are nobody
//! else's, so tests run beside each other and may kill whatever they like. Nothing here knows a
//! type of the product: what is tested is what a user runs.

mod balancer;
pub mod binary;
mod clock;
pub mod drill;
mod fault;
mod harm;
pub mod http;
pub mod oauth;
mod options;
mod policy;
mod ports;
mod postgres;
pub mod probe;
mod process;
mod recorded;
mod servers;
mod stack;
mod upstream;
pub mod wishes;
pub mod world;

pub use fault::{Fault, FaultProxy};
pub use harm::{DEAD_LETTERS, Held};
pub use options::Options;
pub use process::Process;
pub use servers::Redis;
pub use stack::{Deployment, Part, Stack, Urls};
pub use world::{Agent, CALLED, DENIED, DESK, MINTED, REPLAYED, World, eventually};

use std::io::Write as _;
use std::sync::Arc;

/// Runs a scenario on one deployment. Without `CARACAL_TEST_POSTGRES` the distributed half is
/// skipped, and says so.
///
/// # Panics
/// When the scenario does, or the deployment does not start.
pub fn on(deployment: Deployment, options: Options, scenario: impl AsyncFnOnce(Arc<Stack>)) {
    let name = std::thread::current()
        .name()
        .unwrap_or("a scenario")
        .to_owned();
    let Some(place) = servers::place(deployment) else {
        visibly(&format!("skipped {name}: CARACAL_TEST_POSTGRES is not set"));
        return;
    };
    if deployment == Deployment::Distributed && options.own_postgres && !postgres::is_there() {
        visibly(&format!("skipped {name}: no Postgres to start"));
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let stack = Arc::new(Stack::start(place, options).await);
        scenario(Arc::clone(&stack)).await;
        // What ends a process by itself is a defect even when every answer was right, and so is a
        // statement that the role of a service may not run.
        stack.none_has_ended();
        stack.none_was_refused();
    });
}

/// A line that the test harness does not swallow.
pub fn visibly(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Scenarios that run once on each deployment, as two tests.
///
/// `options: …;` before them changes how their deployments are set.
#[macro_export]
macro_rules! on_both_stacks {
    (options: $options:expr; $($rest:tt)*) => {
        $crate::on_both_stacks!(@each $options; $($rest)*);
    };
    (@each $options:expr; $($(#[$meta:meta])* async fn $name:ident($stack:ident: $kind:ty) $body:block)+) => {
        $(
            $(#[$meta])*
            mod $name {
                #[allow(unused_imports, reason = "what a scenario needs of its module differs")]
                use super::*;

                async fn scenario($stack: $kind) $body

                #[test]
                fn embedded() {
                    $crate::on($crate::Deployment::Embedded, $options, scenario);
                }

                #[test]
                fn distributed() {
                    $crate::on($crate::Deployment::Distributed, $options, scenario);
                }
            }
        )+
    };
    ($($rest:tt)+) => {
        $crate::on_both_stacks!(@each $crate::Options::default(); $($rest)+);
    };
}
