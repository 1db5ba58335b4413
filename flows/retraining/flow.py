"""The retraining flow: validate, train, evaluate, query, label, cycle by cycle, then the gate. One Prefect task per stage.

Every task may be repeated. DVC does not run a stage again whose inputs have not changed. A label is taken in once. An MLflow run
is found again by its tags. That is what makes a flow that was killed go on where it was (flows.state).

Import this only where Prefect's settings are in the environment already (flows.retraining.prefect_api); `wbc retrain` is
flows.retraining.run.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

import pandas as pd
from prefect import flow, get_run_logger, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.runtime import task_run

from flows import labels
from flows.away import mlflow_answering
from flows.descriptions import curve_table, gate_note, model_note
from flows.identity import workspace_name
from flows.labelling.worth import gain_tags
from flows.notify import announce
from flows.pipeline import dvc as versioning
from flows.pipeline.dvc import PoolsVersion, StageFailed
from flows.pipeline.installed import relink
from flows.pipeline.package import PACKAGED_MODEL
from flows.progress import TRAINING_LINE, Progress, TrainingRows
from flows.registry import scores
from flows.registry.champion import follow
from flows.registry.curve import CURVE_CSV, CURVE_PNG, CYCLES, SCORED, SIZE, begin_record, note_cycle, scored_cells, write_curve
from flows.registry.verdicts import objection
from flows.retraining import gate, people
from flows.retraining.artifacts import ProgressBar, show_cycle, show_gate, show_waiting
from flows.retraining.fresh_cells import note_cells, wear
from flows.retraining.prefect_api import (
    await_server,
    end_dead_runs,
    gpu_slot,
    open_limit,
    retraining_flow,
    run_name,
)
from flows.shards.prefect_tasks import spread_in_flow
from flows.state import State, hold_lock, last_cycle, note_learned, params_name, read_state
from flows.tracking import BEFORE, COMMIT, packaged_digest
from flows.workspace import gone_line, narrow_query, note_after_cycle, set_params
from wbc_model.cells.pools import Pools, check_present
from wbc_model.cells.rejections import quarantined
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import write_atomic
from wbc_model.core.model_card import WEIGHTS, read_card
from wbc_model.params import RENDERED, Params, check_paths, read_params

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State as RunState
    from prefect.client.schemas.objects import TaskRun
    from prefect.tasks import Task

    from flows.tracking import Tracker

P = ParamSpec("P")
R = TypeVar("R")
GATE_NOTE = "models/gate.json"


@dataclass
class Outcome:
    """What a retraining came to. `awaited` labels of people are missing where it waits; `gate` is the gate's decision."""

    workspace: str
    key: str
    status: str
    cycles: list[dict[str, Any]] = field(default_factory=list)
    awaited: int = 0
    next_step: str = ""  # what happens next, and by whom, where it waits
    gain: dict[str, Any] | None = None  # what the labels are expected to gain that it waits for
    came: int = 0  # labels that came too late for the last training: the next begins with them
    gate: dict[str, Any] | None = None
    learning_curve: str = ""
    wrote: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(vars(self))


class Context:
    """What the tasks of one retraining share. Not a dataclass: Prefect looks into those and hands copies on."""

    by_itself = False  # a deployment's run: nobody has to type anything for it to go on

    def __init__(self, workspace: Path, state: State, params: Params, lock: int, progress: Progress, tracker: "Tracker") -> None:
        self.workspace, self.state, self.params, self.lock = workspace, state, params, lock
        self.progress, self.tracker = progress, tracker
        self.parent_run = tracker.retraining(state.key, params)

    @property
    def number(self) -> int:
        """The number of the present cycle, counted over all retrainings."""
        return self.state.after_cycle + self.state.cycle

    def log(self, name: str) -> Path:
        return self.workspace / f".wbc/logs/{self.state.key}/{self.state.cycle:02d}-{name}.log"


