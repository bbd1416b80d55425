//! The binary: five services in one process (`up`) or any of them apart (`serve`), and the
//! operator's commands.
#![expect(clippy::print_stdout, reason = "a command answers on standard output")]

use std::process::ExitCode;

use clap::Parser as _;

mod adapters;
mod addresses;
mod audit;
mod capacity;
mod cli;
mod config;
mod database;
mod demo;
mod doctor;
mod down;
mod embedded;
mod exit;
mod floor;
mod home;
mod keys;
mod levers;
mod metrics;
mod migrate;
mod platform;
mod policy;
mod process;
mod roles;
mod run;
mod serve;
mod status;
mod streams;
mod telemetry;
mod term;
mod traces;
mod up;
mod version;
mod web;
mod witness;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    telemetry::panics_end_in_one_line();
    exit::with(|| cli::Cli::parse().run())
}
