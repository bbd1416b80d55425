//! `caracal policy`: what a change of policy would do, before it is in force.

use clap::Subcommand;

use crate::exit::Outcome;

mod replay;

/// Try policy before it is in force.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Decide recorded requests again by another version, and print what differs
    Replay(replay::Replay),
}

impl Policy {
    pub fn run(&self) -> Outcome {
        match self {
            Self::Replay(replay) => replay.run(),
        }
    }
}