def _transient(task: "Task[..., Any]", run: "TaskRun", state: "RunState[Any]") -> bool:
    """Whether a failed task is worth another attempt: not when it has told the user what to do."""
    try:
        state.result()
    except StageFailed:
        return True
    except Exception:  # noqa: BLE001 - whatever else it was, Prefect raises it to us
        return False
    return False


def _task_name() -> str:
    """The stage, and the cycle that it is of."""
    ctx = (task_run.parameters or {}).get("ctx")
    return f"{task_run.task_name}, cycle {ctx.number}" if isinstance(ctx, Context) else str(task_run.task_name)


@dataclass(frozen=True)
class Step(Generic[P, R]):
    """A Prefect task that first waits for a shared server that is away."""

    task: "Task[P, R]"

    def __call__(self, *given: P.args, **named: P.kwargs) -> R:
        await_server(next((one.progress.say for one in given if isinstance(one, Context)), Progress().say))
        return cast(Callable[P, R], self.task)(*given, **named)


def _step(name: str) -> Callable[[Callable[P, R]], Step[P, R]]:
    """A step that is repeated after transient failures only."""

    def decorate(body: Callable[P, R]) -> Step[P, R]:
        made = task(
            name=name,
            task_run_name=_task_name,
            retries=2,
            retry_delay_seconds=[2.0, 10.0],
            retry_condition_fn=_transient,
            cache_policy=NO_CACHE,
        )
        return Step(cast("Task[P, R]", made(body)))

    return decorate


@contextlib.contextmanager
def _gpu(ctx: Context) -> Iterator[None]:
    """Have the one slot of the GPU (or, without one, of this machine's cores)."""
    with gpu_slot(ctx.progress.say):
        yield


# --- the tasks -----------------------------------------------------------------------------------------------------------


@_step("fill_pools")
def fill_pools(workspace: Path, progress: Progress) -> None:
    """Fill empty pools from params.data.source."""
    from wbc_model.acquisition.queue import first_query
    from wbc_model.cells.ingest import ingest
    from wbc_model.rendering.cells import write_cells
    from wbc_model.sources.opened import open_source

    params = read_params(workspace / "params.yaml")
    check_paths(params, workspace, fills_pools=True)
    source = params.data.source
    if source == RENDERED:
        progress.say(f"the pools are empty: drawing {params.data.rendered_cells} cells (rendered, not real)")
        data = write_cells(workspace / ".wbc/rendered", params.data.rendered_cells, params.seed)
        report = ingest(data, workspace / "data", params, source=RENDERED, first_query=first_query)
    else:
        address = source if "://" in source else str(workspace / source)
        progress.say(f"the pools are empty: ingesting {address}")
        with open_source(address) as origin:
            report = ingest(origin, workspace / "data", params, first_query=first_query)
    if report.rejections:
        progress.say(f"not in use: {counted(len(report.rejections), 'row')}, see data/rejected.csv")


@_step("version_pools")
def version_pools(ctx: Context) -> PoolsVersion:
    """Version the pools with DVC: the version that every stage of the cycle works on and is recorded under."""
    came = _from_the_page(ctx) + labels.take_waiting(ctx.workspace)
    if came:
        ctx.progress.say(f"{counted(came, 'label')} came in the meantime: this cycle begins with them")
    return versioning.version_pools(ctx.workspace, (ctx.lock,))


@_step("code")
def fingerprint_code(ctx: Context) -> None:
    """Bring models/code.json up to date, on which the stages depend."""
    relink(ctx.workspace)  # `wbc schedule` has been up for a while
    versioning.repro(ctx.workspace, "code", ctx.log("code"), (ctx.lock,))


@_step("validate")
def validate(ctx: Context) -> bool:
    """The stage `validate`."""
    return versioning.repro(ctx.workspace, "validate", ctx.log("validate"), (ctx.lock,)).ran


