"""Comments and schema of the chart's values."""

import json

from .settings import ROLES, about, between, commented

# Settings that the chart derives from other values, or that only make sense elsewhere.
OWNED = set(
    """
    DATABASE_URL REDIS_URL CARACAL_MODE HOST PORT API_PORT STS_PORT GATEWAY_PORT COORDINATOR_PORT AUDIT_PORT
    LOG_LEVEL CARACAL_HOME AUDIT_REPLAY_DIR ISSUER_URL STS_URL TLS_CERT_FILE TLS_KEY_FILE DB_POOL_MAX
    DB_MAX_CONNS AGENT_COORDINATOR_SCOPE SESSION_RETENTION_DAYS IDEMPOTENCY_RETENTION_SECONDS
    GENERATED_IDEMPOTENCY_RETENTION_SECONDS IDEMPOTENCY_MAX_RECEIPTS_PER_SCOPE COORDINATOR_BODY_LIMIT_BYTES
    AUDIT_EXPORT_TMP_DIR OTEL_EXPORTER_OTLP_ENDPOINT CARACAL_STORE_DURABILITY WORKER_ID
    AUDIT_HMAC_KEY STREAMS_HMAC_KEY GATEWAY_STS_HMAC_KEY SECRET_STORE_KEK SECRET_STORE_KEK_PREVIOUS
    IDEMPOTENCY_HMAC_KEY IDEMPOTENCY_HMAC_KEY_PREVIOUS CARACAL_ADMIN_TOKEN CARACAL_COORDINATOR_TOKEN
    METRICS_BEARER STS_ADMIN_TOKEN AUDIT_ADMIN_TOKEN
    """.split()
)


def plain(settings, role):
    return [one for one in settings.of(role) if one["name"] not in OWNED and not one["secret"]]


def secret(settings, role):
    return [one for one in settings.of(role) if one["name"] not in OWNED and one["secret"]]


def files(chart, settings):
    """values.yaml with its comments, and values.schema.json."""
    values = (chart / "values.yaml").read_text()
    for role in ROLES:
        body = "\n".join(commented(one, role, 4) for one in plain(settings, role))
        values = between(values, f"settings of {role}", body)
    schema = json.dumps(Schema(settings).values(), indent=1) + "\n"
    return {chart / "values.yaml": values, chart / "values.schema.json": schema}


def whole(least=None, greatest=None):
    """A whole number; as text it is not measured here, but by the service."""
    number = {"type": "integer"}
    if least is not None:
        number["minimum"] = int(least)
    if greatest is not None:
        number["maximum"] = int(greatest)
    return number


def one_setting(one):
    """The schema of a setting."""
    kind, bounds = one["type"], (one["min"], one["max"])
    if kind == "boolean":
        words = "^(?i:1|0|t|f|true|false|yes|no|on|off)$"
        schema = {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "pattern": words}]}
    elif kind == "integer" or (kind == "duration" and one["unit"]):
        schema = {"anyOf": [whole(*bounds), {"type": "string", "pattern": "^[0-9]+$"}]}
    elif kind == "duration":
        schema = {"type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$"}
    elif kind == "list":
        schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    elif kind == "choice":
        schema = {"enum": one["choices"]}
    else:
        schema = {"type": ["string", "number", "boolean"]}
    return schema | {"description": about(one)}


def strict(properties, **more):
    """An object that has nothing else."""
    return {"type": "object", "additionalProperties": False, "properties": properties} | more


def known(settings):
    """An object of these settings."""
    return strict({one["name"]: {"$ref": f"#/definitions/{one['name']}"} for one in settings})


TEXT, BOOL, ANY, LIST = {"type": "string"}, {"type": "boolean"}, {"type": "object"}, {"type": "array"}
PORT = whole(1, 65535)
COUNT = whole(0)
# `--set` gives fractions as text.
NUMBER = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?$"}]}
TEXTS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
FROM = strict({"secretName": TEXT, "key": TEXT})
INGRESS = strict(
    {"enabled": BOOL, "className": TEXT, "host": TEXT, "tlsSecretName": TEXT, "annotations": TEXTS}
)


