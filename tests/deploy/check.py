"""Holds the files of the deployment against the checkers of those who read them, and against each other.

No container engine runs here, so nothing is started: docker compose, nats-server, nginx and promtool read the files as
they would, Kubernetes' own schemas are applied to its manifests, and whatever one file names must be where it says.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
VENV = ROOT / ".venv"
PROFILES = ["demo", "gpu", "observability", "cluster"]
KUBERNETES = "1.37"

# Below deploy/kubernetes, but for programs other than Kubernetes.
NOT_APPLIED = {"kustomization.yaml", "prometheus-adapter.yaml", "prometheus-scrape.yaml"}

# Images without a shell or a client, which nothing inside can ask whether they are well.
CANNOT_BE_ASKED = {"otel-collector", "tempo"}
# Upstream's image, run as upstream runs it.
NOT_HARDENED = {"sdnext"}


def tool(name, *places):
    """A program: on the path, or where `.ci/install` puts it."""
    found = [VENV / place for place in places if (VENV / place).exists()]
    found = str(found[0]) if found else shutil.which(name) or shutil.which(name, path="/usr/sbin")
    assert found, f"{name} is missing: `make test` installs it"
    return found


def run(*command, env=None, **options):
    """Runs a program to its end, and returns what it printed; fails with that if the program does."""
    done = subprocess.run(
        [str(word) for word in command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


@functools.cache
def passwords():
    with tempfile.TemporaryDirectory() as folder:
        run(DEPLOY / "secrets", f"{folder}/env")
        return read_passwords(f"{folder}/env")


def read_passwords(file):
    return dict(line.split("=", 1) for line in Path(file).read_text().split())


def compose(env, *arguments):
    """docker compose, with nothing of this machine's environment but these variables."""
    program = tool("docker-compose", "deploy/docker-compose")
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **env}
    command = [program, "--env-file", "/dev/null", "--file", ROOT / "docker-compose.yml", *arguments]
    return subprocess.run([str(word) for word in command], env=env, text=True, capture_output=True)


@functools.cache
def read_compose():
    profiles = [word for name in PROFILES for word in ("--profile", name)]
    read = compose(passwords(), *profiles, "config", "--format", "json")
    assert read.returncode == 0, read.stderr
    return json.loads(read.stdout)


def settings():
    """Every environment variable that one of our programs reads."""
    text = "".join(file.read_text() for file in ROOT.glob("services/*/src/**/*.rs"))
    text += "".join(file.read_text() for file in ROOT.glob("shared/src/**/*.rs"))
    # What is a secret can be read from a file that is named instead (shared/src/config/layers.rs).
    secrets = re.findall(r'env = "([A-Z0-9_]+)"[^\])]*hide_env_values', text)
    named = re.findall(r'env = "([A-Z0-9_]+)"', text) + re.findall(r'\.env\("([A-Z0-9_]+)"\)', text)
    return {*named, *(f"{name}_FILE" for name in secrets)}


def metrics():
    """Every metric that one of our programs writes."""
    text = "".join(file.read_text() for file in ROOT.glob("services/*/src/**/*.rs"))
    text += "".join(file.read_text() for file in ROOT.glob("shared/src/**/*.rs"))
    return set(re.findall(r'"(stepcast_[a-z_]+)"', text))


def manifests():
    """Every Kubernetes object, with the file that it stands in."""
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        if file.name in NOT_APPLIED:
            continue
        for document in yaml.safe_load_all(file.read_text()):
            yield file.name, document


