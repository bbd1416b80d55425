//! caracal-bench: governed calls per second, latency, processor time and evidence, measured from
//! outside.
//!
//! **Forces.** A benchmark that links the server's crates measures what its author believes; one
//! that burns as much processor time as the server measures itself. This program knows nothing but
//! the public wire and prepares every byte that it can before the clock runs. The ledger (`audit`)
//! is the one exception, and says why.
//!
//! **Consequence.** It works against any deployment that speaks the protocol, and its own processor
//! time is part of every report, so that a saturated client cannot pass for a slow server.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measuring tool outside the system: it reads the real clock, owns its tasks and \
              prints its result"
)]

use std::process::ExitCode;

use clap::Parser as _;

mod admin;
mod args;
mod audit;
mod bench;
mod evidence;
#[cfg(test)]
mod fake;
mod identity;
mod latency;
mod load;
mod procs;
mod provision;
mod report;
mod spawn;
mod upstream;
mod wire;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match bench::run(args::Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("caracal-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
