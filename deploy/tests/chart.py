"""The chart: what it renders, what it refuses, and whether Kubernetes would take it."""

import collections
import hashlib
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import yaml

from .schemas import complaints

CHART = pathlib.Path(__file__).resolve().parent.parent / "helm/caracal"
PROFILES = CHART / "profiles"
ROLES = ["api", "sts", "gateway", "audit", "coordinator"]
SECRETS = """
    postgresPassword redisPassword caracalAdminToken caracalCoordinatorToken secretStoreKek auditHmacKey
    streamsHmacKey idempotencyHmacKey gatewayStsHmacKey metricsBearer
""".split()
EVALUATION = ["secrets.create=true", "global.evaluation=true"] + [f"secrets.plaintext.{key}=x" for key in SECRETS]
PRODUCTION = ["production"]


def helm(*words):
    return subprocess.run(["helm", *words], capture_output=True, text=True, check=False)


def arguments(profiles=(), sets=(), values=None):
    words = [word for profile in profiles for word in ("-f", str(PROFILES / f"{profile}.yaml"))]
    words += [word for one in sets for word in ("--set", one)]
    for one in values or ():
        words += ["--set-json", one]
    return words


def rendered(profiles=(), sets=(), values=None):
    """The objects of a rendering that must succeed."""
    done = helm("template", "demo", str(CHART), "--namespace", "caracal", *arguments(profiles, sets, values))
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def refused(profiles=(), sets=(), values=None):
    """What a rendering that must fail says."""
    done = helm("template", "demo", str(CHART), *arguments(profiles, sets, values))
    assert done.returncode != 0, "this should have been refused"
    return done.stderr


def of_kind(objects, kind):
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def counted(objects):
    return dict(collections.Counter(one["kind"] for one in objects))


def pods(objects):
    for one in objects:
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def container(objects, role):
    (found,) = [
        pod["containers"][0] for _, pod in pods(objects) if pod["containers"][0]["name"] == f"caracal-{role}"
    ]
    return found


def env(objects, role):
    return {one["name"]: one.get("value") for one in container(objects, role)["env"]}


class Rendering(unittest.TestCase):
    def test_helm_lints_every_profile(self):
        for profiles in ([], ["dev"], ["rc"], ["production"], ["production", "aks"]):
            with self.subTest(profiles):
                done = helm("lint", "--strict", str(CHART), *arguments(profiles))
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_the_default_values_render_the_objects_of_five_services(self):
        self.assertEqual(
            counted(rendered()),
            {
                "ServiceAccount": 2,
                "NetworkPolicy": 1,
                "PodDisruptionBudget": 5,
                "Service": 5,
                "StatefulSet": 2,
                "Deployment": 3,
                "HorizontalPodAutoscaler": 5,
                "Job": 1,
            },
        )

    def test_a_cloud_overlay_adds_ingresses_and_monitoring(self):
        for cloud in ("aks", "eks", "gke"):
            with self.subTest(cloud):
                kinds = counted(rendered(["production", cloud]))
                found = [kinds.get(kind) for kind in ("Ingress", "ServiceMonitor", "PrometheusRule")]
                self.assertEqual(found, [3, 5, 1])

    def test_development_has_one_replica_and_no_autoscaler(self):
        objects = rendered(["dev"])
        self.assertNotIn("HorizontalPodAutoscaler", counted(objects))
        for kind in ("Deployment", "StatefulSet"):
            for one in of_kind(objects, kind).values():
                self.assertEqual(one["spec"]["replicas"], 1)

    def test_ports_replicas_and_autoscalers_are_those_of_the_specification(self):
        objects = rendered()
        ports = {name: one["spec"]["ports"][0]["port"] for name, one in of_kind(objects, "Service").items()}
        expected = {"api": 3000, "sts": 8080, "gateway": 8081, "audit": 9090, "coordinator": 4000}
        self.assertEqual(ports, {f"demo-caracal-{role}": port for role, port in expected.items()})
        scalers = {
            name: (one["spec"]["minReplicas"], one["spec"]["maxReplicas"], one["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"])
            for name, one in of_kind(objects, "HorizontalPodAutoscaler").items()
        }
        most = {"api": (2, 8, 70), "sts": (2, 8, 70), "gateway": (2, 16, 65), "audit": (2, 8, 70), "coordinator": (2, 8, 70)}
        self.assertEqual(scalers, {f"demo-caracal-{role}": three for role, three in most.items()})

    def test_every_object_is_valid_for_kubernetes(self):
        signals = ["hpaSignals.enabled=true", "dashboards.enabled=true"]
        renderings = {
            "default": rendered(),
            "evaluation": rendered(["dev"], EVALUATION),
            "rc": rendered(["rc"]),
            "production": rendered(["production"], signals),
            "no volumes": rendered(sets=["replayPersistence.enabled=false"]),
            "everything": rendered(
                ["production", "gke"],
                [
                    "secrets.kekRotation=true",
                    "secrets.idempotency.keyRotation=true",
                    "secrets.stsAdminToken.key=stsAdminToken",
                    "services.gateway.tlsSecretName=gateway-tls",
                    "ingress.coordinator.enabled=true",
                    "ingress.coordinator.host=coordinator.example.com",
                ],
                [
                    'services.api.extraEnv=[{"name":"ZONE","valueFrom":{"fieldRef":{"fieldPath":"spec.nodeName"}}}]',
                    'services.api.extraVolumes=[{"name":"ca","configMap":{"name":"ca"}}]',
                    'services.api.extraVolumeMounts=[{"name":"ca","mountPath":"/ca"}]',
                    'services.audit.secretSettings={"AWS_SECRET_ACCESS_KEY":{"secretName":"s3","key":"secret"}}',
                    'networkPolicy.extraEgress=[{"ports":[{"protocol":"TCP","port":8443}]}]',
                ],
            ),
        }
        for cloud in ("aks", "eks", "gke"):
            renderings[cloud] = rendered(["production", cloud])
        for name, objects in renderings.items():
            for one in objects:
                with self.subTest(name, object=f"{one['kind']} {one['metadata']['name']}"):
                    self.assertEqual(complaints(one), [])


