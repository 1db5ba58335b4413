"""`wbc retrain`: the flow once, now, in this process."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.pipeline.dvc import check_git
from flows.pipeline.precision import slow_precision
from flows.progress import Progress
from flows.retraining.prefect_api import prefect_api
from flows.shards.cluster import check_runner
from flows.state import hold_lock
from flows.workspace import params_with
from wbc_model.cells.pools import Pools
from wbc_model.core.errors import counted
from wbc_model.params import check_paths

if TYPE_CHECKING:
    from flows.retraining.flow import Outcome


def retrain(workspace: Path, changes: dict[str, Any], commit: bool) -> "Outcome":
    """Begin a retraining, or go on with the one that was interrupted or waits; raises WbcError."""
    import os

    check_before(workspace, changes, commit)
    if line := slow_precision(params_with(workspace, changes)):
        Progress().say(line)
    own_server = "PREFECT_API_URL" not in os.environ
    with hold_lock(workspace), prefect_api(workspace):
        from flows.retraining.flow import retrain_flow

        return retrain_flow(workspace, changes, commit, own_server)


def check_before(workspace: Path, changes: dict[str, Any] | None = None, commit: bool = False) -> None:
    """Raises WbcError where a retraining with these `changes` of params.yaml could not come to its end: nothing starts then."""
    params = params_with(workspace, changes or {})
    check_paths(params, workspace, fills_pools=not Pools.exist(workspace / "data/pools"))
    check_git(workspace, commit)
    check_runner(params.retrain)


def outcome_text(outcome: "Outcome") -> str:
    """The gate's word, or what people are waited for, and what was written; each cycle was a line on stderr when it ended."""
    lines = _gate_lines(outcome.gate) if outcome.gate else []
    if outcome.status == "waiting":
        lines += [outcome.next_step, *([outcome.gain["text"]] if outcome.gain else [])]
    if outcome.came:
        lines.append(f"{counted(outcome.came, 'label')} came while the model was trained: the next round begins with them")
    lines += [f"learning curve: {outcome.learning_curve}", f"wrote {', '.join(outcome.wrote)}"]
    return "\n".join([*lines, *(_ways_to_label(outcome) if outcome.status == "waiting" else [])])


def _ways_to_label(outcome: "Outcome") -> list[str]:
    cells, page = counted(outcome.awaited, "cell"), f"on the page /label of the service ({_service(outcome)})"
    files = "`wbc labels export FILE.csv` (.json for Label Studio), then `wbc labels import FILE`"
    return [f"next: people label {cells}: {page},", f"      or in files: {files}"] if outcome.awaited else []


def _service(outcome: "Outcome") -> str:
    """How the service is started that shows the page; before the first champion it serves the model that asks."""
    return "`wbc serve`" if (Path(outcome.workspace) / "models/champion").is_dir() else "`wbc serve --model models/candidate`"


def _gate_lines(said: dict[str, Any]) -> list[str]:
    """The gate's word, and below it each reason, what a person is asked, and how often the test pool was asked before."""
    promoted = "the champion stays" if said["in_place"] else "promoted to champion"
    more = [*said["reasons"], *filter(None, [said["question"], said["fresh"]])]
    more.append(f"earlier comparisons of models on test pool {said['test_pool']}: {said['asked_before']}")
    return [f"gate: {promoted if said['promoted'] else 'not promoted'}", *(f"      {line}" for line in more)]