@_step("train")
def train(ctx: Context, run: str, version: PoolsVersion, doing: Callable[[str], None]) -> bool:
    """The stage `train`; `doing` shows how far it is. The cycle's MLflow run shows the training's curve and this machine's load
    meanwhile.

    DVC notes a stage's inputs when the stage has ended. Where they had become others by then, it takes the candidate for made of
    what it was not made of; the candidate's own card knows, and it is trained again.
    """

    rows = TrainingRows(ctx.workspace)

    def heard(line: str) -> None:
        if TRAINING_LINE.match(line):
            doing(f"training, {line}")
            ctx.progress.log(f"training, {line}")
        if found := rows.new():
            ctx.tracker.show_history(run, found)

    with _gpu(ctx), ctx.tracker.system_metrics(run):
        ran = versioning.repro(ctx.workspace, "train", ctx.log("train"), (ctx.lock,), heard).ran
        if read_card(ctx.workspace / "models/candidate", verify=False).pool_version == version.version:
            return ran
        return versioning.repro(ctx.workspace, "train", ctx.log("train"), (ctx.lock,), heard, force=True).ran


@_step("evaluate")
def evaluate(ctx: Context) -> dict[str, Any]:
    """The stage `evaluate`; returns metrics.json."""
    with _gpu(ctx):
        versioning.repro(ctx.workspace, "evaluate", ctx.log("evaluate"), (ctx.lock,))
    return dict(json.loads((ctx.workspace / "metrics.json").read_text()))


@_step("query")
def query(ctx: Context) -> int:
    """The stage `query`; returns how many cells it asks about. DVC removes the queue before: one that was filled in is kept."""
    people.note_nameless(ctx.workspace)
    if (kept := labels.keep_edited_queue(ctx.workspace)) is not None:
        ctx.progress.say(f"data/queue.csv was filled in and is {kept.name} now: `wbc labels import {kept}` takes its labels in")
    with _gpu(ctx):
        versioning.repro(ctx.workspace, "query", ctx.log("query"), (ctx.lock,))
    return len(labels.read_queue(ctx.workspace))


@_step("package")
def package(ctx: Context) -> bool:
    """The stage `package`: the last candidate as a Bento, quantised where that is as good."""
    with _gpu(ctx):
        return versioning.repro(ctx.workspace, "package", ctx.log("package"), (ctx.lock,)).ran


@_step("label")
def label(ctx: Context) -> bool:
    """Have the queue answered by the oracle; returns whether the retraining can go on.

    The answers are noted before the first is taken in: a round that was killed half answered is finished first.
    """
    state = ctx.state
    if state.answers is None:
        answers = labels.oracle_answers(ctx.workspace, labels.read_queue(ctx.workspace))
        if answers.empty:
            return False
        state.answers = [{str(name): str(value) for name, value in row.items()} for row in answers.to_dict("records")]
        state.write(ctx.workspace)
    labels.record(ctx.workspace, pd.DataFrame(state.answers), state.label_cycle)
    state.answers = None
    state.cycle += 1
    state.write(ctx.workspace)
    return True


@_step("take_answers")
def take_answers(ctx: Context) -> None:
    """Take in what people have answered since: in the store of the service, and by files that waited."""
    _from_the_page(ctx)
    labels.take_waiting(ctx.workspace)


def _from_the_page(ctx: Context) -> int:
    """Take what people agreed on in the store of the service; returns how many answers were new. A store that cannot be reached
    stops no training: its answers come to the next round."""
    try:
        came = people.take(ctx.workspace)
    except WbcError as error:
        ctx.progress.say(f"the people's answers were not looked at: {error}")
        return 0
    if came.line:
        ctx.progress.say(came.line)
    return came.new


@_step("ask_people")
def ask_people(ctx: Context) -> people.Standing:
    """Publish the queue to the store of the service, where the page asks people; once for each round."""
    return people.ask(ctx.workspace, ctx.state, ctx.params, ctx.by_itself)


