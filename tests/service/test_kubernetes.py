"""The Kubernetes manifests: valid by Kubernetes' own schemas, whole, and about the service and the image that there are."""

import os
import re
import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from live import ROOT, form, free_port, of_class, started
from test_bento import one

from flows.pipeline.package import build_bento
from serving.security.keys import add_key

FILES = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
MANIFESTS = [document for path in FILES for document in yaml.safe_load_all(path.read_text())]
PROMISED = {"wbc-keys", "wbc-store"}  # secrets, which the documents have one make


def named(kind: str) -> dict[str, Any]:
    [found] = [document for document in MANIFESTS if document["kind"] == kind]
    return dict(found)


POD = named("Deployment")["spec"]["template"]
[CONTAINER] = POD["spec"]["containers"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_valid_by_the_schemas_of_kubernetes(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, "1.34", strict=True)


def test_a_mistake_is_found() -> None:
    broken = yaml.safe_load((ROOT / "deploy/kubernetes/service.yaml").read_text())
    broken["spec"]["ports"][0]["portt"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.34", strict=True)


def test_all_of_them_are_about_the_same_pods() -> None:
    labels = POD["metadata"]["labels"]
    assert named("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert named("Service")["spec"]["selector"] == labels
    assert named("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert named("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    target = named("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", named("Deployment")["metadata"]["name"])
    assert "replicas" not in named("Deployment")["spec"], "the autoscaler has them"


def test_a_pod_may_do_as_little_as_the_image_needs() -> None:
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"]
    assert pod["runAsUser"] == int(one("USER").text)
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (POD["spec"]["automountServiceAccountToken"], POD["spec"]["enableServiceLinks"]) == (False, False)
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(CONTAINER["resources"]["limits"]) == set(CONTAINER["resources"]["requests"]) == {"cpu", "memory"}


def test_what_is_mounted_and_asked_is_there() -> None:
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == set(volumes)
    assert volumes["audit"]["persistentVolumeClaim"]["claimName"] == named("PersistentVolumeClaim")["metadata"]["name"]
    maps = [document["metadata"]["name"] for document in MANIFESTS if document["kind"] == "ConfigMap"]
    assert volumes["site"]["configMap"]["name"] in maps
    places = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert "/tmp" in places, "the image's XDG_CACHE_HOME is below it"  # noqa: S108
    assert "XDG_CACHE_HOME=/tmp" in one("ENV").text
    asked = {item["name"]: item for item in CONTAINER["env"]}
    for name in ("WBC_API_KEYS_FILE", "WBC_SITE_FILE", "WBC_AUDIT_LOG"):
        assert str(Path(asked[name]["value"]).parent) in places
    secrets = {
        item["valueFrom"]["secretKeyRef"]["name"] for item in asked.values() if "secretKeyRef" in item.get("valueFrom", {})
    }
    assert secrets | {volumes["keys"]["secret"]["secretName"]} == PROMISED
    assert all(secret in (ROOT / "docs/stack.md").read_text() for secret in PROMISED)


def test_every_variable_is_one_that_the_service_reads() -> None:
    documented = set(re.findall(r"^\| `(WBC_\w+)`", (ROOT / "docs/operation.md").read_text(), re.MULTILINE))
    assert {item["name"] for item in CONTAINER["env"]} - {"POD_NAME"} <= documented


def test_a_variable_is_there_before_another_one_names_it() -> None:
    """Kubernetes puts in the values of variables above. It leaves any other reference as it is, the same in each pod."""
    above: set[str] = set()
    for item in CONTAINER["env"]:
        assert set(re.findall(r"\$\((\w+)\)", item.get("value", ""))) <= above, item
        above.add(item["name"])


def test_the_probes_ask_what_the_service_answers_at_the_port_it_listens_on() -> None:
    command = one("CMD").words()
    [port] = CONTAINER["ports"]
    assert port["containerPort"] == int(command[command.index("--port") + 1])
    probes = [CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert [(probe["path"], probe["port"]) for probe in probes] == [("/livez", "http"), ("/livez", "http"), ("/readyz", "http")]
    [outside] = named("Service")["spec"]["ports"]
    assert outside["targetPort"] == port["name"]


def test_the_autoscaler_asks_for_a_metric_that_there_is_by_a_rule_that_finds_it() -> None:
    [metric] = named("HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f'"{name}"' in (ROOT / "serving/upkeep/metrics.py").read_text()
    [monitoring] = [one for one in MANIFESTS if one["metadata"]["name"] == "wbc-monitoring"]
    [rule] = yaml.safe_load(monitoring["data"]["adapter.yaml"])["rules"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(name + "{")
    scrape = yaml.safe_load(monitoring["data"]["prometheus.yml"])["scrape_configs"][0]
    labels = {config.get("target_label") for config in scrape["relabel_configs"]}
    assert set(rule["resources"]["overrides"]) <= labels
    keep = next(config for config in scrape["relabel_configs"] if "label_app" in config["source_labels"][0])
    assert keep["regex"] == POD["metadata"]["labels"]["app.kubernetes.io/name"]


@pytest.fixture(scope="module")
def bento(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bento(model_dir, tmp_path_factory.mktemp("build") / "bento")


@pytest.mark.slow
def test_the_bento_serves_as_a_pod_lets_it(bento: Path, tmp_path: Path) -> None:
    """On a read-only file system, as the pod's user, without a capability or a home; with the variables of the Deployment."""
    if any(Path(folder).is_relative_to("/tmp") for folder in (ROOT, sys.prefix)):  # noqa: S108
        pytest.skip("the project is below /tmp, which is an empty folder in a pod")
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        pytest.skip("a read-only file system of one's own needs root, unshare and setpriv")
    allowed = subprocess.run(["unshare", "--mount", "mount", "--make-rprivate", "/"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("this machine allows no file system of one's own (unshare --mount)")
    (tmp_path / "settings").mkdir()
    key = add_key(tmp_path / "settings/keys", "ward", ["classify", "admin"])
    [site] = [document for document in MANIFESTS if document["metadata"]["name"] == "wbc-site"]
    (tmp_path / "settings/site.yaml").write_text(site["data"]["site.yaml"])
    places = {"/run/secrets/wbc": "/srv/settings", "/etc/wbc": "/srv/settings", "/audit": "/srv/audit", "$(POD_NAME)": "wbc-1"}
    asked = {item["name"]: item["value"] for item in CONTAINER["env"] if "value" in item} | {"WBC_THREADS": "2"}
    for name, value in asked.items():
        asked[name] = reduce(lambda text, place: text.replace(*place), places.items(), value)
    path = os.pathsep.join(["/srv/bento/src", *(folder for folder in sys.path if folder.endswith("site-packages"))])
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "HOME": "/nonexistent", "XDG_CACHE_HOME": "/tmp/cache", **asked}  # noqa: S108
    port, pod = free_port(), POD["spec"]["securityContext"]
    python = str(Path(sys.executable).resolve())
    command = [python, *one("CMD").words()[1:]]
    command = [word.replace("3000", str(port)).replace("0.0.0.0", "127.0.0.1") for word in command]  # noqa: S104
    script = [str(Path(__file__).with_name("pod.sh")), str(bento), str(tmp_path / "settings"), sys.base_prefix]
    run = ["unshare", "--mount", "sh", *script, str(pod["runAsUser"]), *command]
    with started(run, port, tmp_path, variables, ROOT) as server:
        answer = httpx.post(
            f"{server.url}/v1/classify", files=form(of_class("Eosinophil")), headers={"X-API-Key": key}, timeout=30
        )
        assert answer.json()["results"][0]["label"] == "Eosinophil"
        metrics = httpx.get(f"{server.url}/metrics", headers={"X-API-Key": key}).text
        assert "wbc_images_in_flight 0.0" in metrics
        status = Path(f"/proc/{server.processes()[-1]}/status").read_text()
    assert re.search(rf"^Uid:\s+{pod['runAsUser']}\s", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^Cap(Eff|Bnd):\s+0+$", status, re.MULTILINE)