class Schema:
    """values.schema.json."""

    def __init__(self, settings):
        self.settings = settings

    def values(self):
        definitions = {name: one_setting(one) for name, one in self.everywhere().items()}
        return {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": "Values of the chart caracal",
            "definitions": definitions,
        } | strict(
            {
                "global": self.all_services(),
                "serviceAccount": strict(
                    {"create": BOOL, "name": TEXT, "automountToken": BOOL, "annotations": TEXTS}
                ),
                "secrets": self.secrets(),
                "migrations": strict(
                    {
                        "enabled": BOOL,
                        "backoffLimit": COUNT,
                        "activeDeadlineSeconds": whole(1),
                        "resources": ANY,
                    }
                ),
                "networkPolicy": strict(
                    {
                        "enabled": BOOL,
                        "extraIngress": LIST,
                        "allowOpenHttps": BOOL,
                        "allowOpenDns": BOOL,
                        "dnsEgress": LIST,
                        "extraEgress": LIST,
                    }
                ),
                "replayPersistence": strict(
                    {
                        "enabled": BOOL,
                        "storageClassName": TEXT,
                        "accessModes": {"type": "array", "items": TEXT, "minItems": 1},
                        "size": TEXT,
                    }
                ),
                "serviceMonitor": strict({"enabled": BOOL, "interval": TEXT, "labels": TEXTS}),
                "alertRules": self.alert_rules(),
                "dashboards": strict({"enabled": BOOL, "labels": TEXTS}),
                "hpaSignals": strict(
                    {
                        "enabled": BOOL,
                        "stsExchangesInFlight": whole(1),
                        "gatewayRequestsInFlight": whole(1),
                        "auditConsumerLag": whole(1),
                    }
                ),
                "scheduling": strict(
                    {
                        "priorityClassName": TEXT,
                        "terminationGracePeriodSeconds": whole(1),
                        "preStopSleepSeconds": whole(0),
                        "affinity": ANY,
                        "topologySpreadConstraints": LIST,
                    }
                ),
                "services": strict({role: self.service(role) for role in ROLES} | {"web": ANY}),
                "control": strict({"enabled": BOOL, "audience": TEXT}),
                "ingress": strict(
                    {name: INGRESS for name in ["sts", "gateway", "api", "coordinator", "web"]}
                ),
            }
        )

    def everywhere(self):
        """The plain settings of all services."""
        found = {one["name"]: one for role in ROLES for one in plain(self.settings, role)}
        return {name: found[name] for name in sorted(found)}

    def all_services(self):
        return strict(
            {
                "registry": TEXT,
                "tag": TEXT,
                "imagePullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
                "imagePullSecrets": LIST,
                "mode": {"enum": ["dev", "rc", "stable"]},
                "evaluation": BOOL,
                "listenAddress": TEXT,
                "otelExporterOtlpEndpoint": TEXT,
                "logLevel": TEXT,
                "podLabels": TEXTS,
                "podAnnotations": TEXTS,
                "settings": known(self.everywhere().values()),
            }
        )

    @staticmethod
    def secrets():
        return strict(
            {
                "create": BOOL,
                "runtimeSecretName": TEXT | {"minLength": 1},
                "kekRotation": BOOL,
                "plaintext": TEXTS,
                "database": strict(
                    {
                        "user": TEXT,
                        "passwordKey": TEXT,
                        "host": TEXT,
                        "port": PORT,
                        "name": TEXT,
                        "sslMode": {
                            "enum": ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
                        },
                        "roles": BOOL,
                        "maxConnections": COUNT,
                        "otherConnections": COUNT,
                    }
                ),
                "authDatabase": strict({"name": TEXT}),
                "redis": strict({"passwordKey": TEXT, "host": TEXT, "port": PORT, "database": COUNT}),
                "stsAdminToken": FROM,
                "auditAdminToken": FROM,
                "metricsBearer": FROM,
                "idempotency": strict(
                    {
                        "retentionSeconds": whole(3600),
                        "generatedRetentionSeconds": whole(3600),
                        "maxReceiptsPerScope": whole(100),
                        "bodyLimitBytes": whole(1024),
                        "keyRotation": BOOL,
                    }
                ),
            }
        )

    @staticmethod
    def alert_rules():
        thresholds = """
            stsMaxPolicyAgeSeconds stsProviderRefreshErrors stsProviderCircuitOpen auditDlqSize auditDlqGrowth
            auditConsumerLag auditReplayOldestAgeSeconds auditExportBacklogHours apiOutboxDead
            apiOutboxPendingAgeSeconds gatewayStsExchangeErrors gatewayStsCircuitOpen
            gatewayRevocationSnapshotFresh gatewayRevocationPropagationSeconds gatewayRevocationReloadErrors
            dbPoolInUseRatio readinessFlapsPer10m
        """.split()
        other = {"enabled": BOOL, "labels": TEXTS, "runbookUrlPrefix": TEXT}
        return strict(other | {name: NUMBER for name in thresholds})

    def service(self, role):
        fixed = {"sts": 8080, "gateway": 8081, "audit": 9090}
        own = {
            "sts": {"issuerUrl": {"type": "string", "pattern": "^(https?://[^@?#]+)?$"}},
            "gateway": {"tlsSecretName": TEXT, "tlsServerName": TEXT},
            "audit": {"exportScratchSizeLimit": TEXT},
            "coordinator": {"requiredScope": TEXT | {"minLength": 1}, "sessionRetentionDays": whole(1, 36500)},
        }
        secrets = {
            one["name"]: FROM | {"required": ["key"], "description": about(one)}
            for one in secret(self.settings, role)
        }
        return strict(
            {
                "enabled": BOOL,
                "replicas": whole(1),
                "image": TEXT,
                "port": {"const": fixed[role]} if role in fixed else PORT,
                "internalUrl": TEXT,
                "dbPoolMax": {"type": ["integer", "null"], "minimum": 1, "maximum": 10000},
                "settings": known(plain(self.settings, role)),
                "secretSettings": strict(secrets),
                "extraEnv": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                "extraEnvFrom": LIST,
                "extraVolumes": LIST,
                "extraVolumeMounts": LIST,
                "resources": ANY,
                "pdb": strict({"enabled": BOOL, "minAvailable": {"type": ["string", "integer"]}}),
                "hpa": strict(
                    {
                        "enabled": BOOL,
                        "minReplicas": whole(1),
                        "maxReplicas": whole(1),
                        "cpuUtilization": whole(1, 100),
                        "memoryUtilization": whole(1, 100),
                    }
                ),
            }
            | own.get(role, {})
        )
