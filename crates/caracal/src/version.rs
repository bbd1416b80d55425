//! `caracal version`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::config::Environment;
use crate::exit::Outcome;

/// Of the binary, as released.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Args)]
pub struct Version {
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Version {
    pub fn run(&self) -> Outcome {
        if !self.json {
            println!("caracal {VERSION}");
            return Ok(ExitCode::SUCCESS);
        }
        let environment = Environment::of_process()?;
        let mode = environment
            .get("CARACAL_MODE")
            .unwrap_or("stable")
            .to_lowercase();
        // Set by whoever builds a release; a build from a work tree has none to claim.
        let sha = option_env!("CARACAL_BUILD_SHA");
        println!(
            "{}",
            json!({ "binary": "caracal", "version": VERSION, "mode": mode, "sha": sha })
        );
        Ok(ExitCode::SUCCESS)
    }
}