@_step("log_cycle")
def log_cycle(ctx: Context, run: str, version: PoolsVersion, metrics: dict[str, Any], seconds: float) -> None:
    """Note the finished cycle: state, learning curve, MLflow, commit."""
    from flows.tracking import CycleRecord

    state, workspace = ctx.state, ctx.workspace
    pools = Pools.read(workspace / "data/pools")
    count = len(pools.without(quarantined(workspace / "data")).frames["labelled"])
    row = {
        "cycle": ctx.number,
        "labels": count,
        "accuracy": metrics["accuracy"],
        "macro_f1": metrics["macro_f1"],
        "seconds": round(seconds, 1),
        "pools": version.name,
        "labelled": len(pools.frames["labelled"]),
        "strategy": ctx.params.acquisition.strategy,
        "metrics": metrics,
        SIZE: {"preset": ctx.params.preset, **ctx.params.size.model_dump(exclude={"precision"})},
        SCORED: scored.model_dump() if (scored := scored_cells(workspace)) else None,
        "at": int(time.time() * 1000),
    }
    known = [old for old in state.rows if old["cycle"] == row["cycle"]]
    if known:  # a cycle that was noted before it was killed keeps its time
        row |= {"seconds": known[0]["seconds"], "at": known[0]["at"]}
    state.rows = [old for old in state.rows if old["cycle"] != row["cycle"]] + [row]
    state.write(workspace)
    if write_curve(workspace, note_cycle(workspace, state.key, row)) or ctx.tracker.has_tag(scores.RUN_MARK):
        scores.mark_runs(workspace, ctx.tracker)
    record = CycleRecord(row["cycle"], count, metrics, version.name, version.version, row["at"])
    ctx.tracker.log_cycle(run, ctx.parent_run, record, ctx.params.for_labels(count))
    ctx.tracker.describe(ctx.parent_run, _note(ctx))
    show_cycle(workspace, state.key, row)
    note_learned(workspace, pools)
    if state.commit:
        sizes = f"{row['labelled']} labelled, {len(pools.frames['unlabelled'])} waiting"
        said = f"accuracy {metrics['accuracy']:.4f}, macro-F1 {metrics['macro_f1']:.4f}"
        versioning.commit_all(workspace, f"{version.name}: {sizes}; {said}")
        versioning.tag(workspace, version)  # the pools and the model made of them
        commit = versioning.commit_of_model(workspace, version.name)
        ctx.tracker.tag_run(run, {"mlflow.source.git.commit": commit, COMMIT: commit})


def _note(ctx: Context, *more: str) -> str:
    """What MLflow says of the retraining: where it is, its cycles so far, and `more`."""
    state = ctx.state
    head = f"Retraining of the workspace {workspace_name(ctx.workspace)}, begun {state.started}."
    return "\n\n".join([head, curve_table(state.rows), *more] if state.rows else [head, *more])


@_step("gate")
def ask_gate(ctx: Context, run: str) -> gate.Decision:
    """Decide on the last candidate, once for each retraining, and carry the decision out; safe to be killed in."""
    workspace, key, tracker = ctx.workspace, ctx.state.key, ctx.tracker
    version = tracker.register(run, workspace / PACKAGED_MODEL)
    kept = gate.kept_decision(workspace)
    if kept is None or kept[0] != key:
        line = follow(workspace, tracker)  # a clone, another machine, or somebody moved the alias: the registry decides
        for said in [line] if line else []:
            ctx.progress.say(said)
        for said in scores.renew(workspace, tracker, ctx.params):
            ctx.progress.say(said)
    before = tracker.alias("champion")
    if kept is not None and kept[0] == key:
        decision = kept[1]
    else:
        with _gpu(ctx):
            decision = _decide(ctx, version, before, kept[1] if kept else None)
        gate.keep_decision(workspace, key, decision)
    if decision.asked and all(row["retraining"] != key for row in gate.read_log(workspace)):
        gate.note_decision(workspace, key, decision)
    _carry_out(ctx, run, version, decision)
    return decision


