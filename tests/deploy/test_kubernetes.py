"""The manifests as Kubernetes would get them: valid by its schemas and the operators', and true to the service."""

from __future__ import annotations

import copy
import re
import runpy
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pydantic
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from fastapi.testclient import TestClient

from service.api.admin import create_admin_app
from service.processes.state_metrics import worker_metrics
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.programs import require_program

PROJECT = Path(__file__).parents[2]
KUBERNETES = PROJECT / "deploy" / "kubernetes"
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
OVERLAYS = ("cpu", "gpu")
# The oldest that is meant to work, and the newest known.
VERSIONS = ("1.27", kubernetes_validate.latest_version())
CUSTOM: Mapping[str, type[pydantic.BaseModel]] = {
    model.__name__: model for model in (ScaledObject, PrometheusRule, ServiceMonitor)
}
# Read by libraries, not by the settings.
FOREIGN_VARIABLES = {"HF_HUB_OFFLINE", "HF_TOKEN", "NVIDIA_DRIVER_CAPABILITIES"}
# In which the supervisor kills what is late, one kind of process after the other.
OVERDUE_SECONDS = 15

Manifest = Any

both = pytest.mark.parametrize("overlay", OVERLAYS)


def render(folder: Path) -> list[Manifest]:
    ended = subprocess.run(
        [require_program("kubectl"), "kustomize", folder], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr, "kustomize warns of something deprecated"
    return list(yaml.safe_load_all(ended.stdout))


@cache
def rendered(overlay: str) -> list[Manifest]:
    return render(KUBERNETES / "overlays" / overlay)


def the(manifests: list[Manifest], kind: str, name: str = "titok") -> Manifest:
    [found] = [one for one in manifests if (one["kind"], one["metadata"]["name"].partition("-")[0]) == (kind, name)]
    return found


def container(manifests: list[Manifest]) -> Manifest:
    [found] = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return found


def without_newer_fields(manifest: Manifest) -> Manifest:
    """The schema is that of KEDA 2.16; a fallback has a behavior since 2.17."""
    copied = copy.deepcopy(manifest)
    if manifest["kind"] == "ScaledObject":
        assert copied["spec"]["fallback"].pop("behavior") in ("static", "currentReplicas", "currentReplicasIfHigher")
    return copied


def check(manifest: Manifest) -> None:
    """By the published schemas, which know every field."""
    if model := CUSTOM.get(manifest["kind"]):
        # What the model does not know, it drops.
        known = model.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert known == without_newer_fields(manifest)
    else:
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.fixture(scope="module")
def with_adapter(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """What the page on deployment tells those to change who have no KEDA."""
    folder = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(KUBERNETES, folder)
    overlay = folder / "overlays" / "cpu" / "kustomization.yaml"
    changed = overlay.read_text().replace("components/keda", "components/prometheus-adapter")
    assert changed != overlay.read_text()
    overlay.write_text(changed)
    return render(overlay.parent)


def with_component(name: str, folder: Path) -> list[Manifest]:
    """An overlay on top of one that there is, with one more component."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    own = folder / "kubernetes" / "overlays" / "own" / "kustomization.yaml"
    own.parent.mkdir()
    own.write_text(yaml.safe_dump({"resources": ["../cpu"], "components": [f"../../components/{name}"]}))
    return render(own.parent)


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return with_component("keys-file", tmp_path_factory.mktemp("keys"))


@both
def test_every_manifest_is_valid(overlay: str) -> None:
    for manifest in rendered(overlay):
        check(manifest)


def test_every_manifest_is_valid_with_prometheus_adapter(with_adapter: list[Manifest]) -> None:
    for manifest in with_adapter:
        check(manifest)


@pytest.mark.parametrize(
    ("kind", "place"),
    [("Deployment", ("spec", "template", "spec")), ("ScaledObject", ("spec",)), ("ServiceMonitor", ("spec",))],
)
def test_a_field_that_nobody_knows_is_found(kind: str, place: tuple[str, ...]) -> None:
    manifest = yaml.safe_load(yaml.safe_dump(the(rendered("cpu"), kind)))
    part = manifest
    for name in place:
        part = part[name]
    part["replicaz"] = 2
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check(manifest)


@both
def test_probes_ask_the_admin_application_for_what_it_answers(overlay: str) -> None:
    async def health() -> Mapping[str, Any]:
        return {"status": "ready", "reason": None}

    async def exposition() -> bytes:
        return b""

    pod = container(rendered(overlay))
    ports = {port["name"]: port["containerPort"] for port in pod["ports"]}
    defaults = Settings()
    assert ports == {"http": defaults.port, "admin": defaults.admin_port}
    monitor = the(rendered(overlay), "ServiceMonitor")["spec"]["endpoints"][0]
    with TestClient(create_admin_app(health, exposition)) as client:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = pod[probe]["httpGet"]
            assert asked["port"] == "admin"
            assert client.get(asked["path"]).status_code == 200
        assert client.get(monitor["path"]).status_code == 200
    # A service that cannot work for a while is left alone, not restarted.
    assert pod["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert pod["readinessProbe"]["httpGet"]["path"] == "/readyz"


@both
def test_every_variable_is_a_setting_and_the_combination_is_valid(
    overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = rendered(overlay)
    pod = container(manifests)
    given = dict(the(manifests, "ConfigMap")["data"])
    secret = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in pod["env"] if "valueFrom" in entry}
    names = {*given, *(entry["name"] for entry in pod["env"])} - FOREIGN_VARIABLES
    assert names <= {f"TITOK_{name.upper()}" for name in Settings.model_fields}
    # A pod without a Redis is slower, one without its keys would be open to everybody.
    assert {name for name, reference in secret.items() if not reference.get("optional")} == {"TITOK_API_KEYS"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert "TITOK_API_KEYS" not in given
    assert set(Settings().model_fields_set) >= {name.removeprefix("TITOK_").lower() for name in given}


def test_the_keys_file_is_a_required_secret_that_is_reloaded(with_keys: list[Manifest]) -> None:
    for manifest in with_keys:
        check(manifest)
    pod = the(with_keys, "Deployment")["spec"]["template"]["spec"]
    [one] = pod["containers"]
    variables = {entry["name"]: entry for entry in one["env"]}
    path = Path(variables["TITOK_API_KEYS_FILE"]["value"])
    [mount] = [mount for mount in one["volumeMounts"] if mount["mountPath"] == str(path.parent)]
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    assert mount["readOnly"]
    assert "subPath" not in mount, "a file mounted alone does not change when the secret does"
    assert volume["secret"] == {"secretName": "titok-keys", "defaultMode": 0o440}, "it must not be optional"
    # Its group may read it, which is the pod's.
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    assert variables["TITOK_API_KEYS"]["valueFrom"]["secretKeyRef"]["optional"]
    before = container(rendered("cpu"))
    assert len(one["env"]) == len(before["env"]) + 1
    assert one["volumeMounts"] == [mount, *before["volumeMounts"]]


def test_weights_are_pulled_once_onto_a_volume_that_pods_share(tmp_path: Path) -> None:
    manifests = with_component("weights-volume", tmp_path)
    for manifest in manifests:
        check(manifest)
    pod = the(manifests, "Deployment")["spec"]["template"]["spec"]
    [first], [served] = pod["initContainers"], pod["containers"]
    assert (first["image"], first["args"]) == (served["image"], ["pull"])
    assert first["envFrom"] == served["envFrom"], "it pulls what the settings of the service name"
    assert first["securityContext"] == served["securityContext"]
    claim = the(manifests, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "weights"]
    assert volume == {"name": "weights", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
    mounts = [next(m for m in one["volumeMounts"] if m["name"] == "weights") for one in (first, served)]
    assert [(mount["mountPath"], mount.get("readOnly", False)) for mount in mounts] == [
        ("/weights", False),
        ("/weights", True),
    ]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in served["env"]


@both
def test_documented_features_are_not_cut_off_by_the_network_policy(overlay: str) -> None:
    egress = the(rendered(overlay), "NetworkPolicy")["spec"]["egress"]
    ports = {port["port"] for rule in egress for port in rule["ports"]}
    # DNS, HTTPS, Redis (plain, TLS, Sentinel), OTLP (gRPC, HTTP).
    assert ports == {53, 443, 6379, 6380, 26379, 4317, 4318}


@both
def test_the_admin_port_is_reached_from_outside_the_pod(overlay: str) -> None:
    assert the(rendered(overlay), "ConfigMap")["data"]["TITOK_ADMIN_HOST"] == "0.0.0.0"  # noqa: S104


@both
def test_the_grace_period_covers_delay_and_drain(overlay: str) -> None:
    manifests = rendered(overlay)
    data = the(manifests, "ConfigMap")["data"]
    program, seconds = container(manifests)["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    needed = int(seconds) + float(data["TITOK_SHUTDOWN_DELAY"]) + float(data["TITOK_DRAIN_SECONDS"]) + OVERDUE_SECONDS
    assert the(manifests, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= needed
    # What was accepted may take until its deadline, and readiness is seen to be down before connections are refused.
    assert float(data["TITOK_DRAIN_SECONDS"]) >= Settings().request_timeout
    readiness = container(manifests)["readinessProbe"]
    assert float(data["TITOK_SHUTDOWN_DELAY"]) >= readiness["periodSeconds"] * readiness["failureThreshold"]


@both
def test_a_pod_runs_without_root_and_writes_only_to_its_two_volumes(overlay: str) -> None:
    pod = the(rendered(overlay), "Deployment")["spec"]["template"]["spec"]
    [user] = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    [one] = pod["containers"]
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    [weights] = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    mounts = {mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]}
    assert set(mounts) == {tempfile.gettempdir(), weights}
    assert {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume} == set(mounts.values())


@both
def test_everything_that_selects_pods_or_services_selects_these(overlay: str) -> None:
    manifests = rendered(overlay)
    deployment = the(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    services = [one for one in manifests if one["kind"] == "Service"]
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        the(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(constraint["labelSelector"]["matchLabels"] for constraint in spread),
        *(service["spec"]["selector"] for service in services),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    monitor = the(manifests, "ServiceMonitor")["spec"]
    [monitored] = [s for s in services if monitor["selector"]["matchLabels"].items() <= s["metadata"]["labels"].items()]
    assert [port["name"] for port in monitored["spec"]["ports"]] == [monitor["endpoints"][0]["port"]] == ["admin"]
    # The rules of deploy/prometheus ask for this job.
    assert monitored["metadata"]["labels"][monitor["jobLabel"]] == "titok"


@both
def test_the_admin_port_is_for_the_monitoring_namespace_alone(overlay: str) -> None:
    manifests = rendered(overlay)
    rules = the(manifests, "NetworkPolicy")["spec"]["ingress"]
    assert [[port["port"] for port in rule["ports"]] for rule in rules] == [["http"], ["admin"]]
    assert rules[1]["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    ]
    [public] = [s for s in manifests if s["kind"] == "Service" and s["metadata"]["name"] == "titok"]
    assert [port["targetPort"] for port in public["spec"]["ports"]] == ["http"]


@both
def test_the_autoscaler_queries_existing_metrics_and_owns_the_number_of_replicas(overlay: str) -> None:
    manifests = rendered(overlay)
    deployment, scaler = the(manifests, "Deployment"), the(manifests, "ScaledObject")
    assert scaler["spec"]["scaleTargetRef"] == {"name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["minReplicaCount"] >= 2
    fallback = scaler["spec"]["fallback"]
    assert fallback["replicas"] >= scaler["spec"]["minReplicaCount"]
    for trigger in scaler["spec"]["triggers"]:
        # Otherwise KEDA takes no data for 0, and has no fallback.
        assert (trigger["metadata"]["ignoreNullValues"], trigger["metricType"]) == ("false", "AverageValue")
        query = trigger["metadata"]["query"]
        assert set(re.findall(r"titok_\w+", query)) <= told()
        assert "vector(0)" not in query
        assert set(re.findall(r'namespace="(\w+)"', query)) == {deployment["metadata"]["namespace"]}
    assert not [one for one in manifests if one["kind"] == "HorizontalPodAutoscaler"]


def told() -> set[str]:
    """Names of series."""
    families = (*Metrics().registry.collect(), *worker_metrics({}))
    return {
        family.name + suffix
        for family in families
        for suffix in {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(family.type, ("",))
    }


def test_prometheus_adapter_serves_what_its_autoscaler_asks_for_by_the_queries_of_keda(
    with_adapter: list[Manifest],
) -> None:
    served = {
        rule["name"]["as"]: rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"])
        for rule in yaml.safe_load((KUBERNETES / "components" / "prometheus-adapter" / "rules.yaml").read_text())[
            "rules"
        ]["external"]
    }
    scaler, keda = the(with_adapter, "HorizontalPodAutoscaler")["spec"], the(rendered("cpu"), "ScaledObject")["spec"]
    asked = [metric["external"]["metric"]["name"] for metric in scaler["metrics"]]
    queries = [
        trigger["metadata"]["query"].replace('namespace="titok"', "<<.LabelMatchers>>") for trigger in keda["triggers"]
    ]
    assert [served[name] for name in asked] == queries
    assert scaler["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert not [one for one in with_adapter if one["kind"] == "ScaledObject"]


def test_the_prometheus_rule_has_the_rules_of_prometheus() -> None:
    code = runpy.run_path(str(KUBERNETES / "prometheus_rule.py"))
    assert code["PATH"].read_text() == code["document"](), "run: make docs"


@both
def test_a_pod_has_memory_and_cpu_limits(overlay: str) -> None:
    resources = container(rendered(overlay))["resources"]
    # The service takes as many threads as its quota allows, so that it has to have one.
    assert resources["limits"]["cpu"] == resources["requests"]["cpu"]
    assert {"cpu", "memory"} <= set(resources["limits"])


def test_the_gpu_overlay_takes_a_gpu_and_the_other_runs_anywhere() -> None:
    cpu, gpu = (the(rendered(overlay), "Deployment")["spec"] for overlay in OVERLAYS)
    assert container(rendered("gpu"))["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["template"]["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert "nvidia.com/gpu.present" in gpu["template"]["spec"]["nodeSelector"]
    assert not {"nodeSelector", "tolerations"} & set(cpu["template"]["spec"])
    devices = [the(rendered(overlay), "ConfigMap")["data"]["TITOK_DEVICES"] for overlay in OVERLAYS]
    assert devices == ["cpu", "cuda"]
