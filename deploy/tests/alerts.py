"""The alert rules: promtool checks and tests them; every rule has tests both ways, and a runbook."""

import pathlib
import re
import subprocess
import unittest

import yaml

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


if __name__ == "__main__":
    unittest.main()