def _decide(ctx: Context, version: str, before: str | None, last: gate.Decision | None) -> gate.Decision:
    """Ask the test pool, unless this very question was answered: then it need not be worn out again."""
    from flows.pipeline.stages import decoded_cells, usable_pools

    workspace = ctx.workspace
    candidate, champion = workspace / "models/candidate", workspace / "models/champion"
    test = usable_pools(workspace).frames["test"]
    pool = gate.test_pool_id(test["sha256"].tolist())
    worn = wear(workspace, test, ctx.params.gate.max_comparisons)
    mine = read_card(candidate)
    weights = mine.sha256[WEIGHTS]
    names: dict[str, Any] = {
        "test_pool": pool,
        "asked_before": worn.comparisons,
        "fresh": worn.asks,
        "champion": before or "",
        "challenger": version,
        "weights": weights,
    }
    theirs_card = read_card(champion) if champion.is_dir() else None
    if theirs_card is not None and theirs_card.sha256[WEIGHTS] == weights:
        same = packaged_digest(theirs_card) == packaged_digest(read_card(workspace / PACKAGED_MODEL))  # with int8 or without
        is_it = "it is the champion already" if same else "its weights are the champion's, packaged in another way"
        return gate.Decision(True, [f"{is_it}; nothing was compared"], asked=False, in_place=same, **names)
    against = objection(ctx.tracker, mine, version)
    if against is not None:  # a person's word: no comparison could change it
        return gate.Decision(False, [against.reason], asked=False, question=against.question, **names)
    names["asked_for"] = gate.question_key(mine, theirs_card, test, ctx.params.gate)
    if last is not None and not last.promoted and last.asked_for == names["asked_for"]:
        return gate.Decision(**{**vars(last), **names, "asked": False})

    def predictions(model: Path) -> pd.DataFrame:
        from wbc_model.evaluation.evaluate import predict_directory  # brings PyTorch, needed for a comparison alone

        card = read_card(model)
        return predict_directory(model, decoded_cells(workspace, card.input_size, card.view), test)

    note_cells(workspace, test)
    theirs = predictions(champion) if champion.is_dir() else None
    decision = gate.decide(predictions(candidate), theirs, ctx.params.gate)
    return gate.Decision(**{**vars(decision), **names})


def _carry_out(ctx: Context, run: str, version: str, decision: gate.Decision) -> None:
    """Write the reason everywhere, and promote. The files go first: an alias never names a model that is not in place."""
    workspace, tracker = ctx.workspace, ctx.tracker
    said = {"wbc.gate": "promoted" if decision.promoted else "refused", "wbc.gate.reason": decision.reason[:5000]}
    said |= {"wbc.gate.test_pool": decision.test_pool, "wbc.gate.asked_before": str(decision.asked_before)}
    said |= {"wbc.gate.fresh": decision.fresh} if decision.fresh else {}
    word, row = gate_note(decision.promoted, decision.reasons), ctx.state.rows[-1]
    tracker.set_alias("challenger", version)
    if decision.asked or "wbc.gate" not in tracker.version_tags(version):  # else the tags are those of the comparison
        tracker.tag_version(version, said)
        card = read_card(workspace / PACKAGED_MODEL, verify=False)
        tracker.describe_version(version, "\n\n".join([model_note(card, row["metrics"], row["pools"]), word]))
    tracker.tag_run(run, said)
    tracker.tag_run(ctx.parent_run, said)
    tracker.describe(ctx.parent_run, _note(ctx, word))
    if decision.promoted and (not decision.in_place or tracker.alias("champion") is None):
        scored, commit = scored_cells(workspace), versioning.commit_of_model(workspace, row["pools"]) if ctx.state.commit else ""
        gate.promote(workspace / PACKAGED_MODEL, workspace / "models/champion", row["metrics"], scored, commit)
        if decision.champion and decision.champion != version:
            tracker.tag_version(version, {BEFORE: decision.champion})
        tracker.set_alias("champion", version)
    note = {"retraining": ctx.state.key, "version": version, **decision.to_dict()}
    write_atomic(workspace / GATE_NOTE, json.dumps(note, indent=2) + "\n")


