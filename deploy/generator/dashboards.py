"""Grafana dashboards from the catalogue of metrics: one for each service, and one for capacity.

A panel names metrics, and what is drawn follows from their types, so no panel can show what nothing
exposes. What no panel names is drawn at the end.
"""

import json
import re

ROLES = {"api": "API", "sts": "STS", "gateway": "Gateway", "audit": "Audit", "coordinator": "Coordinator"}
# Titles, and the metrics that belong together under them. A name that the catalogue does not have is an error.
PANELS = {
    "sts": {
        "Mints by outcome": ["caracal_sts_mints_total"],
        "In flight": ["caracal_sts_exchanges_in_flight"],
        "Stages of an exchange": ["caracal_sts_stage_duration_seconds"],
        "Policy age": ["caracal_sts_opa_max_policy_age_seconds", "caracal_sts_opa_poll_interval_seconds"],
        "Questions to policy": ["caracal_sts_opa_eval_total", "caracal_sts_opa_eval_errors_total"],
        "Policy bundles": ["caracal_sts_opa_compile_total", "caracal_sts_opa_compile_errors_total"],
        "Evidence that waits": ["caracal_sts_audit_replay_oldest_age_seconds"],
        "Evidence lost": ["caracal_sts_audit_dropped_total", "caracal_sts_audit_sink_errors_total"],
        "Provider tokens": [
            "caracal_sts_provider_refresh_leased_total",
            "caracal_sts_provider_refresh_errors_total",
            "caracal_sts_provider_circuit_open_total",
        ],
    },
    "gateway": {
        "Requests": [
            "caracal_gateway_requests_total",
            "caracal_gateway_requests_allowed_total",
            "caracal_gateway_requests_denied_total",
        ],
        "To the head of the response": ["caracal_gateway_request_duration_seconds"],
        "Stages of a request": ["caracal_gateway_stage_duration_seconds"],
        "In flight": ["caracal_gateway_requests_in_flight", "caracal_gateway_active_streams"],
        "Upstreams": ["caracal_gateway_upstream_duration_seconds"],
        "Upstream errors": ["caracal_gateway_upstream_errors_total"],
        "Exchanges with the STS": ["caracal_gateway_sts_exchange_errors_total", "caracal_gateway_sts_circuit_fast_fail_total"],
        "Circuit": ["caracal_gateway_sts_circuit_open"],
        "Revocations: fresh": ["caracal_gateway_revocation_snapshot_fresh"],
        "Revocations: age and lag": [
            "caracal_gateway_revocation_snapshot_age_seconds",
            "caracal_gateway_revocation_propagation_seconds",
        ],
        "Denials": [
            "caracal_gateway_denials_missing_auth_total",
            "caracal_gateway_denials_bad_bearer_total",
            "caracal_gateway_denials_expiring_total",
            "caracal_gateway_denials_bad_routing_total",
            "caracal_gateway_denials_path_traversal_total",
            "caracal_gateway_denials_signature_total",
            "caracal_gateway_denials_jti_replay_total",
            "caracal_gateway_denials_revoked_total",
            "caracal_gateway_denials_revocation_stale_total",
        ],
        "Evidence that waits": ["caracal_gateway_audit_replay_oldest_age_seconds"],
        "Evidence lost": ["caracal_gateway_audit_dropped_total", "caracal_gateway_audit_sink_errors_total"],
    },
    "audit": {
        "Events appended": ["caracal_audit_inserts_total"],
        "Not in the ledger yet": [
            "caracal_audit_consumer_lag",
            "caracal_audit_consumer_lag_pending",
            "caracal_audit_consumer_lag_undelivered",
        ],
        "Oldest that waits": ["caracal_audit_oldest_unprocessed_seconds", "caracal_audit_consumer_pel_oldest_seconds"],
        "Events in a batch": ["caracal_audit_ingest_batch_size"],
        "Stages of a batch": ["caracal_audit_stage_duration_seconds"],
        "Dead letters": ["caracal_audit_dlq_size", "caracal_audit_dlq_dropped_total"],
        "Tampering": [
            "caracal_audit_tamper_mismatch_total",
            "caracal_audit_tamper_chain_breaks_total",
            "caracal_audit_tamper_hmac_failures_total",
        ],
        "Checkpoints": ["caracal_audit_checkpoints_total", "caracal_audit_checkpoint_errors_total", "caracal_audit_unproven_key_changes_total", "caracal_audit_signs_checkpoints"],
        "Export": ["caracal_audit_export_backlog_hours"],
        "Leaders": ["caracal_audit_is_export_leader", "caracal_audit_is_retention_leader"],
    },
    "api": {
        "Changes not announced": ["caracal_api_outbox_pending_total", "caracal_api_outbox_dead_total"],
        "Oldest change that waits": ["caracal_api_outbox_oldest_pending_age_seconds"],
        "Records of administrators": [
            "caracal_api_admin_audit_appended_total",
            "caracal_api_admin_audit_lost_total",
            "caracal_api_admin_audit_refused_total",
        ],
        "Notifications": [
            "caracal_api_notifications_delivered_total",
            "caracal_api_notifications_failed_total",
            "caracal_api_notifications_abandoned_total",
        ],
    },
    "coordinator": {
        "Outbox": ["caracal_outbox_total"],
        "Idempotency": ["caracal_idempotency_requests_total"],
        "Sweepers": ["caracal_ttl_sweeper_runs_total", "caracal_service_lease_sweeper_runs_total"],
    },
}
COMMON = {
    "Requests": ["caracal_http_request_duration_seconds"],
    "Database connections in use": ["caracal_db_pool_in_use_ratio"],
    "Waits for a connection": ["caracal_db_pool_wait_seconds"],
    "Redis": ["caracal_redis_command_duration_seconds"],
    "Ready": ["caracal_ready"],
    "Memory": ["process_resident_memory_bytes"],
    "Processor": ["process_cpu_seconds_total"],
}
UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit"}


