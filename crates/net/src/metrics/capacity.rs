//! `/capacity`: what a service may run out of, how much is left, and what to do first (spec:
//! operations §3, §17.12).
//!
//! Values are read off the exposition itself: what this says and what a scraper sees are the same.

use serde_json::{Value, json};

use super::catalogue::{Catalogue, Over, Signal};

/// The report of one service, from its exposition.
pub fn report(catalogue: &Catalogue, exposition: &str) -> Value {
    let signals: Vec<Value> = catalogue
        .all_signals()
        .map(|signal| one(catalogue.service, signal, value_of(exposition, signal)))
        .collect();
    let over = signals.iter().filter(|signal| signal["over"] == true);
    json!({
        "service": catalogue.service,
        "ok": over.count() == 0,
        "signals": signals,
    })
}

fn one(service: &str, signal: &Signal, value: Option<f64>) -> Value {
    let mut report = signal.json(service);
    if let Some(members) = report.as_object_mut() {
        let over = value.map(|value| signal.is_over(value));
        members.insert(
            "value".to_owned(),
            json!(value.filter(|value| value.is_finite())),
        );
        members.insert(
            "headroom".to_owned(),
            json!(value.map(|value| signal.headroom(value))),
        );
        members.insert("over".to_owned(), json!(over));
    }
    report
}

/// The worst of the series of a signal's metric; none when it is not exposed.
fn value_of(exposition: &str, signal: &Signal) -> Option<f64> {
    let of = |line: &str| -> Option<f64> {
        let rest = line.strip_prefix(signal.metric)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once("} ")?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.trim().parse().ok()
    };
    exposition.lines().filter_map(of).reduce(match signal.over {
        Over::Above => f64::max,
        Over::AtMost => f64::min,
    })
}

impl Signal {
    /// Whether this value is over the threshold.
    pub fn is_over(&self, value: f64) -> bool {
        match self.over {
            Over::Above => value > self.threshold,
            Over::AtMost => value <= self.threshold,
        }
    }

    /// How much is left until the threshold, of what there is in all: 1 is everything, 0 nothing.
    pub fn headroom(&self, value: f64) -> f64 {
        match self.over {
            Over::Above if self.threshold > 0.0 => (1.0 - value / self.threshold).clamp(0.0, 1.0),
            _ if self.is_over(value) => 0.0,
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::catalogue::gauge;

    static CATALOGUE: Catalogue = Catalogue {
        service: "gateway",
        prefix: "caracal_gateway",
        metrics: &[gauge("caracal_gateway_fresh", "Fresh")],
        signals: &[
            Signal {
                name: "fresh",
                metric: "caracal_gateway_fresh",
                over: Over::AtMost,
                threshold: 0.0,
                for_seconds: 120,
                action: "look at Redis",
            },
            Signal {
                name: "lag",
                metric: "caracal_gateway_lag",
                over: Over::Above,
                threshold: 1_000.0,
                for_seconds: 300,
                action: "add replicas",
            },
        ],
    };

    #[test]
    fn each_signal_says_what_is_left_and_what_to_do() {
        let exposition = "# TYPE caracal_gateway_fresh gauge\ncaracal_gateway_fresh 1\n\
            caracal_gateway_lag{topic=\"a\"} 250\ncaracal_gateway_lag{topic=\"b } c\"} 10\n\
            caracal_gateway_lag_other 7000\ncaracal_db_pool_in_use_ratio{service=\"gateway\"} 0.95\n";
        let report = report(&CATALOGUE, exposition);
        assert_eq!(report["ok"], false);
        let told: Vec<String> = report["signals"]
            .as_array()
            .unwrap()
            .iter()
            .map(|signal| {
                format!(
                    "{} {} {} {}",
                    signal["signal"], signal["value"], signal["headroom"], signal["over"]
                )
            })
            .collect();
        insta::assert_snapshot!(told.join("\n"), @r#"
        "fresh" 1.0 1.0 false
        "lag" 250.0 0.75 false
        "db_pool" 0.95 0.0 true
        "readiness_flapping" null null null
        "#);
    }
}