# --- the flow --------------------------------------------------------------------------------------------------------------


def retrain_flow(root: Path, changes: Mapping[str, Any] | None = None, commit: bool = False, own_server: bool = False) -> Outcome:
    """As `retraining`, typed by a person, as a run of the workspace's flow; one that waits for people is not recorded as
    Completed."""
    kept: list[Outcome] = []

    @flow(name=retraining_flow(root), flow_run_name=lambda: run_name(root), validate_parameters=False)
    def run() -> Any:
        kept.append(retraining(root, changes, commit, own_server))
        return run_state(kept[0])

    with tags("wbc", workspace_name(root)):
        state: RunState[Any] = run(return_state=True)  # type: ignore[assignment]
    if not kept:
        state.result()  # raises what went wrong
    return kept[0]


def run_state(outcome: Outcome) -> "RunState[Any]":
    """The state that a run ends in: green only where a model was made."""
    from prefect.states import Cancelled, Completed

    if outcome.status == "waiting":
        return Cancelled(name="Waiting", message=f"{counted(outcome.awaited, 'label')} of people are awaited")
    return Completed(message=f"gate: {(outcome.gate or {}).get('reason', '')}")


def retraining(
    root: Path,
    changes: Mapping[str, Any] | None = None,
    commit: bool = False,
    own_server: bool = False,
    scheduled: bool = False,
) -> Outcome:
    """One retraining of the workspace, begun or gone on with; `changes` are written into params.yaml first. Raises WbcError.

    One that waits for people goes on with the answers that there are. With `scheduled` it waits until they are enough, or its
    time is up.
    """
    context = FlowRunContext.get()
    progress = Progress(get_run_logger().info if context else lambda line: None)
    with hold_lock(root) as lock:
        open_limit(own_server)
        run = context.flow_run if context else None
        deployment = str(run.deployment_id) if run and run.deployment_id else ""
        end_dead_runs([retraining_flow(root)], but=str(run.id) if run else "", deployment=deployment)
        gate.mend(root / "models/champion")
        done = [*versioning.heal(root), *narrow_query(root)]
        for line in filter(None, [*done, *set_params(root, changes or {}), gone_line(root)]):
            progress.say(line)
        with spread_in_flow(read_params(root / "params.yaml").retrain):
            state = _begin(root, commit, progress)
            params = read_params(root / "params.yaml")
            from flows.tracking import open_tracker

            with mlflow_answering(params.tracking.uri, progress.say):
                ctx = Context(root, state, params, lock, progress, open_tracker(root, params))
                ctx.by_itself = scheduled or bool(deployment)
                return _gone_through(ctx, scheduled)


def _gone_through(ctx: Context, scheduled: bool) -> Outcome:
    """The retraining, as far as it goes now."""
    if closed := ctx.tracker.close_abandoned(ctx.state.key):
        ctx.progress.say(f"closed in MLflow: {counted(closed, 'run')} of retrainings that were killed")
    with ctx.tracker.running(ctx.parent_run):
        fingerprint_code(ctx)
        take_answers(ctx)
        outcome = _finish(ctx) if _go_on(ctx, scheduled) and _cycles(ctx) else _waiting(ctx)
    outcome.came = labels.take_waiting(ctx.workspace)
    people.show(ctx.workspace)
    return outcome


