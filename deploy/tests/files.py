"""What needs no Go: the container file, what is generated, names of metrics, runbooks."""

import json
import os
import pathlib
import re
import subprocess
import sys
import unittest

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = DEPLOY.parent
FILES = DEPLOY / "helm/caracal/files"
sys.path.insert(0, str(DEPLOY))

from generator.dashboards import Catalogue, names_in  # noqa: E402

METRICS = DEPLOY / "generator/metrics.json"
BINARY = os.environ.get("CARACAL_BINARY")
OWNERS = "api|sts|gateway|audit|db|redis|http|log|outbox|secret_backend|idempotency"


def catalogue():
    return Catalogue(json.loads(METRICS.read_text()))


def expressions():
    """Where a metric is named, and the names."""
    for path in sorted((FILES / "dashboards").glob("*.json")):
        for one in json.loads(path.read_text())["panels"]:
            for panel in [one, *one.get("panels", [])]:
                for target in panel.get("targets", []):
                    yield f"{path.name}, {panel['title']}", target["expr"]
    for rule in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]
    for path in [FILES / "prometheus-adapter.yaml", DEPLOY / "helm/caracal/templates/autoscaling.yaml"]:
        for name in re.findall(r"\bcaracal_[a-z_]+\b", path.read_text()):
            yield path.name, name


class Container(unittest.TestCase):
    def test_hadolint_has_nothing_to_say(self):
        done = subprocess.run(["hadolint", DEPLOY / "container/Containerfile"], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_it_ends_as_an_ordinary_user_without_a_shell(self):
        text = (DEPLOY / "container/Containerfile").read_text()
        last = text[text.rindex("\nFROM ") :]
        self.assertIn("distroless", last.splitlines()[1])
        self.assertIn("\nUSER 65532:65532\n", last)
        self.assertNotIn("\nRUN ", last)
        for line in re.findall(r"^(?:ENTRYPOINT|CMD) .*$", last, re.M):
            self.assertRegex(line, r"^\w+ \[")


class Generated(unittest.TestCase):
    def checked(self, *more):
        words = [sys.executable, DEPLOY / "generate", "--check", *more]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_nothing_is_stale(self):
        self.checked()

    @unittest.skipUnless(BINARY, "CARACAL_BINARY is not set, so settings are not compared with the code")
    def test_settings_are_those_of_the_binary(self):
        self.checked("--binary", BINARY, "--only", "settings")

    @unittest.skipUnless(BINARY, "CARACAL_BINARY is not set, so metrics are not compared with the code")
    def test_metrics_are_those_of_the_binary(self):
        told = subprocess.run([BINARY, "metrics", "catalogue", "--json"], capture_output=True, check=False)
        if told.returncode != 0:
            self.skipTest("this binary does not tell its metrics")
        self.checked("--binary", BINARY, "--only", "metrics")


class Metrics(unittest.TestCase):
    def test_no_panel_alert_or_autoscaler_names_a_metric_that_does_not_exist(self):
        known = set(catalogue().metrics)
        self.assertGreater(len(known), 100)
        unknown = {where: sorted(names - known) for where, expr in expressions() if (names := names_in(expr)) - known}
        # prometheus-adapter selects by a pattern.
        unknown.pop("prometheus-adapter.yaml", None)
        self.assertEqual(unknown, {})

    def test_no_page_names_a_metric_that_does_not_exist(self):
        known = set(catalogue().metrics)
        for page in sorted((REPOSITORY / "docs").rglob("*.md")):
            with self.subTest(page.name):
                names = set(re.findall(rf"`(caracal_(?:{OWNERS})_[a-z0-9_]+[a-z0-9])[`{{]", page.read_text()))
                self.assertEqual(sorted(names - known), [])

    def test_every_metric_of_a_service_is_on_its_dashboard(self):
        told = catalogue()
        for role in ("api", "sts", "gateway", "audit", "coordinator"):
            text = (FILES / f"dashboards/{role}.json").read_text()
            self.assertEqual([name for name in told.of(role) if name not in text], [], role)

    def test_dashboards_have_the_form_that_grafana_reads(self):
        for path in (FILES / "dashboards").glob("*.json"):
            board = json.loads(path.read_text())
            panels = [panel for one in board["panels"] for panel in [one, *one.get("panels", [])]]
            self.assertEqual(len({panel["id"] for panel in panels}), len(panels), path.name)
            self.assertLessEqual(len(board["uid"]), 40)
            for panel in panels:
                self.assertIn(panel["type"], ("row", "timeseries"))
                self.assertTrue(panel["type"] == "row" or panel["targets"], panel["title"])


class Runbooks(unittest.TestCase):
    def test_every_alert_has_a_section_and_every_section_an_alert(self):
        rules = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"][0]["rules"]
        page = (REPOSITORY / "docs/operations/alerts.md").read_text()
        sections = re.findall(r"^## (Caracal\w+)$", page, re.M)
        self.assertEqual(sorted(sections), sorted(rule["alert"] for rule in rules))
        for rule in rules:
            with self.subTest(rule["alert"]):
                self.assertTrue(rule["annotations"]["runbook_url"].endswith(f"/operations/alerts/#{rule['alert'].lower()}"))
                self.assertEqual(set(rule["labels"]), {"severity", "component"})

    def test_a_threshold_ends_its_expression_and_is_a_value_of_the_chart(self):
        values = yaml.safe_load((DEPLOY / "helm/caracal/values.yaml").read_text())["alertRules"]
        for rule in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"][0]["rules"]:
            key = rule["annotations"].get("threshold")
            if key:
                with self.subTest(rule["alert"]):
                    self.assertEqual(float(rule["expr"].split()[-1]), float(values[key]))
