"""The processes of the Compose file, run under its environment: there is no container engine on the machines
that test this, so paths and addresses are moved, and everything else is as in the file. Run by root, they have
the user of the container and no privileges."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
ROLES = ["sts", "api", "coordinator", "gateway", "audit"]
BINARY, POSTGRES = os.environ.get("CARACAL_BINARY"), os.environ.get("CARACAL_TEST_POSTGRES")
PATIENCE = 90
USER = 65532
CONFINED = f"setpriv --reuid={USER} --regid={USER} --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all"


def interpolated(text, environment):
    """`${NAME:-default}` as Compose reads it, without nesting; `$$` is a dollar sign."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda at: environment.get(at[1]) or at[2], text)
    return text.replace("$$", "$")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def until(what, done):
    """Waits for a condition, up to a deadline."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {PATIENCE} s")
        time.sleep(0.1)


@unittest.skipUnless(BINARY, "CARACAL_BINARY is not set")
@unittest.skipUnless(POSTGRES and shutil.which("psql"), "CARACAL_TEST_POSTGRES is not set, or there is no psql")
@unittest.skipUnless(shutil.which("redis-server"), "there is no redis-server")
class Processes(unittest.TestCase):
    def setUp(self):
        self.cleanups = contextlib.ExitStack()
        self.addCleanup(self.cleanups.close)
        self.scratch = pathlib.Path(self.cleanups.enter_context(tempfile.TemporaryDirectory()))
        self.secrets = self.scratch / "secrets"
        subprocess.run([DEPLOY / "compose/secrets", self.secrets], check=True, stdout=subprocess.DEVNULL)
        self.is_root = os.geteuid() == 0 and shutil.which("setpriv") is not None
        # Another user has to reach all of it; in the container each secret is mounted by itself.
        for directory in (self.scratch, self.secrets):
            directory.chmod(0o755)
        self.binary = shutil.copy(BINARY, self.scratch / "caracal") if self.is_root else BINARY
        self.services = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]
        self.ports = {role: free_port() for role in ROLES}
        self.redis()
        self.postgres()

    def moved(self, text):
        """A text of the Compose file, at the places of this machine."""
        return interpolated(text, {}).replace("/run/secrets", str(self.secrets))

    def put(self, name, text):
        file = self.secrets / name
        file.chmod(0o600)
        file.write_text(text)
        file.chmod(0o444)

    def confined(self, *words):
        """A command of the binary, as the container runs it."""
        return [*(CONFINED.split() if self.is_root else []), str(self.binary), *map(str, words)]

    def started(self, words, environment, log):
        """A process that ends with the test."""
        out = self.cleanups.enter_context((self.scratch / log).open("w"))
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=subprocess.STDOUT)
        self.cleanups.callback(lambda: (process.poll() is None and process.kill(), process.wait()))
        return process

    def log(self, name):
        return (self.scratch / name).read_text()[-3000:]

    def redis(self):
        port = free_port()
        data = self.scratch / "redis"
        data.mkdir()
        command = self.moved(self.services["redis"]["command"][2]).replace("/data", str(data))
        environment = {name: self.moved(value) for name, value in self.services["redis"]["environment"].items()}
        environment["PATH"] = os.environ["PATH"]
        self.started(["sh", "-c", f"{command} --port {port} --bind 127.0.0.1"], environment, "redis.log")
        password = (self.secrets / "redisPassword").read_text()
        self.put("redisUrl", f"redis://:{password}@127.0.0.1:{port}")

        def answers():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True

        until("Redis", answers)

    def postgres(self):
        """The role and database of postgres-role.sh, and the roles of the services, under names of this test's own."""
        self.prefix = name = f"compose_{os.getpid()}"
        script = (DEPLOY / "compose/postgres-role.sh").read_text()
        script = self.moved(script).replace("role caracal", f"role {name}").replace("database caracal owner caracal", f"database {name} owner {name}")
        at = urllib.parse.urlsplit(POSTGRES)
        environment = os.environ | {"PGHOST": at.hostname, "PGPORT": str(at.port), "PGDATABASE": at.path.strip("/") or "postgres"}
        environment |= {"POSTGRES_USER": at.username, "PGPASSWORD": at.password or ""}
        drop = ["psql", "-q", "-U", at.username, "-c", f"drop database if exists {name} with (force)"]
        for role in [*(f"{name}{role}" for role in ROLES), name]:
            drop += ["-c", f"drop role if exists {role}"]
        self.cleanups.callback(lambda: subprocess.run(drop, env=environment, check=True))
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for file in self.secrets.glob("*[dD]atabaseUrl"):
            url = file.read_text().replace("postgres://caracal", f"postgres://{name}")
            self.put(file.name, url.replace("@postgres:5432/caracal", f"@{at.hostname}:{at.port}/{name}"))

    def environment(self, service):
        """Of a container, and nothing of this process's."""
        told = self.services[service].get("environment", {})
        environment = {name: self.moved(str(value)) for name, value in told.items()}
        home = self.scratch / service
        home.mkdir(exist_ok=True)
        if self.is_root:
            os.chown(home, USER, USER)
        # What the image sets.
        environment |= {"CARACAL_HOME": str(home), "AUDIT_REPLAY_DIR": str(home / "audit-replay")}
        if service == "audit":
            environment["AUDIT_EXPORT_TMP_DIR"] = str(home)
        if service in ROLES:
            environment |= {"HOST": "127.0.0.1", f"{service.upper()}_PORT": str(self.ports[service])}
        if service == "gateway":
            environment["STS_URL"] = f"http://127.0.0.1:{self.ports['sts']}"
        return environment

    def is_ready(self, role):
        """What the container's health check asks, at the port of this test."""
        words = self.services[role]["healthcheck"]["test"][1:]
        environment = {"CARACAL_HOME": str(self.scratch / role)}
        environment[f"CARACAL_{role.upper()}_URL"] = f"http://127.0.0.1:{self.ports[role]}"
        asked = subprocess.run(self.confined(*words[1:]), env=environment, capture_output=True, check=False)
        return asked.returncode == 0

    def scraped(self, role, bearer):
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[role]}/metrics")
        if bearer:
            request.add_header("Authorization", f"Bearer {bearer}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def test_they_become_ready_answer_and_stop_in_order(self):
        migrate = self.confined(*self.services["dbMigrate"]["command"], "--role-prefix", self.prefix)
        done = subprocess.run(migrate, env=self.environment("dbMigrate"), capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        running = {}
        for role in ROLES:
            words = self.confined(*self.services[role]["command"])
            running[role] = self.started(words, self.environment(role), f"{role}.log")

            def ready(role=role):
                self.assertIsNone(running[role].poll(), self.log(f"{role}.log"))
                return self.is_ready(role)

            until(f"{role} ready", ready)
        bearer = (self.secrets / "metricsBearer").read_text()
        for role in ROLES:
            with self.subTest(role):
                self.assertEqual((self.scraped(role, None), self.scraped(role, bearer)), (401, 200))
        for role in reversed(ROLES):
            running[role].send_signal(signal.SIGTERM)
            self.assertEqual(running[role].wait(PATIENCE), 0, self.log(f"{role}.log"))
