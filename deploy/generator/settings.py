"""The settings of the services, as `caracal config explain --json` tells them."""

import pathlib
import re
import textwrap

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
CHART = DEPLOY / "helm/caracal"
SETTINGS = CHART / "files/settings.json"
METRICS = DEPLOY / "generator/metrics.json"
ROLES = ["api", "sts", "gateway", "audit", "coordinator"]


def normalised(told):
    """What the binary tells, as the chart reads it: one entry for each name, with the services that have it."""
    found = {}
    for one in told["settings"]:
        entry = found.setdefault(
            one["name"],
            {key: one[key] for key in ("name", "type", "min", "max", "unit", "choices", "alias_of", "help")}
            # A secret is what can be given as a file.
            | {"secret": one["file"], "services": [], "default": {}},
        )
        entry["services"].append(one["service"])
        entry["default"][one["service"]] = one["default"]
    return [found[name] for name in sorted(found)]


class Settings:
    """Declarations by name, in order of their names."""

    def __init__(self, declared):
        self.declared = sorted(declared, key=lambda one: one["name"])

    def of(self, role):
        """Those that a service has."""
        return [one for one in self.declared if role in one["services"]]


def default(one, role):
    """Used when it is unset; empty when there is none."""
    text = one["default"].get(role)
    return "" if text is None else text


def about(one):
    """Type, bounds and what it does, in one line."""
    if one["alias_of"]:
        return f"Another name of {one['alias_of']}."
    kind = f"{one['type']} in {one['unit']}" if one["unit"] else one["type"]
    if one["choices"]:
        kind = " or ".join([", ".join(one["choices"][:-1]), one["choices"][-1]])
    if one["min"] is not None and one["max"] is not None:
        kind += f" from {one['min']} to {one['max']}"
    return f"{kind}. {one['help']}" + ("" if one["help"].endswith(".") else ".")


def commented(one, role, indent, width=108):
    """A comment that shows name and default, and says what the setting does."""
    pad = " " * indent
    lines = textwrap.wrap(about(one), width - indent - 4)
    text = f"{one['name']}: {default(one, role)}".rstrip()
    return "\n".join([f"{pad}# {text}"] + [f"{pad}#   {line}" for line in lines])


def between(text, name, body):
    """`text` with what stands below the line `# NAME` up to the line `# end of NAME` replaced."""
    pattern = re.compile(rf"^( *)# {re.escape(name)}\n(?:.*?^ *# end of {re.escape(name)}\n)?", re.M | re.S)
    if not pattern.search(text):
        raise SystemExit(f"there is no line `# {name}`")
    body = body.rstrip("\n") + "\n" if body else ""
    return pattern.sub(lambda at: f"{at[1]}# {name}\n{body}{at[1]}# end of {name}\n", text, count=1)