def _begin(workspace: Path, commit: bool, progress: Progress) -> State:
    """The retraining to go on with, where one with these parameters was interrupted or waits; else a new one."""
    params = read_params(workspace / "params.yaml")
    check_present(workspace / "data")
    if not Pools.exist(workspace / "data/pools"):
        if (workspace / versioning.VERSIONS).exists():
            raise WbcError(
                f"{versioning.VERSIONS} names versions of the pools, and data/pools is not there: `dvc checkout` brings it"
            )
        fill_pools(workspace, progress)
    elif not sum(Pools.read(workspace / "data/pools").counts().values()):
        raise WbcError(
            "the pools have no cell: `wbc ingest DATA` takes some in (data/rejected.csv says what was refused, and why)"
        )
    old = read_state(workspace)
    if old is not None and old.answers is not None:
        labels.record(workspace, pd.DataFrame(old.answers), old.label_cycle)
        old.answers, old.cycle = None, old.cycle + 1
        old.write(workspace)
    labels.check_replayed(workspace)
    if old is not None and old.status != "done" and old.goes_on_with(params):
        progress.say(f"going on with retraining {old.key}, cycle {old.after_cycle + old.cycle}")
        for row in old.rows:
            if old.status == "waiting" or row["cycle"] < old.after_cycle + old.cycle:  # what comes now has its line later
                progress.row(row)
        old.commit = old.commit or commit
        return old
    if old is not None and old.status != "done":
        progress.say(f"retraining {old.key} ends here: params.yaml was changed since. Its labels stay, and a new one begins")
    versioning.check_git(workspace, commit)
    if came := people.take_reports(workspace, params):
        progress.say(came)
    begin_record(workspace)
    after = last_cycle(workspace)
    note_after_cycle(workspace, after)
    moment = datetime.now(UTC)
    params = read_params(workspace / "params.yaml")
    key = f"{moment:%Y%m%d-%H%M%S}-{moment.microsecond // 1000:03}"  # what is decided is kept by it: no two may be the same
    state = State(key, params_name(params), moment.isoformat(timespec="seconds"), after, commit)
    state.write(workspace)
    return state


def _check_params(ctx: Context) -> None:
    """Raises WbcError where params.yaml is not what the retraining began with: its next stages would take the new values, and the
    records would name the old ones."""
    if params_name(read_params(ctx.workspace / "params.yaml")) != params_name(ctx.params):
        raise WbcError(
            f"params.yaml was changed while retraining {ctx.state.key} ran, which ends here: its labels stay, and the next "
            "`wbc retrain` begins a new one with what params.yaml says now"
        )


def _go_on(ctx: Context, scheduled: bool) -> bool:
    """Whether a retraining that waited for people has got labels since; a `scheduled` one, whether they are enough."""
    state = ctx.state
    if state.status == "waiting":
        wait = people.wait_of(ctx.workspace, state, ctx.params)
        if wait is None or not wait.asked:
            why = "data/queue.csv is gone" if wait is None else "no cell of data/queue.csv is to be named any more"
            ctx.progress.say(f"{why}: this round asks again")
        else:
            if not wait.answered or (scheduled and not wait.ready(datetime.now(UTC))):
                return False
            far = f"people have labelled {wait.answered} of {wait.asked} cells"
            ctx.progress.say(far)
            if ctx.by_itself:
                announce(ctx.workspace, f"{ctx.workspace.name}: the retraining goes on: {wait.ready(datetime.now(UTC)) or far}")
            state.cycle += 1
    state.status, state.scheduled = "running", ctx.by_itself
    state.write(ctx.workspace)
    people.show(ctx.workspace)
    return True


def _cycles(ctx: Context) -> bool:
    """Run the cycles that are left; returns false when labels of people are awaited."""
    bar = ProgressBar(ctx.workspace, ctx.state.key)
    while True:
        last = _one_cycle(ctx)
        bar.show(1.0 if last else (ctx.state.cycle + 1) / (ctx.params.retrain.cycles + 1))
        if last:
            return True
        if ctx.params.retrain.annotator == "people" and not people.left_to_name(ctx.workspace):
            ctx.progress.say("nobody can name a cell of the queue: the retraining ends with the labels that it has")
            return True
        if ctx.params.retrain.annotator == "people" or not label(ctx):
            ctx.state.status = "waiting"
            ctx.state.write(ctx.workspace)
            return False


