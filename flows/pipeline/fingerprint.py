"""The code as an input of the pipeline: one hash per stage. A change of the learner makes the stages run again.

A stage's fingerprint covers the version of its function (wbc_model/code_version.py), and the versions of the packages that its
result depends on. See docs/decisions/006.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from wbc_model.code_version import DIGITS, ROOT, code_version, package_version
from wbc_model.core.files import file_sha256, write_atomic
from wbc_model.params import read_params

_NUMERIC: Final = ("numpy", "pillow", "torch", "torchvision", "lightning-fabric", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Entry:
    """Where a stage's code starts: `module:function`, packages that it takes along whole (with the files in them that are no
    Python), and versions that matter."""

    function: str
    whole: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


STAGES: Final = {
    "validate": Entry("flows.pipeline.checks:validate", packages=("great-expectations", "jinja2", "numpy", "pandas", "pillow")),
    "train": Entry("flows.pipeline.stages:train", packages=(*_NUMERIC, "safetensors", "onnx", "lightly")),
    "evaluate": Entry("flows.pipeline.stages:evaluate", packages=(*_NUMERIC, "matplotlib")),
    "query": Entry("flows.pipeline.stages:query", packages=_NUMERIC),
    "package": Entry(
        "flows.pipeline.package:package", ("serving",), ("bentoml", "openvino", "nncf", "numpy", "pillow", "fastapi")
    ),
}

# What the gate decides by (flows/retraining/gate.py remembers its answers): no stage of the pipeline.
GATE: Final = (
    Entry("flows.retraining.gate:decide", packages=("numpy", "pandas", "scipy")),
    Entry("wbc_model.evaluation.evaluate:predict_directory", packages=_NUMERIC),
)


def fingerprint(entry: Entry, root: Path = ROOT) -> str:
    """Sixteen hex digits of an entry's code; `root` is the folder that holds `wbc_model`, `flows` and `serving`."""
    parts = [code_version(entry.function, root=root), *(package_version(package, root) for package in entry.whole)]
    parts += [_installed(package) for package in entry.packages]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:DIGITS]


def _installed(package: str) -> str:
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return f"{package} is not installed"


def write_fingerprints(workspace: Path) -> dict[str, str]:
    """Write `models/code.json`, the fingerprint of each stage, and the links by which DVC sees when these have changed. That of
    `train` covers the weights too that a training begins with: params.yaml names their file only."""
    from flows.pipeline.installed import link_code

    values = {stage: fingerprint(entry) for stage, entry in STAGES.items()}
    weights = read_params(workspace / "params.yaml").model.init_weights
    if weights and (workspace / weights).is_file():  # one that is missing is named when it is read
        content = values["train"] + file_sha256(workspace / weights)
        values["train"] = hashlib.sha256(content.encode()).hexdigest()[:DIGITS]
    link_code(workspace, (workspace / weights).resolve() if weights else None)
    write_atomic(workspace / "models/code.json", json.dumps(values, indent=2) + "\n")
    return values
