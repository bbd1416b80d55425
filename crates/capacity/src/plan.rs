//! How large a deployment must be for a load, from what a call costs; and what ends first as the load
//! grows.
//!
//! **Choice.** Arithmetic that a person can repeat on paper, every line of it shown: a cost, a rate,
//! a ceiling. Nothing is fitted to a curve. Costs come from `docs/benchmarks.md` or from the user's
//! own measurements ([`Costs::learn`]), each with its source.

mod costs;
mod growth;
mod size;

use std::fmt::Write as _;

use serde::Serialize;

pub use costs::{Cost, Costs};
pub use growth::{Growth, Use};
pub use size::{Fleet, Load, Sized};

use crate::show;

/// The answer to "how large?".
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What it is for.
    pub load: Load,
    /// What there may be of everything.
    pub fleet: Fleet,
    /// What was reckoned with, each with its source.
    pub costs: Costs,
    /// Each part, with its arithmetic.
    pub parts: Vec<Sized>,
    /// The load, ten times and a hundred times the load.
    pub growth: Vec<Growth>,
    /// Whether the load itself fits.
    pub fits: bool,
}

impl Plan {
    /// For a load, within a fleet, at these costs.
    pub fn of(load: Load, fleet: Fleet, costs: Costs) -> Self {
        let parts = size::parts(&load, &fleet, &costs);
        let growth = [1.0, 10.0, 100.0].map(|times| growth::at(times, &load, &fleet, &costs));
        let fits = growth.first().is_some_and(Growth::fits);
        Self {
            load,
            fleet,
            costs,
            parts,
            growth: growth.to_vec(),
            fits,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let load = &self.load;
        let mut text = format!(
            "LOAD\n  {} governed calls/s, {} live Sessions in {} zones, {} identities, evidence kept {} days\n  resources are used up to {}\n",
            show::count(load.calls_per_second),
            show::count(load.sessions),
            show::count(load.zones),
            show::count(load.identities),
            show::count(load.retention_days),
            show::share(load.utilization),
        );
        text.push_str("\nSIZES\n");
        for part in &self.parts {
            let _ = writeln!(text, "  {}: {}", part.part, part.size);
            for line in &part.arithmetic {
                let _ = writeln!(text, "    {line}");
            }
        }
        text.push_str("\nGROWTH: how much of each is used\n");
        text.push_str(&self.growth_table());
        for growth in &self.growth {
            let _ = writeln!(text, "  {}", growth.told());
        }
        text.push_str("\nCOSTS\n");
        text.push_str(&self.costs.table());
        text
    }

    fn growth_table(&self) -> String {
        let mut head = vec!["".to_owned()];
        head.extend(
            self.growth
                .iter()
                .map(|growth| format!("x{:.0}", growth.times)),
        );
        let mut rows = vec![head];
        let names = self.growth.first().map(|growth| &growth.uses);
        for (n, part) in names.into_iter().flatten().enumerate() {
            let mut row = vec![part.part.to_owned()];
            let shares = self.growth.iter().filter_map(|growth| growth.uses.get(n));
            row.extend(shares.map(|of| show::share(of.share)));
            rows.push(row);
        }
        show::table(&rows)
    }
}
