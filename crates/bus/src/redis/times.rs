//! How long Redis takes to answer.

use caracal_model::Histogram;

/// By what was asked. What blocks on purpose is not among them.
#[derive(Debug, Default)]
pub struct Times {
    claim: Histogram,
    count: Histogram,
    append: Histogram,
    ack: Histogram,
    lead: Histogram,
    tail: Histogram,
    ping: Histogram,
    other: Histogram,
}

impl Times {
    /// Where this is counted.
    pub fn of(&self, doing: &str) -> &Histogram {
        match doing {
            "claiming a key" => &self.claim,
            "counting" => &self.count,
            "appending" => &self.append,
            "acknowledging" => &self.ack,
            "leading" => &self.lead,
            "tailing" => &self.tail,
            "pinging" => &self.ping,
            _ => &self.other,
        }
    }

    /// All of them, under the names that metrics have for them.
    pub fn all(&self) -> [(&'static str, Histogram); 8] {
        [
            ("claim", &self.claim),
            ("count", &self.count),
            ("append", &self.append),
            ("ack", &self.ack),
            ("lead", &self.lead),
            ("tail", &self.tail),
            ("ping", &self.ping),
            ("other", &self.other),
        ]
        .map(|(name, histogram)| (name, histogram.clone()))
    }
}
