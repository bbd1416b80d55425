//! The fifth step: what was found, dated, for the page that a team keeps.

use std::fmt::Write as _;

use crate::report::Report;
use crate::show;
use crate::watch::Check;

/// A section of Markdown, to be appended. `at` is the time as RFC 3339, `source` where the numbers
/// come from, `settled` what a watch saw last.
pub fn section(report: &Report, at: &str, source: &str, settled: Option<&[Check; 4]>) -> String {
    let mut text = format!("## {at}\n\n{}", report.load().trim_end());
    let _ = writeln!(text, " Source: {source}.\n");
    match &report.limit {
        Some(limit) => {
            let _ = writeln!(
                text,
                "- Limit: {} calls/s, by {} ({}).\n- Alert threshold: `sum(rate(caracal_gateway_requests_total[5m])) > {:.0}`.",
                show::count(limit.calls_per_second),
                limit.resource,
                limit.arithmetic,
                limit.alert_at,
            );
        }
        None => text.push_str("- Limit: not known, there was no load to reckon it from.\n"),
    }
    match report.bottleneck {
        None => text.push_str("- Bottleneck: none.\n"),
        Some(name) => {
            let _ = writeln!(
                text,
                "- Bottleneck: `{name}`. First action: {}.",
                report.first_action.unwrap_or_default()
            );
            for finding in report.findings.iter().take(1) {
                for line in &finding.evidence {
                    let _ = writeln!(text, "  - {line}");
                }
            }
        }
    }
    if let Some(checks) = settled {
        for check in checks {
            let mark = if check.ok { "well" } else { "NOT WELL" };
            let _ = writeln!(
                text,
                "- After the change, {}: {mark} ({}).",
                check.name, check.detail
            );
        }
    }
    text.push_str("\n| Signal | Service | Value | Alert threshold | Headroom |\n| --- | --- | ---: | ---: | ---: |\n");
    for reading in &report.signals {
        let _ = writeln!(
            text,
            "| `{}`{} | {} | {} | {} | {} |",
            reading.signal,
            if reading.breached { " **over**" } else { "" },
            reading.service.map_or("-", crate::observe::Service::name),
            show::in_unit(reading.value, reading.unit),
            show::in_unit(reading.threshold, reading.unit),
            reading.headroom.map_or_else(|| "-".to_owned(), show::share),
        );
    }
    text.push('\n');
    text
}