def _one_cycle(ctx: Context) -> bool:
    """Version, validate, train, evaluate, query, note; returns whether it was the last cycle."""
    state, progress, start = ctx.state, ctx.progress, time.monotonic()
    number = ctx.number
    with progress.cycle(number, state.cycle, ctx.params.retrain.cycles) as doing:
        doing("versioning the pools")
        _check_params(ctx)
        version = version_pools(ctx)
        doing("checking the data")
        validate(ctx)
        doing("training")
        run = ctx.tracker.cycle(ctx.parent_run, state.key, number)
        train(ctx, run, version, doing)
        doing("evaluating")
        metrics = evaluate(ctx)
        doing("querying")
        asked = query(ctx)
        last = asked == 0 or state.cycle >= ctx.params.retrain.cycles
        if state.commit:  # every commit is whole: `dvc pull` finds there what each stage made
            doing("packaging")
            package(ctx)
        doing("logging")
        _check_params(ctx)
        log_cycle(ctx, run, version, metrics, time.monotonic() - start)
    progress.row(state.rows[-1])
    if asked == 0 and state.cycle == 0:
        from flows.pipeline.stages import why_nothing_is_asked

        progress.say(why_nothing_is_asked(ctx.workspace))
    return last


def _waiting(ctx: Context) -> Outcome:
    standing = ask_people(ctx)
    waiting = len(labels.awaited(ctx.workspace))
    worth = standing.worth
    said = [f"It waits for {counted(waiting, 'label')} of people.", standing.line, *([worth.text] if worth else [])]
    ctx.tracker.wait(ctx.parent_run, _note(ctx, *said))
    if worth is not None:
        ctx.progress.log(worth.text)
        ctx.tracker.tag_run(ctx.parent_run, gain_tags(worth))
    show_waiting(ctx.workspace, ctx.state.key, said)
    return Outcome(
        workspace=str(ctx.workspace),
        key=ctx.state.key,
        status="waiting",
        cycles=_table(ctx.state),
        awaited=waiting,
        next_step=standing.line,
        gain=worth.to_dict() if worth else None,
        learning_curve=str(ctx.workspace / CURVE_PNG),
        wrote=["data/queue.csv", CURVE_CSV, CURVE_PNG, CYCLES],
    )


def _finish(ctx: Context) -> Outcome:
    state, workspace = ctx.state, ctx.workspace
    _check_params(ctx)
    with ctx.progress.doing("packaging, asking the gate") as doing:
        package(ctx)
        if why := read_card(workspace / "models/candidate", verify=False).uncalibrated:
            ctx.progress.say(f"the model's probabilities are not calibrated: {why}")
        doing("asking the gate")
        run = ctx.tracker.cycle(ctx.parent_run, state.key, ctx.number)
        decision = ask_gate(ctx, run)
    write_curve(workspace, note_cycle(workspace, state.key, state.rows[-1], champion=decision.new_champion))
    show_gate(workspace, state.key, decision, state.rows)
    ctx.tracker.end_retraining(ctx.parent_run, [workspace / name for name in (CURVE_CSV, CURVE_PNG, CYCLES, GATE_NOTE)])
    if state.commit:
        word = "promoted" if decision.promoted else "not promoted"
        versioning.commit_all(workspace, f"Retraining {state.key}: {word}")
    state.status, state.gate = "done", decision.to_dict()
    state.write(workspace)
    wrote = ["models/candidate", *(["models/champion"] if decision.promoted else []), GATE_NOTE, CURVE_CSV, CURVE_PNG, CYCLES]
    return Outcome(
        workspace=str(workspace),
        key=state.key,
        status="done",
        cycles=_table(state),
        gate=state.gate,
        learning_curve=str(workspace / CURVE_PNG),
        wrote=[*wrote, "build/bento"],
    )


def _table(state: State) -> list[dict[str, Any]]:
    names = ("cycle", "labels", "accuracy", "macro_f1", "seconds", "pools")
    return [{name: row[name] for name in names} for row in state.rows]