def names_in(expression):
    """The metrics that an expression reads, by the names of their families."""
    found = re.findall(r"\b(?:caracal|process)_[a-z0-9_]+\b", expression)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


class Catalogue:
    """The metrics and signals that the binary tells of."""

    def __init__(self, told):
        self.metrics = {one["name"]: one for one in told["metrics"]}
        self.signals = told["signals"]

    def of(self, role):
        return [name for name, one in self.metrics.items() if role in one["services"]]

    def get(self, name):
        if name not in self.metrics:
            raise SystemExit(f"a panel shows {name}, which no service exposes")
        return self.metrics[name]


def queries(metric, match):
    """What is drawn of a metric: the rate of a counter, the worst of a gauge, quantiles of a histogram."""
    name = metric["name"]
    own = [label for label in metric["labels"] if label != "service"]
    legend = " ".join(f"{{{{{label}}}}}" for label in own)
    by = ", ".join(own)
    short = re.sub(r"^caracal_(api|sts|gateway|audit|coordinator)_|^caracal_|_total$", "", name)
    if metric["type"] == "counter":
        return [(f"sum by ({by}) (rate({name}{{{match}}}[$__rate_interval]))", legend or short)]
    if metric["type"] == "histogram":
        by = ", ".join(["le", *own])
        return [
            (
                f"histogram_quantile({quantile}, sum by ({by}) (rate({name}_bucket{{{match}}}[$__rate_interval])))",
                f"p{quantile * 100:g} {legend}".strip(),
            )
            for quantile in (0.5, 0.99)
        ]
    return [(f"max by ({', '.join(['instance', *own])}) ({name}{{{match}}})", f"{legend or short} {{{{instance}}}}")]


