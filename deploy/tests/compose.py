"""The Compose file: nothing is dropped, nothing is given to who does not need it."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import compose_spec
import yaml

from .processes import interpolated

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(DEPLOY))

from generator.compose import FIXED, RENAMED, WITH_FILE  # noqa: E402

ROLES = ["api", "sts", "gateway", "audit", "coordinator"]
COMPOSE = DEPLOY / "compose/compose.yaml"


def services():
    return yaml.safe_load(COMPOSE.read_text())["services"]


class Compose(unittest.TestCase):
    def test_it_is_what_the_specification_of_compose_takes(self):
        told = {name: one for name, one in yaml.safe_load(COMPOSE.read_text()).items() if not name.startswith("x-")}
        read = compose_spec.PyCompose.from_json(interpolated(json.dumps(told), {}))
        read.validate()
        read.to_spec()

    def test_every_setting_of_a_service_is_passed_on(self):
        declared = json.loads((DEPLOY / "helm/caracal/files/settings.json").read_text())["settings"]
        for role in ROLES:
            passed = services()[role]["environment"]
            for one in declared:
                name = one["name"]
                if role not in one["services"] or name in FIXED:
                    continue
                with self.subTest(role, name=name):
                    # A secret of the deployment goes as a file to those who need it: see below.
                    self.assertTrue(name in passed or f"{name}_FILE" in passed or name in WITH_FILE)
                    if name in passed and (role, name) not in RENAMED and name != "STS_URL":
                        self.assertEqual(passed[name], f"${{{name}:-}}")

    def test_every_variable_is_in_the_template(self):
        used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
        told = set(re.findall(r"^#(\w+)=", (DEPLOY / "compose/env.template").read_text(), re.M))
        self.assertEqual(used - told, set())
        self.assertEqual(told - used, set())

    def test_every_container_is_confined(self):
        for name, one in services().items():
            with self.subTest(name):
                self.assertEqual(one["cap_drop"], ["ALL"])
                self.assertIn("no-new-privileges:true", one["security_opt"])
                self.assertTrue(one["read_only"])
                self.assertNotIn(one["user"].split(":")[0], ("0", "root"))
                self.assertEqual(one["pids_limit"], 256)
                self.assertEqual(one["stop_grace_period"], "20s")
                self.assertIn("limits", one["deploy"]["resources"])
                for port in one.get("ports", []):
                    self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_the_binary_checks_its_own_health(self):
        for role in ROLES:
            check = services()[role]["healthcheck"]
            self.assertEqual(check["test"], ["CMD", "/usr/local/bin/caracal", "status", "--ready", role])
            self.assertEqual([check[key] for key in ("interval", "timeout", "retries", "start_interval")], ["5s", "3s", 20, "250ms"])

    def test_a_service_mounts_the_secrets_that_it_reads_and_no_others(self):
        for name, one in services().items():
            read = set(re.findall(r"/run/secrets/(\w+)", json.dumps([one.get("environment"), one.get("command"), one.get("healthcheck")])))
            with self.subTest(name):
                self.assertEqual(read | ({"caracalDbPassword"} if name == "postgres" else set()), set(one["secrets"]))

    def test_the_secrets_are_made_once_and_kept(self):
        wanted = set(yaml.safe_load(COMPOSE.read_text())["secrets"])
        with tempfile.TemporaryDirectory() as scratch:
            made = pathlib.Path(scratch) / "secrets"
            for _ in range(2):
                subprocess.run([DEPLOY / "compose/secrets", made], check=True, stdout=subprocess.DEVNULL)
                found = {path.name: path.read_text() for path in made.iterdir()}
                self.assertEqual(set(found), wanted)
                first = found if _ == 0 else first
                self.assertEqual(found, first)
            self.assertEqual(made.stat().st_mode & 0o777, 0o700)
            self.assertRegex(found["secretStoreKek"], "^[0-9a-f]{64}$")
            self.assertIn(found["caracalDbPassword"], found["databaseUrl"])
            for role in ROLES:
                url = f"postgres://caracal{role}:{found[f'{role}DbPassword']}@postgres:5432/caracal"
                self.assertEqual(found[f"{role}DatabaseUrl"], url)