def walk(value):
    """Every mapping within a value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from walk(item)


class Compose(unittest.TestCase):
    def setUp(self):
        self.config = read_compose()
        self.services = self.config["services"]

    def test_each_profile_is_read_by_itself(self):
        for profile in ["", *PROFILES]:
            read = compose(passwords(), *(["--profile", profile] if profile else []), "config", "--quiet")
            self.assertEqual(read.returncode, 0, f"{profile}: {read.stderr}")

    def test_no_password_has_a_default(self):
        secrets = passwords()
        for name in secrets:
            rest = {other: value for other, value in secrets.items() if other != name}
            read = compose(rest, "config", "--quiet")
            self.assertIn(f"{name} is missing a value", read.stderr, name)
        self.assertEqual(len(set(secrets.values())), len(secrets), "each is drawn by itself")
        for name, service in self.services.items():
            for variable, value in (service.get("environment") or {}).items():
                if "PASSWORD" in variable:
                    self.assertIn(value.strip("'"), secrets.values(), f"{name}: {variable}")

    def test_only_this_machine_reaches_what_is_published(self):
        for name, service in self.services.items():
            for port in service.get("ports", []):
                self.assertEqual(port.get("host_ip"), "127.0.0.1", name)
                self.assertIn(name, ("edge", "grafana"))

    def test_what_is_scaled_has_nothing_that_only_one_can_have(self):
        for name in ("api", "gateway", "poller"):
            service = self.services[name]
            self.assertNotIn("container_name", service)
            self.assertNotIn("ports", service)
            self.assertNotIn("hostname", service)

    def test_each_container_is_held_in_bounds_and_looked_after(self):
        for name, service in self.services.items():
            self.assertEqual(service["restart"], "unless-stopped", name)
            self.assertIn("memory", service["deploy"]["resources"]["limits"], name)
            self.assertIn("no-new-privileges:true", service["security_opt"], name)
            self.assertIn("max-size", service["logging"]["options"], name)
            if name not in CANNOT_BE_ASKED:
                self.assertIn("test", service["healthcheck"], name)
            if name not in NOT_HARDENED:
                self.assertTrue(service["read_only"], name)
                self.assertEqual(service["cap_drop"], ["ALL"], name)

    def test_passwords_are_drawn_once_and_for_their_owner_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "env")
            # As of an older release, and without an end of its line.
            file.write_text("STEPCAST_PORT=8001\nPOSTGRES_PASSWORD=old")
            run(DEPLOY / "secrets", file)
            drawn = read_passwords(file)
            self.assertEqual(drawn, {**drawn, "STEPCAST_PORT": "8001", "POSTGRES_PASSWORD": "old"})
            self.assertEqual(set(drawn), {*passwords(), "STEPCAST_PORT"})
            self.assertEqual(file.stat().st_mode & 0o077, 0)
            run(DEPLOY / "secrets", file)
            self.assertEqual(read_passwords(file), drawn)

    def test_each_image_of_ours_is_built_once_whatever_is_chosen(self):
        for profile in ["", *PROFILES]:
            arguments = ["--profile", profile] if profile else []
            read = compose({**passwords(), "NATS_REPLICAS": "0"}, *arguments, "config", "--format", "json")
            services = json.loads(read.stdout)["services"].values()
            built = [service["image"] for service in services if "build" in service]
            self.assertEqual(sorted(built), ["stepcast", "stepcast-nats"], profile)
            for service in services:
                if service["image"] in built and "build" not in service:
                    self.assertEqual(service["pull_policy"], "never", "nobody else's image of that name is used")

    def test_what_env_says_of_replicas_holds(self):
        wanted = {"api": 1, "gateway": 3, "poller": 2, "nats": 0}
        variables = {f"{name.upper()}_REPLICAS": str(number) for name, number in wanted.items()}
        read = compose({**passwords(), **variables}, "config", "--format", "json")
        services = json.loads(read.stdout)["services"]
        self.assertEqual({name: services[name]["scale"] for name in wanted}, wanted)

    def test_what_we_build_runs_as_an_unprivileged_user(self):
        for name, service in self.services.items():
            if "build" not in service:
                continue
            context = Path(service["build"]["context"])
            dockerfile = context / service["build"].get("dockerfile", "Dockerfile")
            users = re.findall(r"^USER (\d+)", dockerfile.read_text(), re.MULTILINE)
            self.assertTrue(users and users[-1] != "0", f"{name}: {dockerfile}")

    def test_what_is_mounted_is_there(self):
        for name, service in self.services.items():
            for volume in service.get("volumes", []):
                if volume["type"] == "bind":
                    self.assertTrue(Path(volume["source"]).exists(), f"{name}: {volume['source']}")
                    self.assertTrue(volume.get("read_only"), f"{name}: {volume['source']}")

    def test_whoever_is_named_is_on_a_network_with_who_names_it(self):
        for name, service in self.services.items():
            for value in (service.get("environment") or {}).values():
                for host in re.findall(r"(?:http|nats|postgres)://(?:[^@/]*@)?([a-z0-9-]+)", value or ""):
                    if host in self.services:
                        shared = set(service["networks"]) & set(self.services[host]["networks"])
                        self.assertTrue(shared, f"{name} cannot reach {host}")
        for name in ("api", "gateway"):
            self.assertIn("edge", self.services[name]["networks"])

    def test_each_setting_is_one(self):
        known = settings()
        self.assertGreater(len(known), 20)
        for name, service in self.services.items():
            for variable in service.get("environment") or {}:
                if variable.startswith("STEPCAST_"):
                    self.assertIn(variable, known, name)


    def test_each_setting_with_tls_is_one_and_each_certificate_is_made(self):
        with tempfile.TemporaryDirectory() as folder:
            run(DEPLOY / "certificates", folder)
            made = {file.name for file in Path(folder).iterdir()}
            self.assertEqual(Path(folder, "authority.key").stat().st_mode & 0o077, 0)
            before = Path(folder, "nats.pem").read_text()
            Path(folder, "postgres.key").unlink()
            run(DEPLOY / "certificates", folder)
            self.assertEqual(Path(folder, "nats.pem").read_text(), before, "what is there is left as it is")
            run("openssl", "verify", "-CAfile", f"{folder}/authority.pem", f"{folder}/nats.pem", f"{folder}/postgres.pem")
            names = run("openssl", "x509", "-in", f"{folder}/nats.pem", "-noout", "-text")
        profiles = [word for name in PROFILES for word in ("--profile", name)]
        read = compose(passwords(), "--file", DEPLOY / "tls.yaml", *profiles, "config", "--format", "json")
        self.assertEqual(read.returncode, 0, read.stderr)
        services, known = json.loads(read.stdout)["services"], settings()
        self.assertEqual(set(services), set(self.services), "nothing is added")
        for name, service in services.items():
            for volume in service.get("volumes", []):
                if volume["type"] == "bind" and Path(volume["source"]).parent == DEPLOY / "tls":
                    self.assertIn(Path(volume["source"]).name, made, name)
                    self.assertFalse(volume["bind"].get("create_host_path"), name)
            if name.startswith("nats"):
                self.assertIn(f"DNS:{name}", names)
                self.assertIn("--tls", service["command"])
            for variable in service.get("environment") or {}:
                if variable.startswith("STEPCAST_"):
                    self.assertIn(variable, known, name)
            if "STEPCAST_NATS_URL" in (service.get("environment") or {}):
                self.assertEqual(service["environment"]["STEPCAST_NATS_CA"], "/etc/stepcast/authority.pem", name)


class Servers(unittest.TestCase):
    def test_nats_reads_its_configuration(self):
        environment = {
            **read_compose()["services"]["nats-0"]["environment"],
            "PATH": os.environ["PATH"],
        }
        program = tool("nats-server", "bin/nats-server")
        for file in ("nats.conf", "cluster.conf"):
            self.assertIn("is valid", run(program, "-t", "-c", DEPLOY / "nats" / file, env=environment))

    def test_each_service_logs_in_as_a_user_that_exists(self):
        users = set(re.findall(r"user: (\w+)", (DEPLOY / "nats/users.conf").read_text()))
        self.assertEqual(users, {"api", "poller", "gateway", "reader", "operator"})
        for name, service in read_compose()["services"].items():
            user = (service.get("environment") or {}).get("STEPCAST_NATS_USER")
            if user:
                self.assertIn(user, users, name)

    def test_each_account_is_given_what_its_user_may_ask_and_hear(self):
        text = re.sub(r"^ *#.*$", "", (DEPLOY / "nats/users.conf").read_text(), flags=re.MULTILINE)
        lists = {f"${name}": words for name, words in re.findall(r"^(\w+): \[(.*)\]", text, re.MULTILINE)}
        accounts = dict(re.findall(r"^  ([A-Z]+) \{\n(.*?)^  \}", text, re.MULTILINE | re.DOTALL))
        self.assertEqual(set(accounts), {"STEPCAST", "GATEWAY", "READER"})
        export = r'(stream|service): "([^"]+)", accounts: (\$\w+|\[.*?\])'
        exports = {}
        for kind, subject, whom in re.findall(export, accounts["STEPCAST"]):
            exports[kind, subject] = set(re.findall(r"\w+", lists.get(whom, whom)))
        self.assertEqual(len(exports), accounts["STEPCAST"].count("accounts:"))
        imports = {}
        for name in set(accounts) - {"STEPCAST"}:
            user, = re.findall(r"user: (\w+)", accounts[name])
            may = {
                what: set(re.findall(r'"([^"]+)"', words))
                for what, words in re.findall(r"(publish|subscribe): \{ allow: \[(.*?)\]", accounts[name], re.DOTALL)
            }
            given = re.findall(r'\{ (stream|service): \{ account: STEPCAST, subject: "([^"]+)" \} \}', accounts[name])
            self.assertEqual(len(given), accounts[name].count("account:"), name)
            heard = {("stream", subject) for subject in may["subscribe"] - {f"_INBOX.{user}.>"}}
            # The server answers the one for each account; the other is imported to keep it from answering more.
            asked = {("service", subject) for subject in may["publish"] - {"$SYS.REQ.USER.INFO"} | {"$JS.API.INFO"}}
            self.assertEqual(set(given), heard | asked, name)
            for key in given:
                imports.setdefault(key, set()).add(name)
        self.assertEqual(exports, imports)

    def test_nginx_reads_its_configuration(self):
        program = tool("nginx", "edge/usr/sbin/nginx")
        with tempfile.TemporaryDirectory() as folder:
            text = (DEPLOY / "edge/nginx.conf").read_text()
            # Even to try it, nginx takes its port.
            self.assertIn("listen 8000;", text)
            text = text.replace("listen 8000;", f"listen unix:{folder}/socket;").replace(" /tmp/", f" {folder}/")
            file = Path(folder, "nginx.conf")
            file.write_text(text)
            run(program, "-t", "-p", folder, "-c", file, "-e", "stderr")


class Observability(unittest.TestCase):
    folder = DEPLOY / "observability"

    def setUp(self):
        self.promtool = tool("promtool", "deploy/usr/bin/promtool")
        self.services = read_compose()["services"]

    def test_prometheus_reads_its_files(self):
        run(self.promtool, "check", "config", self.folder / "prometheus.yml")
        run(self.promtool, "check", "rules", self.folder / "alerts.yml")

    def test_on_kubernetes_each_service_is_found_by_the_name_that_alerts_go_by(self):
        scraped = yaml.safe_load((DEPLOY / "kubernetes/prometheus-scrape.yaml").read_text())
        job, = scraped["scrape_configs"]
        # Debian's promtool was built without Kubernetes.
        del job["kubernetes_sd_configs"]
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            yaml.safe_dump(scraped, file)
            file.flush()
            run(self.promtool, "check", "config", file.name)
        named = next(rule for rule in job["relabel_configs"] if rule.get("target_label") == "job")
        self.assertEqual(named["source_labels"], ["__meta_kubernetes_pod_label_app_kubernetes_io_name"])
        pods = {
            item["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]: item["spec"]["template"]["spec"]
            for _, item in manifests()
            if item["kind"] in ("Deployment", "StatefulSet")
        }
        found = re.compile(job["relabel_configs"][0]["regex"])
        found = {name for name, pod in pods.items() if found.fullmatch(name)}
        compose = yaml.safe_load((self.folder / "prometheus.yml").read_text())["scrape_configs"]
        self.assertEqual(found, {job["job_name"] for job in compose})
        for name in found:
            ports = [port["name"] for container in pods[name]["containers"] for port in container["ports"]]
            self.assertIn("http", ports, name)

    def test_alerts_come_when_they_should(self):
        run(self.promtool, "test", "rules", ROOT / "tests/deploy/alerts.test.yml")

    def test_each_alert_says_what_to_do(self):
        for group in yaml.safe_load((self.folder / "alerts.yml").read_text())["groups"]:
            for rule in group["rules"]:
                self.assertIn(rule["labels"]["severity"], ("warning", "critical"), rule["alert"])
                for annotation in ("summary", "runbook"):
                    self.assertGreater(len(rule["annotations"][annotation]), 20, rule["alert"])

    def test_each_metric_is_one_that_we_write(self):
        known = metrics()
        self.assertGreater(len(known), 20)
        files = [self.folder / "alerts.yml", DEPLOY / "kubernetes/prometheus-adapter.yaml"]
        files += [DEPLOY / "kubernetes/gateway.yaml", *self.folder.glob("grafana/dashboards/*.json")]
        for file in files:
            for name in set(re.findall(r"\bstepcast_[a-z_]+", file.read_text())):
                self.assertIn(re.sub(r"_(sum|count|bucket)$", "", name), known, file.name)

    def test_the_dashboard_can_be_shown(self):
        sources = yaml.safe_load((self.folder / "grafana/provisioning/datasources/stepcast.yaml").read_text())
        known = {source["uid"] for source in sources["datasources"]}
        for file in self.folder.glob("grafana/dashboards/*.json"):
            panels = json.loads(file.read_text())["panels"]
            self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
            shown = [panel for panel in panels if panel["type"] != "row"]
            for panel in shown:
                self.assertIn(panel["datasource"]["uid"], known, panel["title"])
                self.assertTrue(panel["description"], panel["title"])
            # Grafana puts its own interval there. A rule is the one thing in which promtool checks an expression.
            asked = [target["expr"].replace("$__rate_interval", "1m") for panel in shown for target in panel["targets"]]
            rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(asked)]
            with tempfile.NamedTemporaryFile("w", suffix=".yml") as rule_file:
                yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, rule_file)
                rule_file.flush()
                run(self.promtool, "check", "rules", rule_file.name)

    def test_whatever_is_asked_or_told_is_a_service(self):
        hosts = []
        for source in ("grafana/provisioning/datasources/stepcast.yaml", "otel-collector.yaml"):
            hosts += re.findall(r"(?:url: http://|endpoint: )([a-z][a-z-]*):\d+", (self.folder / source).read_text())
        scraped = yaml.safe_load((self.folder / "prometheus.yml").read_text())["scrape_configs"]
        hosts += [name for job in scraped for discovery in job["dns_sd_configs"] for name in discovery["names"]]
        self.assertGreater(len(hosts), 5)
        for host in hosts:
            self.assertIn("metrics", self.services[host]["networks"], host)

    def test_the_collector_has_what_its_pipelines_name(self):
        config = yaml.safe_load((self.folder / "otel-collector.yaml").read_text())
        for pipeline in config["service"]["pipelines"].values():
            for part, names in pipeline.items():
                for name in names:
                    self.assertIn(name, config[part])


class Kubernetes(unittest.TestCase):
    def setUp(self):
        self.objects = list(manifests())
        self.workloads = {
            item["metadata"]["name"]: item for _, item in self.objects if item["kind"] in ("Deployment", "StatefulSet")
        }

    def test_each_object_is_as_kubernetes_has_it(self):
        self.assertGreater(len(self.objects), 15)
        for file, item in self.objects:
            try:
                kubernetes_validate.validate(item, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                self.fail(f"{file}: {item['kind']} {item['metadata']['name']}: {error.message}")

    def test_each_file_is_applied_or_says_why_not(self):
        listed = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())["resources"]
        self.assertEqual({file for file, _ in self.objects} - set(listed), {"ingress.yaml"})
        self.assertEqual(set(listed) - {file for file, _ in self.objects}, set())

    def test_whatever_is_selected_exists(self):
        for file, item in self.objects:
            for mapping in walk(item.get("spec", {})):
                labels = mapping.get("matchLabels") or mapping.get("selector") or {}
                name = labels.get("app.kubernetes.io/name") if isinstance(labels, dict) else None
                if name:
                    self.assertIn(name, self.workloads, file)
            if item["kind"] == "HorizontalPodAutoscaler":
                self.assertIn(item["spec"]["scaleTargetRef"]["name"], self.workloads, file)

    def test_each_workload_may_be_disturbed_one_at_a_time_and_is_probed(self):
        budgets = {item["metadata"]["name"] for _, item in self.objects if item["kind"] == "PodDisruptionBudget"}
        self.assertEqual(budgets, set(self.workloads))
        for name, item in self.workloads.items():
            pod = item["spec"]["template"]["spec"]
            self.assertTrue(pod["securityContext"]["runAsNonRoot"], name)
            for container in pod["containers"]:
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    self.assertIn(probe, container, name)
                self.assertIn("memory", container["resources"]["limits"], name)
                self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"], name)

    def test_whatever_is_referred_to_exists(self):
        maps = {item["metadata"]["name"]: item for _, item in self.objects if item["kind"] == "ConfigMap"}
        claims = {item["metadata"]["name"] for _, item in self.objects if item["kind"] == "PersistentVolumeClaim"}
        services = {item["metadata"]["name"] for _, item in self.objects if item["kind"] == "Service"}
        secrets = documented_secrets()
        for file, item in self.objects:
            for mapping in walk(item):
                if "configMapRef" in mapping:
                    self.assertIn(mapping["configMapRef"]["name"], maps, file)
                if "persistentVolumeClaim" in mapping:
                    self.assertIn(mapping["persistentVolumeClaim"]["claimName"], claims, file)
                if "secretKeyRef" in mapping:
                    secret = mapping["secretKeyRef"]
                    self.assertIn(secret["key"], secrets.get(secret["name"], set()), f"{file}: docs/PRODUCTION.md")
                if "backend" in mapping and "service" in mapping["backend"]:
                    self.assertIn(mapping["backend"]["service"]["name"], services, file)
        known = settings()
        for name in (name for item in maps.values() for name in item["data"]):
            self.assertIn(name, known)
        for _, item in self.objects:
            for variable in (mapping.get("name", "") for mapping in walk(item)):
                if variable.startswith("STEPCAST_"):
                    self.assertIn(variable, known)


def documented_secrets():
    """The Secrets that docs/PRODUCTION.md has people make, with their keys."""
    text = (ROOT / "docs/PRODUCTION.md").read_text().replace("\\\n", " ")
    made = re.findall(r"kubectl .*create secret generic (\S+)(.*)", text)
    return {name: set(re.findall(r"--from-literal=(\w+)=", rest)) for name, rest in made}


class Documentation(unittest.TestCase):
    text = (ROOT / "docs/PRODUCTION.md").read_text()
    consumers = (ROOT / "docs/CONSUMERS.md").read_text()

    def test_each_file_that_is_named_exists(self):
        named = re.findall(r"\b(?:deploy|docs|shared|tests|services)/[\w./-]*\w", self.text)
        self.assertGreater(len(named), 8)
        for path in named:
            # deploy/certificates makes that folder.
            self.assertTrue(path.startswith("deploy/tls/") or (ROOT / path).exists(), path)
        for path in re.findall(r"\]\(([^)#:]+)\)", self.text):
            self.assertTrue((ROOT / "docs" / path).exists(), path)

    def test_each_variable_of_compose_is_described(self):
        drawn = set(passwords())
        for variable in set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text())):
            self.assertTrue(variable in drawn or variable in self.text, variable)

    def test_what_is_shown_as_an_override_is_one(self):
        shown = re.findall(r"^```yaml\n(services:.*?)^```", self.text + self.consumers, re.MULTILINE | re.DOTALL)
        self.assertEqual(len(shown), 2)
        for override in shown:
            with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
                file.write(override)
                file.flush()
                files = ["--project-directory", ROOT, "--file", file.name]
                read = compose(passwords(), *files, "config", "--format", "json")
            self.assertEqual(read.returncode, 0, read.stderr)
            services = json.loads(read.stdout)["services"]
            for name in yaml.safe_load(override.replace("!reset", ""))["services"]:
                environment, build = services[name]["environment"], services[name]["build"]
                for variable in environment:
                    self.assertTrue(variable in settings() or not variable.startswith("STEPCAST_"), variable)
                    self.assertNotIn(f"{variable}_FILE", environment)
                for copied in re.findall(r"^COPY (.*) \S+$", build.get("dockerfile_inline", ""), re.MULTILINE):
                    for path in copied.split():
                        self.assertTrue(Path(build["context"], path).exists(), path)

    def test_each_setting_and_profile_that_is_named_exists(self):
        known = settings() | set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
        for variable in re.findall(r"`(STEPCAST_[A-Z0-9_]+)`", self.text):
            self.assertIn(variable, known)
        for profile in re.findall(r"--profile (\w+)", self.text):
            self.assertIn(profile, PROFILES)


if __name__ == "__main__":
    unittest.main()
