//! Two looks at the same deployment, before and after a change.

use crate::bottleneck::Bottleneck;
use crate::diagnose::Finding;
use crate::observe::Service;
use crate::report::Summary;
use crate::show;

/// A value that got worse by less than this is the same value.
const SAME: f64 = 0.2;

/// More replicas that made it worse mean pressure on what they share: connections, or Redis
/// (operations specification §3, symptoms).
pub(crate) fn worse_with_replicas(before: &Summary, after: &Summary, findings: &mut Vec<Finding>) {
    let grown: Vec<(Service, usize, usize)> = after
        .replicas
        .iter()
        .filter_map(|(service, now)| {
            let was = before.replicas.get(service).copied().unwrap_or(0);
            (was > 0 && *now > was).then_some((*service, was, *now))
        })
        .collect();
    let Some((service, was, now)) = grown.first().copied() else {
        return;
    };
    let slower = [
        (
            "a call at the Gateway",
            before.gateway_p99,
            after.gateway_p99,
        ),
        ("an exchange at the STS", before.sts_p99, after.sts_p99),
    ]
    .into_iter()
    .find(|(_, before, after)| is_worse(*before, *after));
    let fewer = is_worse(after.calls_per_second, before.calls_per_second);
    if slower.is_none() && !fewer {
        return;
    }
    let mut evidence = vec![format!(
        "{} went from {was} to {now} replicas",
        service.name()
    )];
    if let Some((what, before, after)) = slower {
        evidence.push(moved(&format!("{what}, p99"), before, after));
    }
    if fewer {
        let rate =
            |calls: Option<f64>| calls.map_or_else(|| "?".to_owned(), |c| format!("{c:.1}/s"));
        let (was, now) = (rate(before.calls_per_second), rate(after.calls_per_second));
        evidence.push(format!("calls fell from {was} to {now}"));
    }
    let redis = is_worse(before.redis_p95, after.redis_p95);
    let waits = is_worse(before.pool_wait_p95, after.pool_wait_p95);
    let bottleneck = if redis && !waits {
        evidence.push(moved(
            "a Redis command, p95",
            before.redis_p95,
            after.redis_p95,
        ));
        Bottleneck::RedisLatency
    } else {
        if waits {
            let what = "the wait for a connection, p95";
            evidence.push(moved(what, before.pool_wait_p95, after.pool_wait_p95));
        }
        if let (Some(was), Some(now)) = (before.pool_connections, after.pool_connections) {
            evidence.push(format!(
                "the pools may open {now:.0} connections, before {was:.0}"
            ));
        }
        Bottleneck::PostgresConnections
    };
    merge(findings, bottleneck, evidence);
}

fn merge(findings: &mut Vec<Finding>, bottleneck: Bottleneck, mut evidence: Vec<String>) {
    if let Some(at) = findings.iter().position(|f| f.bottleneck == bottleneck) {
        let known = findings.remove(at);
        evidence.extend(known.evidence);
    }
    for other in findings.iter_mut() {
        if other.because_of.is_none() && other.bottleneck.causes().contains(&bottleneck) {
            other.because_of = Some(bottleneck);
        }
    }
    // What the change brought about is where to begin.
    findings.insert(
        0,
        Finding {
            bottleneck,
            evidence,
            because_of: None,
            service: None,
        },
    );
}

fn is_worse(before: Option<f64>, after: Option<f64>) -> bool {
    matches!((before, after), (Some(before), Some(after)) if after > before * (1.0 + SAME))
}

fn moved(what: &str, before: Option<f64>, after: Option<f64>) -> String {
    let time = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), show::seconds);
    format!("{what} went from {} to {}", time(before), time(after))
}