class Pods(unittest.TestCase):
    def test_they_meet_the_restricted_profile(self):
        for name, pod in pods(rendered()):
            with self.subTest(name):
                context, one = pod["securityContext"], pod["containers"][0]["securityContext"]
                self.assertTrue(context["runAsNonRoot"])
                self.assertEqual([context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")], [65532] * 3)
                self.assertEqual(context["seccompProfile"], {"type": "RuntimeDefault"})
                self.assertTrue(one["readOnlyRootFilesystem"])
                self.assertFalse(one["allowPrivilegeEscalation"])
                self.assertEqual(one["capabilities"], {"drop": ["ALL"]})
                self.assertFalse(pod["automountServiceAccountToken"])

    def test_probes_wait_longer_than_a_service_takes_to_ask_its_stores(self):
        for role in ROLES:
            one = container(rendered(), role)
            paths = {probe: one[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
            self.assertEqual(paths, {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"})
            self.assertEqual({one[probe]["timeoutSeconds"] for probe in paths}, {3})
            self.assertEqual((one["startupProbe"]["failureThreshold"], one["startupProbe"]["periodSeconds"]), (30, 5))

    def test_probes_and_scrapes_of_the_gateway_follow_its_prefix(self):
        objects = rendered(
            sets=["services.gateway.settings.GATEWAY_OPERATOR_PREFIX=/-/caracal", "serviceMonitor.enabled=true"]
        )
        for role in ROLES:
            prefix = "/-/caracal" if role == "gateway" else ""
            one = container(objects, role)
            self.assertEqual(one["livenessProbe"]["httpGet"]["path"], f"{prefix}/health")
            self.assertEqual(one["readinessProbe"]["httpGet"]["path"], f"{prefix}/ready")
        monitors = {one["metadata"]["name"]: one for one in objects if one["kind"] == "ServiceMonitor"}
        paths = {name: one["spec"]["endpoints"][0]["path"] for name, one in monitors.items()}
        prefixed = [name for name, path in paths.items() if path == "/-/caracal/metrics"]
        self.assertEqual((len(paths), len(prefixed)), (5, 1), paths)

    def test_each_gets_its_own_secrets_and_no_others(self):
        expected = {
            "api": "apiDatabaseUrl redisUrl auditHmacKey caracalAdminToken secretStoreKek streamsHmacKey metricsBearer",
            "sts": "stsDatabaseUrl redisUrl auditHmacKey secretStoreKek streamsHmacKey gatewayStsHmacKey metricsBearer",
            "gateway": "gatewayDatabaseUrl redisUrl auditHmacKey caracalAdminToken streamsHmacKey gatewayStsHmacKey metricsBearer",
            "audit": "auditDatabaseUrl redisUrl auditHmacKey secretStoreKek metricsBearer",
            "coordinator": "coordinatorDatabaseUrl redisUrl auditHmacKey streamsHmacKey caracalCoordinatorToken idempotencyHmacKey metricsBearer",
            "migrate": "databaseUrl",
        }
        found = {}
        for name, pod in pods(rendered()):
            (volume,) = [one for one in pod["volumes"] if one["name"] == "secrets"]
            files = [item["path"] for source in volume["projected"]["sources"] for item in source["secret"]["items"]]
            found[name.removeprefix("demo-caracal-")] = " ".join(files)
            mounted = {one["value"] for one in pod["containers"][0]["env"] if one["name"].endswith("_FILE")}
            self.assertEqual(mounted, {f"/run/secrets/{file}" for file in files})
        self.assertEqual(found, expected)

    def test_sts_and_gateway_keep_undelivered_evidence_on_a_volume(self):
        sets = of_kind(rendered(), "StatefulSet")
        self.assertEqual(sorted(sets), ["demo-caracal-gateway", "demo-caracal-sts"])
        for one in sets.values():
            (claim,) = one["spec"]["volumeClaimTemplates"]
            self.assertEqual(claim["metadata"]["name"], "replay")
            mounts = {at["name"]: at["mountPath"] for at in one["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}
            self.assertEqual(mounts["replay"], "/var/lib/caracal")
            retention = one["spec"]["persistentVolumeClaimRetentionPolicy"]
            self.assertEqual(set(retention.values()), {"Retain"})
        without = rendered(sets=["replayPersistence.enabled=false"])
        self.assertEqual(counted(without)["Deployment"], 5)
        self.assertNotIn("StatefulSet", counted(without))

    def test_settings_reach_the_services_that_have_them(self):
        objects = rendered(
            sets=[
                "global.settings.STS_MINT_RATE_LIMIT_PER_MIN=1000000",
                "services.coordinator.settings.MAX_AGENTS_PER_ZONE=1000",
                "services.sts.dbPoolMax=12",
            ],
            values=['services.gateway.extraEnv=[{"name":"STS_TIMEOUT","value":"7s"}]'],
        )
        limit = {role: env(objects, role).get("STS_MINT_RATE_LIMIT_PER_MIN") for role in ROLES}
        expected = {"api": "1000000", "sts": "1000000", "gateway": None, "audit": None, "coordinator": None}
        self.assertEqual(limit, expected)
        self.assertEqual(env(objects, "coordinator")["MAX_AGENTS_PER_ZONE"], "1000")
        self.assertEqual(env(objects, "sts")["DB_POOL_MAX"], "12")
        self.assertEqual(env(objects, "gateway")["STS_TIMEOUT"], "7s")
        names = [one["name"] for role in ROLES for one in container(objects, role)["env"]]
        per_role = [[one["name"] for one in container(objects, role)["env"]] for role in ROLES]
        self.assertTrue(all(len(one) == len(set(one)) for one in per_role), names)

    def test_an_evaluation_brings_its_secrets_before_the_migration(self):
        sets = [one.replace("postgresPassword=x", "postgresPassword=a/b c+d") for one in EVALUATION]
        (secret,) = of_kind(rendered(["dev"], sets), "Secret").values()
        url = "postgres://caracal:a%2Fb%20c%2Bd@postgres.default.svc.cluster.local:5432/caracal?sslmode=disable"
        urls = {name: text for name, text in secret["stringData"].items() if name.endswith("atabaseUrl")}
        self.assertEqual(urls, {name: url for name in ["databaseUrl", *(f"{role}DatabaseUrl" for role in ROLES)]})
        self.assertEqual(secret["stringData"]["redisUrl"], "redis://:x@redis.default.svc.cluster.local:6379/0")
        self.assertEqual(secret["metadata"]["annotations"]["helm.sh/hook-weight"], "-20")

    def test_roles_of_the_services_are_made_where_they_are_asked_for(self):
        objects = rendered(sets=["secrets.database.roles=true"])
        (job,) = of_kind(objects, "Job").values()
        pod = job["spec"]["template"]["spec"]
        self.assertEqual(pod["containers"][0]["args"], ["migrate", "--wait", "60", "--roles"])
        told = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
        (volume,) = [one for one in pod["volumes"] if one["name"] == "secrets"]
        files = {item["path"] for source in volume["projected"]["sources"] for item in source["secret"]["items"]}
        self.assertEqual(files, {"databaseUrl", *(f"{role}DbPassword" for role in ROLES)})
        for role in ROLES:
            self.assertEqual(told[f"CARACAL_{role.upper()}_DB_PASSWORD_FILE"], f"/run/secrets/{role}DbPassword")
        (secret,) = of_kind(rendered(["dev"], [*EVALUATION, "secrets.database.roles=true"]), "Secret").values()
        texts = secret["stringData"]
        for role in ROLES:
            own = hashlib.sha256(f"x:caracal{role}".encode()).hexdigest()
            self.assertEqual(texts[f"{role}DbPassword"], own)
            self.assertTrue(texts[f"{role}DatabaseUrl"].startswith(f"postgres://caracal{role}:{own}@postgres."))

    def test_who_takes_authority_away_stays_ready_without_redis(self):
        ready = {role: env(rendered(), role).get("READY_WITHOUT_REDIS") for role in ROLES}
        self.assertEqual(ready, {"api": "true", "coordinator": "true", "sts": None, "gateway": None, "audit": None})

    def test_the_migration_runs_before_the_services(self):
        (job,) = of_kind(rendered(), "Job").values()
        notes = job["metadata"]["annotations"]
        self.assertEqual((notes["helm.sh/hook"], notes["helm.sh/hook-weight"]), ("pre-install,pre-upgrade", "0"))
        account = of_kind(rendered(), "ServiceAccount")["demo-caracal-migrate"]["metadata"]["annotations"]
        self.assertEqual(account["helm.sh/hook-weight"], "-10")


@unittest.skipUnless(os.environ.get("CARACAL_BINARY"), "CARACAL_BINARY is not set")
class Binary(unittest.TestCase):
    def checked(self, objects, role, secrets):
        """What `caracal config check` says of the environment of a pod."""
        environment = {name: value.replace("/run/secrets", secrets) for name, value in env(objects, role).items()}
        words = [os.environ["CARACAL_BINARY"], "config", "check", role]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    def test_it_takes_the_environment_of_every_pod(self):
        values = {"global.settings.STS_MINT_RATE_LIMIT_PER_MIN=5000", "services.sts.dbPoolMax=9"}
        renderings = [rendered(), rendered(["production"], values), rendered(["dev"])]
        with tempfile.TemporaryDirectory() as secrets:
            for objects in renderings:
                for role in ROLES:
                    for name, value in env(objects, role).items():
                        if name.endswith("_FILE"):
                            text = {"DATABASE_URL_FILE": "postgres://db/caracal", "REDIS_URL_FILE": "redis://redis"}
                            at = pathlib.Path(secrets) / pathlib.Path(value).name
                            at.write_text(text.get(name, "8f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90"))
                    with self.subTest(role):
                        done = self.checked(objects, role, secrets)
                        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                        self.assertNotIn("warning", done.stdout + done.stderr)


class Network(unittest.TestCase):
    def policy(self, *sets, values=None):
        (one,) = of_kind(rendered(sets=sets, values=values), "NetworkPolicy").values()
        return one["spec"]

    def test_only_the_stores_and_the_collector_are_reached_by_default(self):
        egress = self.policy()["egress"]
        ports = [port["port"] for rule in egress for port in rule.get("ports", [])]
        self.assertEqual(ports, [5432, 6379, 4317, 4318])

    def test_more_is_opened_by_name(self):
        egress = self.policy("networkPolicy.allowOpenHttps=true", "networkPolicy.allowOpenDns=true")["egress"]
        ports = [port["port"] for rule in egress for port in rule.get("ports", [])]
        self.assertEqual(ports[4:], [53, 53, 443])
        peers = self.policy(values=['networkPolicy.dnsEgress=[{"namespaceSelector":{}}]'])["egress"][2]["to"]
        self.assertEqual(peers, [{"namespaceSelector": {}}])


class Scaling(unittest.TestCase):
    def test_signals_come_first_and_cpu_stays(self):
        scalers = of_kind(rendered(sets=["hpaSignals.enabled=true"]), "HorizontalPodAutoscaler")
        metrics = {
            name.removeprefix("demo-caracal-"): [
                one.get("pods", one.get("external", {})).get("metric", {}).get("name") or one["resource"]["name"]
                for one in scaler["spec"]["metrics"]
            ]
            for name, scaler in scalers.items()
        }
        self.assertEqual(metrics["sts"], ["caracal_sts_exchanges_in_flight", "cpu", "memory"])
        self.assertEqual(metrics["gateway"], ["caracal_gateway_requests_in_flight", "cpu", "memory"])
        self.assertEqual(metrics["audit"], ["caracal_audit_consumer_lag", "cpu", "memory"])
        self.assertEqual(metrics["api"], ["cpu", "memory"])


class Refusals(unittest.TestCase):
    """Each with the message that tells what to do."""

    def says(self, text, *given, **more):
        self.assertIn(text, re.sub(r"\s+", " ", refused(*given, **more)))

    def test_stable_never_makes_secrets(self):
        self.says("secrets.create is for evaluation", PRODUCTION, EVALUATION)

    def test_secrets_are_made_for_evaluation_only(self):
        self.says("set global.evaluation=true", sets=[one for one in EVALUATION if "evaluation" not in one])

    def test_every_secret_of_an_evaluation_is_given(self):
        for key in SECRETS:
            sets = [one for one in EVALUATION if f".{key}=" not in one]
            with self.subTest(key):
                self.says(f"secrets.plaintext.{key} is required", sets=sets)

    def test_stable_names_its_stores(self):
        host = "secrets.database.host=postgres.default.svc.cluster.local"
        self.says("secrets.database.host is still the default", PRODUCTION, [host])
        host = "secrets.redis.host=redis.default.svc.cluster.local"
        self.says("secrets.redis.host is still the default", PRODUCTION, [host])

    def test_stable_can_ask_dns(self):
        self.says("networkPolicy lets nobody ask DNS", PRODUCTION, values=["networkPolicy.dnsEgress=[]"])

    def test_stable_lets_its_ingress_controller_in(self):
        sets = ["ingress.sts.enabled=true", "ingress.sts.host=sts.example.com"]
        self.says("ingress.sts is enabled", PRODUCTION, sets, ["networkPolicy.extraIngress=[]"])

    def test_stable_names_its_issuer_and_its_registry(self):
        self.says("services.sts.issuerUrl is required", PRODUCTION, ["services.sts.issuerUrl="])
        self.says("global.registry is required", PRODUCTION, ["global.registry="])

    def test_what_is_not_in_this_release_cannot_be_enabled(self):
        self.says("the web console is not part of this release", sets=["services.web.enabled=true"])
        self.says("the Control endpoint is not part of this release", sets=["control.enabled=true"])

    def test_connections_fit_at_the_replicas_set(self):
        self.says(
            "secrets.database.maxConnections is 100, and the replicas alone need 107: "
            "api (2 + 1 rolling) x 10 = 30, sts (2 + 0 rolling) x 8 = 16, gateway (2 + 0 rolling) x 2 = 4, "
            "audit (2 + 1 rolling) x 4 = 12, coordinator (2 + 1 rolling) x 10 = 30, migration 2, others 13",
            sets=["secrets.database.maxConnections=100"],
        )

    def test_connections_fit_at_the_autoscalers_maximum(self):
        self.says(
            "secrets.database.maxConnections is 300, and the autoscalers' maximum needs 327: "
            "api (8 + 1 rolling) x 10 = 90, sts (8 + 0 rolling) x 8 = 64, gateway (16 + 0 rolling) x 2 = 32, "
            "audit (8 + 1 rolling) x 4 = 36, coordinator (8 + 1 rolling) x 10 = 90, migration 2, others 13",
            sets=["secrets.database.maxConnections=300"],
        )
        rendered(sets=["secrets.database.maxConnections=327"])
        for pool in ("services.sts.dbPoolMax=9", "services.sts.extraEnv[0].name=DB_MAX_CONNS,services.sts.extraEnv[0].value=9"):
            self.says("needs 335", sets=["secrets.database.maxConnections=327", pool])

    def test_shared_settings_agree(self):
        sets = ["services.sts.settings.STS_MINT_RATE_LIMIT_PER_MIN=5"]
        self.says("STS_MINT_RATE_LIMIT_PER_MIN must be the same for api and sts", sets=sets)

    def test_evidence_has_time_to_be_handed_over(self):
        self.says("terminationGracePeriodSeconds is 20", sets=["scheduling.terminationGracePeriodSeconds=20"])

    def test_mandates_do_not_travel_in_the_clear(self):
        sets = ["services.sts.internalUrl=http://sts.example.com"]
        self.says("services.sts.internalUrl must be https", sets=sets)

    def test_insecurity_is_for_development(self):
        sets = ["services.gateway.settings.JTI_FAIL_OPEN=true"]
        self.says("JTI_FAIL_OPEN is allowed only with global.mode dev", sets=sets)
        rendered(["dev"], sets)

    def test_an_ingress_has_a_host(self):
        self.says("ingress.api.host is required", sets=["ingress.api.enabled=true"])

    def test_every_mistake_is_told_at_once(self):
        said = refused(PRODUCTION, ["global.registry=", "services.sts.issuerUrl="])
        self.assertIn("global.registry is required", said)
        self.assertIn("services.sts.issuerUrl is required", said)

    def test_the_schema_refuses_what_no_service_has_and_what_is_out_of_range(self):
        for one in (
            "services.sts.settings.MAX_AGENTS_PER_ZONE=5",
            "services.sts.settings.OPA_POLL_SECONDS=301",
            "services.sts.settings.OPA_POLL_SECONDS=often",
            "services.gateway.settings.STS_TIMEOUT=5",
            "services.gateway.settings.TRUST_PROXY=maybe",
            "services.sts.port=8088",
            "global.mode=prod",
            "secrets.database.sslMode=on",
            "servcies.sts.replicas=3",
        ):
            with self.subTest(one):
                self.assertRegex(refused(sets=[one]), "schema|specifications")


class Monitoring(unittest.TestCase):
    def test_the_scraper_is_given_the_bearer(self):
        for one in of_kind(rendered(["production"]), "ServiceMonitor").values():
            (endpoint,) = one["spec"]["endpoints"]
            bearer = {"name": "caracal-runtime", "key": "metricsBearer"}
            self.assertEqual(endpoint["authorization"], {"type": "Bearer", "credentials": bearer})

    def test_thresholds_replace_those_of_the_file(self):
        sets = ["alertRules.auditConsumerLag=25000", "alertRules.dbPoolInUseRatio=0.8"]
        (one,) = of_kind(rendered(["production"], sets), "PrometheusRule").values()
        rules = {rule["alert"]: rule["expr"] for rule in one["spec"]["groups"][0]["rules"]}
        self.assertEqual(rules["CaracalAuditConsumerLagHigh"], "caracal_audit_consumer_lag > 25000")
        self.assertTrue(rules["CaracalPostgresPoolSaturation"].endswith("> 0.8"))

    def test_the_default_thresholds_are_those_of_the_file(self):
        (one,) = of_kind(rendered(["production"]), "PrometheusRule").values()
        file = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
        told = {rule["alert"]: rule["expr"] for rule in one["spec"]["groups"][0]["rules"]}
        self.assertEqual(told, {rule["alert"]: rule["expr"] for rule in file["groups"][0]["rules"]})
