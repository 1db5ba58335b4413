"""A new site with a few labels: those that `wbc onboard` asks for beside as many drawn at random, over seeds.

    python studies/onboard.py WORKSPACE SITE.csv [SITE.csv ...] --out studies/onboard [--seeds 5] [--labels 25] [--arms asked]

WORKSPACE holds the champion (or a candidate) and the pools that it learned from. It is not changed. The oracle knows all labels
of a site. The cells that were not asked for are the test. A run that was made already is not made again.
"""

import argparse
import functools
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from flows.sites.onboard import champion_of
from flows.studies.data import listing
from flows.studies.provenance import code_of
from flows.studies.results import RUNS, Rows, publishing
from flows.workspace import set_params
from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256
from wbc_model.core.model_card import read_card
from wbc_model.params import read_params

WBC = Path(sys.executable).parent / "wbc"
KEY = ("champion", "site", "arm", "seed", "labels")  # what names a run
# Labels drawn at random need no model to be drawn, so that one round is enough.
ARMS: dict[str, dict[str, str | int]] = {"asked": {}, "random": {"onboard.first_strategy": "random", "onboard.rounds": 1}}


def scratch_copy(workspace: Path, folder: Path, arm: str, seed: int) -> Path:
    """The workspace's pools, images and model under `folder`, with the arm's strategies and the seed."""
    copy = folder / "workspace"
    copy.mkdir()
    for name in ("data", "models", ".wbc/decoded"):  # decoded images too: they are the same in every run
        if (workspace / name).is_dir():
            shutil.copytree(workspace / name, copy / name)
    shutil.copy(workspace / "dvc.yaml", copy)
    shutil.copy(workspace / "params.yaml", copy)
    set_params(copy, {"seed": seed, **ARMS[arm]})
    return copy


def version_of(workspace: Path) -> str:
    """The version of the model that is adapted."""
    return read_card(champion_of(workspace)).version


def scores(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Accuracy, balanced accuracy, and the latter without basophils, of which a site may have three."""
    recalls = {name: one["recall"] for name, one in metrics["per_class"].items() if one["support"]}
    others = [recall for name, recall in recalls.items() if name != "Basophil"]
    return {
        f"{prefix}_n": metrics["n"],
        f"{prefix}_accuracy": metrics["accuracy"],
        f"{prefix}_balanced": sum(recalls.values()) / len(recalls),
        f"{prefix}_balanced_without_basophils": sum(others) / len(others),
    }


def run(workspace: Path, site: Path, arm: str, seed: int, labels: int) -> dict[str, Any]:
    """One onboarding: the numbers of a row of `runs.csv`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = scratch_copy(workspace, Path(folder), arm, seed)
        command = [WBC, "onboard", str(site.resolve()), "--labels", str(labels), "--json"]
        began = time.monotonic()
        answer = subprocess.run(command, cwd=copy, stdout=subprocess.PIPE, text=True, check=True)
        minutes = (time.monotonic() - began) / 60
    result = json.loads(answer.stdout)
    row: dict[str, Any] = {"minutes": round(minutes, 2)}
    row["max_home_loss"] = read_params(workspace / "params.yaml").onboard.max_home_loss
    row |= {f"recoloured_{whose}": share for whose, share in (result["shift"]["recoloured"] or {}).items()}
    for when in ("before", "statistics", "after"):
        for place, metrics in result[when].items():
            row |= scores(metrics, f"{when}_{place}")
    return row


def readme(runs: pd.DataFrame, notes: str) -> str:
    """README.md from the table, and what people noted in NOTES.md."""

    def cell(rows: pd.DataFrame, column: str) -> str:
        values = 100 * rows[column]
        return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values.mean():.1f}"

    head = "champion | site | labels | chosen | seeds | before | statistics | after | without basophils | home, before | after"
    lines = [f"| {head} |", "|" + "---|" * 11]
    for (champion, site, labels, arm), rows in runs.groupby(["champion", "site", "labels", "arm"], sort=False):
        columns = ["before_site_balanced", "statistics_site_balanced", "after_site_balanced"]
        columns += ["after_site_balanced_without_basophils"]
        columns += ["before_home_accuracy", "after_home_accuracy"]
        lines.append(f"| {champion} | {site} | {labels} | {arm} | {len(rows)} | {' | '.join(cell(rows, c) for c in columns)} |")
    text = (
        "# A new site with a few labels\n\n"
        "`python studies/onboard.py WORKSPACE SITE.csv ...`: balanced accuracy in per cent on the cells that were not asked\n"
        "for, mean ± standard deviation over seeds. Home is accuracy on the test pool. `statistics` is the champion with the\n"
        "site's own batch-norm statistics, without a label. Seeds change the cells that are asked for and the adaptation. They\n"
        "do not change the champion.\n\n"
    )
    return "\n".join([text + "\n".join(lines), *(["", notes.rstrip()] if notes else [])]) + "\n"


def depends_on(workspace: Path, site: Path, arm: str) -> list[Any]:
    """What the numbers of a row depend on beside the champion, the seed and the learner's code: that of onboarding, too."""
    pools = [file_sha256(path) for path in sorted((workspace / "data/pools").glob("*.csv"))]
    code = code_of("flows.sites.onboard:onboard")
    return [code, ARMS[arm], listing(site), file_sha256(workspace / "params.yaml"), pools]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("sites", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=25)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    given = parser.parse_args()
    arms = given.arms if given.labels else ["asked"]  # without labels there is nothing to draw
    done: list[dict[str, Any]] = []
    try:
        rows, version = Rows.open("onboard", given.out, KEY, ["README.md"]), version_of(given.workspace)
        notes = given.out / "NOTES.md"
        for seed, arm, site in itertools.product(range(given.seeds), arms, given.sites):
            named = dict(zip(KEY, (version, site.stem, arm, seed, given.labels), strict=True))
            make = functools.partial(run, given.workspace, site, arm, seed, given.labels)
            done.append({**named, **rows.once(named, depends_on(given.workspace, site, arm), make)})
            print(json.dumps(done[-1]), flush=True)
            table = rows.table(done)
            with publishing(given.out) as folder:
                table.to_csv(folder / RUNS, index=False)
                (folder / "README.md").write_text(readme(table, notes.read_text() if notes.exists() else ""))
    except WbcError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
