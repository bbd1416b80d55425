"""Whether Kubernetes would take an object: its own schemas come from a package, the operator's from its module."""

import functools
import os
import pathlib

import jsonschema
import kubernetes_validate
import yaml

# The oldest that the chart takes, and the newest that the package knows.
KUBERNETES = ["1.30", "1.37"]
CRDS = {
    "ServiceMonitor": "monitoring.coreos.com_servicemonitors.yaml",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules.yaml",
}


def complaints(one):
    """What is wrong with an object; unknown fields are wrong."""
    if one["kind"] in CRDS:
        errors = jsonschema.Draft7Validator(operator_schema(one["kind"])).iter_errors(one)
        return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in errors]
    found = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{version}: {error}")
    return found


@functools.cache
def operator_schema(kind):
    text = (pathlib.Path(os.environ["CARACAL_CRDS"]) / CRDS[kind]).read_text()
    (version,) = [one for one in yaml.safe_load(text)["spec"]["versions"] if one["name"] == "v1"]
    return closed(version["schema"]["openAPIV3Schema"])


def closed(schema):
    """The same schema, refusing fields that it does not name, as the API server's strict validation does."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    schema = {key: closed(value) for key, value in schema.items() if key != "format"}
    names = schema.get("properties")
    if isinstance(names, dict) and "type" in schema and set(names) != {"apiVersion", "kind", "metadata", "spec", "status"}:
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    return schema