def panel(title, metrics, match, description="", threshold=None):
    """A graph of these metrics."""
    targets = [query for metric in metrics for query in queries(metric, match)]
    kinds = {metric["type"] for metric in metrics}
    unit = UNITS.get(metrics[0]["unit"], "short")
    if "counter" in kinds:
        unit = "percentunit" if metrics[0]["unit"] == "seconds" else "cps"
    steps = [{"color": "green", "value": None}]
    if threshold is not None:
        steps.append({"color": "red", "value": threshold})
    return {
        "type": "timeseries",
        "title": title,
        "description": description or "\n\n".join(f"{one['name']}: {one['help']}." for one in metrics),
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "targets": [
            {"refId": chr(65 + n % 26) + (str(n // 26) if n >= 26 else ""), "expr": expr, "legendFormat": legend}
            for n, (expr, legend) in enumerate(targets)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": {"thresholdsStyle": {"mode": "off" if threshold is None else "line"}},
            },
            "overrides": [],
        },
    }


def dashboard(uid, title, rows):
    """Rows of (title, collapsed, panels) as a dashboard; three panels beside each other."""
    placed, y, ident = [], 0, 0
    for heading, collapsed, panels in rows:
        if not panels:
            continue
        ident += 1
        row = {"type": "row", "id": ident, "title": heading, "collapsed": collapsed, "panels": []}
        row["gridPos"] = {"x": 0, "y": y, "w": 24, "h": 1}
        placed.append(row)
        y += 1
        for n, one in enumerate(panels):
            ident += 1
            one |= {"id": ident, "gridPos": {"x": n % 3 * 8, "y": y + n // 3 * 7, "w": 8, "h": 7}}
        y += (len(panels) + 2) // 3 * 7
        (row["panels"] if collapsed else placed).extend(panels)
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    instance = {
        "name": "instance",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": "label_values(caracal_ready, instance)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": uid,
        "title": title,
        "tags": ["caracal"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [source, instance]},
        "links": [{"type": "dashboards", "title": "Caracal", "tags": ["caracal"], "asDropdown": True}],
        "panels": placed,
    }


def of_service(catalogue, role):
    own, shared = PANELS[role], COMMON
    match = 'instance=~"$instance"'
    both = f'{match}, service=~".*{role}"'

    def drawn(title, names):
        metrics = [catalogue.get(name) for name in names]
        one_of_many = all(len(metric["services"]) > 1 for metric in metrics)
        return panel(title, metrics, both if one_of_many else match)

    named = {name for names in [*own.values(), *shared.values()] for name in names}
    rest = [name for name in catalogue.of(role) if name not in named]
    return dashboard(
        f"caracal-{role}",
        f"Caracal: {ROLES[role]}",
        [
            (ROLES[role], False, [drawn(*one) for one in own.items()]),
            ("Process and stores", False, [drawn(*one) for one in shared.items()]),
            ("Everything else", True, [drawn(name, [name]) for name in rest]),
        ],
    )


def of_capacity(catalogue):
    """The signals, each with its threshold and the first action."""
    shown, panels = set(), []
    for signal in catalogue.signals:
        # A signal may be one series of its metric: `name{label="value"}`.
        name, _, series = signal["metric"].rstrip("}").partition("{")
        if signal["metric"] in shown:
            continue
        shown.add(signal["metric"])
        match = ", ".join(filter(None, ['instance=~"$instance"', series]))
        text = f"Over {signal['comparison']} {signal['threshold']:g} for {signal['for_seconds']} s: {signal['first_action']}."
        title = signal["signal"].replace("_", " ").capitalize()
        panels.append(panel(title, [catalogue.get(name)], match, text, signal["threshold"]))
    load = {
        "Governed calls": ["caracal_gateway_requests_allowed_total"],
        "Mints": ["caracal_sts_mints_total"],
        "Exchanges in flight": ["caracal_sts_exchanges_in_flight"],
        "Requests in flight": ["caracal_gateway_requests_in_flight"],
        "Events into the ledger": ["caracal_audit_inserts_total"],
        "Redis": ["caracal_redis_command_duration_seconds"],
    }
    match = 'instance=~"$instance"'
    drawn = [panel(title, [catalogue.get(name) for name in names], match) for title, names in load.items()]
    rows = [("Signals, and what to do first", False, panels), ("Load", False, drawn)]
    return dashboard("caracal-capacity", "Caracal: capacity", rows)


def files(directory, told):
    catalogue = Catalogue(told)
    boards = {role: of_service(catalogue, role) for role in ROLES} | {"capacity": of_capacity(catalogue)}
    return {directory / f"{name}.json": json.dumps(board, indent=1) + "\n" for name, board in boards.items()}
