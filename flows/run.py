"""`wbc retrain`: the flow once, now, in this process; and the registry as `wbc champion` shows it."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.prefect_api import prefect_api
from flows.state import hold_lock
from flows.workspace import params_with
from wbc_model.card import read_card
from wbc_model.errors import WbcError
from wbc_model.params import check_paths, read_params
from wbc_model.pools import Pools

if TYPE_CHECKING:
    from flows.retrain import Outcome


def retrain(workspace: Path, changes: dict[str, Any], commit: bool) -> "Outcome":
    """Begin a retraining, or go on with the one that was interrupted or waits; raises WbcError."""
    import os

    check_before(workspace, changes)
    own_server = "PREFECT_API_URL" not in os.environ
    with hold_lock(workspace), prefect_api(workspace):
        from flows.retrain import retrain_flow

        return retrain_flow(str(workspace), changes, commit, own_server)


def check_before(workspace: Path, changes: dict[str, Any] | None = None) -> None:
    """Raises WbcError where a retraining with these `changes` of params.yaml could not come to its end: nothing starts then."""
    params = params_with(workspace, changes or {})
    check_paths(params, workspace, fills_pools=not Pools.exist(workspace / "data/pools"))


def outcome_text(outcome: "Outcome") -> str:
    """The table of cycles, the gate's word and what was written, for a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("cycle", "labels", "accuracy", "macro-F1", "seconds", "pools")
    for row in outcome.cycles:
        scores = [f"{row['accuracy']:.2%}", f"{row['macro_f1']:.2%}", f"{row['seconds']:.1f}"]
        table.add_row(str(row["cycle"]), str(row["labels"]), *scores, str(row["pools"]))
    buffer = io.StringIO()
    Console(file=buffer, width=100).print(table)
    lines = [buffer.getvalue().rstrip()]
    if outcome.status == "waiting":
        lines.append(
            f"{outcome.awaited} labels are awaited. `wbc labels export FILE.csv` (or .json for Label Studio) writes the cells, "
            "`wbc labels import FILE` takes the labels in, then `wbc retrain` goes on."
        )
    if outcome.gate:
        word = "promoted to champion" if outcome.gate["promoted"] else "not promoted"
        lines.append(f"gate: {word}: {outcome.gate['reason']}")
        before = outcome.gate["asked_before"]
        often = {0: "never asked before", 1: "asked once before"}.get(before, f"asked {before} times before")
        lines.append(f"      test pool {outcome.gate['test_pool']} was {often}")
    return "\n".join([*lines, f"learning curve {outcome.learning_curve}", f"wrote {', '.join(outcome.wrote)}"])


def champions(workspace: Path) -> dict[str, Any]:
    """The registered models, newest first, with their aliases and the gate's reason."""
    from flows.tracking import open_tracker

    tracker = open_tracker(workspace, read_params(workspace / "params.yaml"))
    aliases = {name: tracker.alias(name) for name in ("champion", "challenger")}
    versions = [
        {
            "version": str(version.version),
            "model": version.tags.get("wbc.model", ""),
            "aliases": [name for name, pointed in aliases.items() if pointed == str(version.version)],
            "decision": version.tags.get("wbc.gate", ""),
            "reason": version.tags.get("wbc.gate.reason", ""),
        }
        for version in tracker.versions()
    ]
    return {"champion": aliases["champion"], "versions": versions}


def roll_back(workspace: Path) -> dict[str, Any]:
    """Make the champion before the present one the champion again; raises WbcError where there is none."""
    from flows.tracking import open_tracker

    tracker = open_tracker(workspace, read_params(workspace / "params.yaml"))
    with hold_lock(workspace):
        present = tracker.alias("champion")
        if present is None:
            raise WbcError("there is no champion to go back from")
        before = tracker.client.get_model_version(tracker.model_name, present).tags.get("wbc.gate.before")
        if before is None:
            raise WbcError(f"version {present} was the first champion: there is none before it")
        tracker.fetch(before, workspace / "models/champion")
        tracker.set_alias("champion", before)
        tracker.tag_version(present, {"wbc.gate.rolled_back": "yes"})
    model = read_card(workspace / "models/champion").version
    return {**champions(workspace), "rolled_back": {"from": present, "to": before, "model": model}, "wrote": ["models/champion"]}
