"""Building the Bento: a folder with the model, the service's code and the exact versions of what it needs, and nothing else.

Nothing is resolved here and no network is needed: the versions are those of serving/requirements.lock.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

import serving
import wbc_model
from wbc_model.core.errors import WbcError
from wbc_model.core.files import building
from wbc_model.core.model_card import CARD, INT8, ONNX, README, REFERENCE, WEIGHTS, ModelCard, read_card
from wbc_model.params import read_params

MODEL_FILES: Final = (WEIGHTS, ONNX, CARD, README)
REQUIREMENTS: Final = Path(str(serving.__file__)).parent / "requirements.lock"  # made by `make lock`
UNKNOWN_TIME: Final = "1970-01-01T00:00:00+00:00"
BENTO: Final = "build/bento"
PACKAGED_MODEL: Final = f"{BENTO}/src/model"  # the candidate as it is served


def package(workspace: Path) -> dict[str, Any]:
    """The stage `package`: the Bento of the candidate, in int8 where the service then answers as well: `build/bento`.

    What was found of int8 is in the Bento's `src/metrics.json`. It depends on no timing: the same workspace gives the same Bento.
    """
    if not (workspace / "models/candidate").is_dir():
        raise WbcError("there is no model in models/candidate to package: `wbc train` makes one, `dvc pull` brings one back")
    path = workspace / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory(prefix="wbc-package-") as name:
        model = Path(shutil.copytree(workspace / "models/candidate", Path(name) / "model"))  # the candidate stays as it is
        int8 = _quantised(workspace, model)
        uncalibrated = read_card(model, verify=False).uncalibrated
        build_bento(model, workspace / BENTO, {**metrics, "int8": int8})
    return {"int8": int8, "uncalibrated": uncalibrated, "wrote": [BENTO]}


def _quantised(workspace: Path, model: Path) -> dict[str, Any]:
    """Quantise the model directory where params.yaml wants it and the gate lets it; returns what was found."""
    if not read_params(workspace / "params.yaml").package.int8:
        return {"served": False, "reasons": ["package.int8 in params.yaml is false"]}
    from flows.pipeline.quantise import BATCH, CALIBRATION_CELLS, quantise, report, spread
    from flows.pipeline.stages import decoded_cells, usable_pools
    from wbc_model.evaluation.evaluate import label_indices

    card, pools = read_card(model), usable_pools(workspace).frames
    decoded = decoded_cells(workspace, card.input_size, card.view)
    validation, test = pools["validation"]["sha256"].tolist(), pools["test"]["sha256"].tolist()
    calibration = decoded.read(validation[spread(len(validation), CALIBRATION_CELLS)])
    return report(quantise(model, calibration, decoded.batches(test, BATCH), label_indices(pools["test"]["label"].tolist())))


def bento_version(model_dir: Path) -> str:
    """The Bento's version: 16 hexadecimal digits of the content of the model's files."""
    digest = hashlib.sha256()
    for name in MODEL_FILES:
        with (model_dir / name).open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def pinned_requirements() -> list[str]:
    """`name==version` of each package that the service needs, as serving/requirements.lock has them."""
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    return sorted(line for line in lines if line)


def build_bento(model_dir: Path, out: Path, metrics: dict[str, Any] | None = None) -> Path:
    """Build the Bento of a model directory and put it in the place of `out`; returns `out`.

    `metrics` (those of `wbc evaluate`) go into the Bento as `src/metrics.json`, the headline figures also as labels. The same
    model, code and lock give the same bytes. BentoML works in a process and a home of its own. So nothing stays in the user's
    Bento store, and what is imported while building is the copy in the Bento. Raises WbcError for a damaged model directory
    and when BentoML fails, with its last line.
    """
    card = read_card(model_dir)
    missing = [name for name in MODEL_FILES if not (model_dir / name).is_file()]
    if missing:
        raise WbcError(f"{model_dir}: {', '.join(missing)} is missing; train the model again")
    # Not beside `out`: BentoML refuses to build below a hidden folder.
    with tempfile.TemporaryDirectory(prefix="wbc-bento-") as name:
        source, home = Path(name) / "source", Path(name) / "home"
        _stage(source, model_dir, card, metrics)
        version = bento_version(model_dir)
        _run_bentoml(source, home, version)
        bento = home / "bentos" / "wbc" / version
        _settle(bento, card)
        with building(out) as temporary:
            shutil.copytree(bento, temporary, dirs_exist_ok=True)
    return out


def _stage(source: Path, model_dir: Path, card: ModelCard, metrics: dict[str, Any] | None) -> None:
    """Lay out what goes into the Bento: its `src` folder and the build file."""
    ignore, learner = shutil.ignore_patterns("__pycache__"), Path(str(wbc_model.__file__)).parent
    shutil.copytree(Path(str(serving.__file__)).parent, source / "serving", ignore=ignore)
    shutil.copytree(learner / "core", source / "wbc_model/core", ignore=ignore)
    shutil.copyfile(learner / "__init__.py", source / "wbc_model/__init__.py")
    (source / "model").mkdir()
    for name in (*MODEL_FILES, *(name for name in (*INT8, REFERENCE) if name in card.sha256)):
        shutil.copyfile(model_dir / name, source / "model" / name)
    shutil.copyfile(model_dir / README, source / README)
    if metrics is not None:
        (source / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    build = {
        "service": "serving.service:WbcService",
        "name": "wbc",
        "labels": _labels(card, metrics),
        "include": ["serving/", "wbc_model/", "model/", "metrics.json", README],
        "python": {"packages": pinned_requirements(), "lock_packages": False},
        "docker": {"python_version": f"{sys.version_info.major}.{sys.version_info.minor}"},
    }
    (source / "bentofile.yaml").write_text(yaml.safe_dump(build, sort_keys=False))


def _labels(card: ModelCard, metrics: dict[str, Any] | None) -> dict[str, str]:
    values = {"model": card.version, "pool": card.pool_version, "commit": card.git_commit, "rendered": str(card.rendered).lower()}
    values |= {"calibrated": "false"} if card.uncalibrated else {}
    headline = {name: (metrics or {}).get(name) for name in ("accuracy", "macro_f1")}
    values |= {name: f"{value:.4f}" for name, value in headline.items() if isinstance(value, float)}
    return {name: value for name, value in values.items() if value}


def _run_bentoml(source: Path, home: Path, version: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "BENTOML_", "WBC_"))}
    environment |= {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PYTHONDONTWRITEBYTECODE": "1"}
    home.mkdir()
    result = subprocess.run(
        [sys.executable, "-P", "-m", "bentoml", "build", "--version", version, "--output", "tag", str(source)],
        env=environment,
        cwd=source,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        raise WbcError(f"bentoml build failed: {lines[-1] if lines else f'exit code {result.returncode}'}")


def _settle(bento: Path, card: ModelCard) -> None:
    """Take the time of the build out of the Bento and put the model's in."""
    path = bento / "bento.yaml"
    text, count = re.subn(
        r"^creation_time: .*$", f"creation_time: '{card.created_at or UNKNOWN_TIME}'", path.read_text(), flags=re.MULTILINE
    )
    if count != 1:
        raise WbcError(f"{path}: this BentoML writes no creation_time; flows/pipeline/package.py must be brought up to date")
    path.write_text(text)
