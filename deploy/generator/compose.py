"""Compose's environment, and the template of its .env."""

import re
import textwrap

from .settings import ROLES, about, between, default

# Names of Compose's own, where one name means different things in different services (operations §7).
RENAMED = {
    ("sts", "ISSUER_URL"): "${CARACAL_STS_ISSUER_URL:-http://localhost:8080}",
    ("gateway", "ISSUER_URL"): "${CARACAL_STS_ISSUER_URL:-http://localhost:8080}",
    ("coordinator", "ISSUER_URL"): "${CARACAL_STS_ISSUER_URL:-http://localhost:8080}",
    ("gateway", "TRUST_PROXY"): "${CARACAL_GATEWAY_TRUST_PROXY:-}",
    ("gateway", "STREAM_IDLE_TIMEOUT"): "${CARACAL_GATEWAY_STREAM_IDLE_TIMEOUT:-}",
}
# The containers listen where the others look for them, and write where the volume is.
FIXED = set(
    """
    HOST PORT API_PORT STS_PORT GATEWAY_PORT COORDINATOR_PORT AUDIT_PORT AUDIT_REPLAY_DIR CARACAL_HOME
    AUDIT_EXPORT_TMP_DIR CARACAL_STORE_DURABILITY WORKER_ID
    """.split()
)
# What only Compose reads: name, default, what it is.
OWN = [
    ("CARACAL_IMAGE", "caracal:v0.1.0", "The image; `up --build` makes it."),
    ("CARACAL_POSTGRES_IMAGE", "docker.io/library/postgres:18", ""),
    ("CARACAL_REDIS_IMAGE", "docker.io/library/redis:8", ""),
    ("CARACAL_SECRETS_DIR", "./secrets", "Where deploy/compose/secrets has put them."),
    ("CARACAL_STS_ISSUER_URL", "http://localhost:8080", "ISSUER_URL of all services: the iss of every mandate. Choose it once."),
    ("CARACAL_GATEWAY_TRUST_PROXY", "", "TRUST_PROXY of the Gateway."),
    ("CARACAL_GATEWAY_STREAM_IDLE_TIMEOUT", "", "STREAM_IDLE_TIMEOUT of the Gateway."),
    ("CARACAL_API_PORT", "3000", "Ports of this machine; only 127.0.0.1 is listened on."),
    ("CARACAL_STS_PORT", "8080", ""),
    ("CARACAL_GATEWAY_PORT", "8081", ""),
    ("CARACAL_AUDIT_PORT", "9090", ""),
    ("CARACAL_COORDINATOR_PORT", "4000", ""),
    ("CARACAL_POSTGRES_PORT", "5432", ""),
    ("CARACAL_REDIS_PORT", "6379", ""),
    ("CARACAL_APP_CPU_LIMIT", "1.0", "API, Coordinator, Audit, migration."),
    ("CARACAL_APP_MEM_LIMIT", "512M", ""),
    ("CARACAL_APP_CPU_RESERVE", "0.1", "Of every service."),
    ("CARACAL_APP_MEM_RESERVE", "128M", ""),
    ("CARACAL_STS_CPU_LIMIT", "2.0", ""),
    ("CARACAL_STS_MEM_LIMIT", "1G", ""),
    ("CARACAL_GATEWAY_CPU_LIMIT", "2.0", ""),
    ("CARACAL_GATEWAY_MEM_LIMIT", "1G", ""),
    ("CARACAL_DB_CPU_LIMIT", "2.0", ""),
    ("CARACAL_DB_MEM_LIMIT", "1G", ""),
    ("CARACAL_DB_MEM_RESERVE", "256M", ""),
    ("CARACAL_REDIS_CPU_LIMIT", "1.0", ""),
    ("CARACAL_REDIS_MEM_LIMIT", "768M", ""),
    ("CARACAL_REDIS_MEM_RESERVE", "128M", ""),
    ("POSTGRES_MAX_CONNECTIONS", "100", "The pools of one replica of each service need 34."),
    ("POSTGRES_SHARED_BUFFERS", "256MB", ""),
    ("POSTGRES_EFFECTIVE_CACHE_SIZE", "768MB", ""),
    ("POSTGRES_WORK_MEM", "8MB", ""),
    ("POSTGRES_MAINTENANCE_WORK_MEM", "64MB", ""),
    ("POSTGRES_LOG_MIN_DURATION_MS", "500", ""),
    ("REDIS_MAXMEMORY", "512mb", "Below CARACAL_REDIS_MEM_LIMIT."),
]


def files(directory, settings):
    """compose.yaml with its environment, and env.template."""
    compose = (directory / "compose.yaml").read_text()
    for role in ROLES:
        compose = between(compose, f"settings of {role}", environment(compose, settings, role))
    names = sorted(set(re.findall(r"(?<=/run/secrets/)\w+", compose)) | {"caracalDbPassword"})
    body = "\n".join(f"  {name}: {{ file: \"${{CARACAL_SECRETS_DIR:-./secrets}}/{name}\" }}" for name in names)
    compose = between(compose, "files of secrets", body)
    return {directory / "compose.yaml": compose, directory / "env.template": template(settings)}


def by_hand(compose, role):
    """Names that the file itself sets for a service."""
    start = compose.index(f"\n  {role}:\n")
    block = compose[start : compose.index(f"# settings of {role}\n")]
    return set(re.findall(r"^ {6}(\w+?)(?:_FILE)?:", block[block.index("environment:") :], re.M))


def environment(compose, settings, role):
    """The lines that pass the settings of a service on."""
    own = by_hand(compose, role) | FIXED | WITH_FILE
    passed = [one["name"] for one in settings.of(role) if one["name"] not in own]
    return "\n".join(
        f"      {name}: {RENAMED.get((role, name), f'${{{name}:-}}')}" for name in sorted(passed)
    )


def template(settings):
    """Everything that can be set, commented out."""
    lines = [
        "# Copy to .env beside compose.yaml, and uncomment what you change. `caracal config check --env-file`",
        "# says whether it holds. Secrets are files: see deploy/compose/secrets.",
        "",
        "# Compose",
    ]
    for name, usual, what in OWN:
        lines += [f"# {what}"] if what else []
        lines += [f"#{name}={usual}"]
    passed = {}
    renamed = {name for _, name in RENAMED} - {"TRUST_PROXY"}
    for role in ROLES:
        for one in settings.of(role):
            if one["name"] not in FIXED | renamed | {"STS_URL", "DATABASE_URL", "REDIS_URL"}:
                passed[one["name"]] = one
    lines += ["", "# Settings of the services"]
    for name in sorted(passed):
        one = passed[name]
        if one["secret"] and name in WITH_FILE:
            continue
        having = [role for role in ROLES if role in one["services"]]
        who = "all services" if having == ROLES else ", ".join(having)
        lines += [f"# {line}" for line in textwrap.wrap(f"({who}) {about(one)}", 106)]
        # Where the services differ, unset is right.
        defaults = {default(one, role) for role in having}
        lines += [f"#{name}={defaults.pop() if len(defaults) == 1 else ''}"]
    return "\n".join(lines) + "\n"


# Secrets that are files of the deployment, not variables.
WITH_FILE = set(
    """
    AUDIT_HMAC_KEY STREAMS_HMAC_KEY GATEWAY_STS_HMAC_KEY SECRET_STORE_KEK IDEMPOTENCY_HMAC_KEY
    CARACAL_ADMIN_TOKEN CARACAL_COORDINATOR_TOKEN METRICS_BEARER STS_ADMIN_TOKEN AUDIT_ADMIN_TOKEN
    """.split()
)
