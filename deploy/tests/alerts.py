"""The alert rules: promtool checks and tests them, and every rule has tests both ways. It reads what panels ask, too."""

import json
import pathlib
import subprocess
import tempfile
import unittest

import yaml

from .files import expressions

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
RULES = DEPLOY / "helm/caracal/files/alerts.yaml"
CASES = DEPLOY / "tests/alerts.yaml"


def promtool(*words):
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, cwd=CASES.parent, check=False)
    return done.returncode, done.stdout + done.stderr


class Alerts(unittest.TestCase):
    def test_promtool_takes_the_rules(self):
        code, said = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
        self.assertEqual(code, 0, said)

    def test_promtool_finds_them_firing_and_not_firing_as_expected(self):
        code, said = promtool("test", "rules", CASES)
        self.assertEqual(code, 0, said)

    def test_every_rule_is_tested_firing_and_not_firing(self):
        rules = {rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
        fires, quiet = set(), set()
        for case in yaml.safe_load(CASES.read_text())["tests"]:
            for one in case["alert_rule_test"]:
                (fires if one.get("exp_alerts") else quiet).add(one["alertname"])
        self.assertEqual(fires, rules)
        self.assertEqual(quiet, rules)

    def test_every_panel_asks_what_prometheus_understands(self):
        asked = sorted({expr for where, expr in expressions() if ".json" in where})
        self.assertGreater(len(asked), 100)
        rules = [
            {"record": f"panel:{n}", "expr": expr.replace("$__rate_interval", "5m").replace("$instance", ".*")}
            for n, expr in enumerate(asked)
        ]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            json.dump({"groups": [{"name": "panels", "rules": rules}]}, file)
            file.flush()
            code, said = promtool("check", "rules", file.name)
        self.assertEqual(code, 0, said)
