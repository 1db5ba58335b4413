"""`wbc status`: what is where in a workspace, what waits and for whom, and what to type next."""

import contextlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from flows import labels, notify
from flows.complaints import FOLDER
from flows.registry.champion import follow_notes
from flows.retraining import fresh_cells
from flows.site import site_of
from flows.state import State, at_work, last_retraining, new_labels, taken_back
from flows.workspace import gone_line
from wbc_model.cells.pools import Pools, check_present
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.model_card import CARD, ModelCard, read_card
from wbc_model.params import read_params

PARTS: Final = {
    "images": ("data/images",),
    "models": ("models", "build"),
    "DVC's cache": (".dvc/cache",),
    "MLflow": ("mlartifacts", "mlflow.db"),
    "reports and their images": ("data/service.db", "data/report_images"),
    "caches and logs": (".wbc",),
}


def status(workspace: Path) -> dict[str, Any]:
    """Pools, what waits, the last run and failures since, the champion, disk, and the next command. Raises WbcError where a file
    is damaged."""
    wrong = _refusal(lambda: _read(workspace))
    notes = [] if wrong else follow_notes(workspace)
    state = last_retraining(workspace)
    there = Pools.exist(workspace / "data/pools")
    return {
        "workspace": str(workspace),
        "pools": Pools.read(workspace / "data/pools").counts() if there else {},
        "waits": _waits(workspace, state) if there else {},
        "at_work": at_work(workspace) or "",
        "last_run": _last_run(state),
        "failures": _failures(workspace, state),
        "champion": _champion(workspace),
        "notes": notes,
        "disk": {name: sum(_size(workspace / path) for path in paths) for name, paths in PARTS.items()},
        "parameters": wrong or gone_line(workspace),
        "next": next_command(workspace),
    }


def next_command(workspace: Path) -> str:
    """What a person would do next here, as a command with its reason; empty where there is nothing to do."""
    if _refusal(lambda: _read(workspace)):
        return "put params.yaml right: no command runs until then"
    if not Pools.exist(workspace / "data/pools"):
        begin = "`wbc ingest DATA` takes images in; `wbc retrain` alone begins with what data.source in params.yaml names"
        return _refusal(lambda: check_present(workspace / "data")) or begin
    if busy := at_work(workspace):
        return f"wait: {busy} is at work"
    if behind := _refusal(lambda: labels.check_known(workspace)):
        return behind
    state = last_retraining(workspace)
    waits = _waits(workspace, state)
    if waits["put_off"]:
        return f"`wbc labels replay` takes {counted(waits['put_off'], 'label')} in that waited for the end of others' work"
    if waits["conflicts"]:
        rows = counted(waits["conflicts"], "row that disagrees", "rows that disagree")
        return f"`wbc labels decide` lists {rows} with the pools"
    if state is not None and state.status != "done" and not state.goes_on_with(read_params(workspace / "params.yaml")):
        return "`wbc retrain` begins a new retraining with what params.yaml says now; the unfinished one ends, its labels stay"
    if state is not None and state.status == "running":
        return "`wbc retrain` goes on with the retraining that was interrupted"
    if waits["people"]:
        answered = waits["asked"] - waits["people"]
        on = f", or `wbc retrain` goes on with the {answered} that came" if answered else ""
        on_the_page = ", and the page /label shows them" if state is not None and state.queue else ""
        cells = counted(waits["people"], "cell that awaits", "cells that await")
        return f"`wbc labels export FILE.csv` writes the {cells} a label{on_the_page}{on}"
    if state is not None and state.status == "waiting":
        return "`wbc retrain` goes on: every cell that it asked about has its label"
    new = counted(waits["new_labels"], "label that came", "labels that came")
    if waits["new_labels"] and site_of(workspace) is not None:
        return f"`wbc onboard` with this site's data learns the {new} since the last adaptation"
    if waits["new_labels"]:
        return f"`wbc retrain` learns the {new} since the last training"
    if waits["taken_back"]:
        back = counted(waits["taken_back"], "cell that has", "cells that have")
        again = "`wbc onboard` with this site's data adapts" if site_of(workspace) is not None else "`wbc retrain` trains"
        return f"{again} without the {back} no label any more since the last training"
    if waits["test_cells"]:
        cells = counted(waits["test_cells"], "test cell that awaits", "test cells that await")
        return f"`wbc labels test --export FILE.csv` writes {cells} a label"
    if (workspace / "models/champion" / CARD).exists():
        return "`wbc serve` serves the champion"
    if state is None and (workspace / "models/candidate" / CARD).exists():  # a clone without the registry of its original
        return "`wbc retrain` asks the gate about models/candidate: no model is champion here"
    if state is None and not any(Pools.read(workspace / "data/pools", check=False).counts().values()):
        return "`wbc ingest DATA` takes cells in: the pools have none (data/rejected.csv says what was refused, and why)"
    return _to_a_champion(workspace) if state else "`wbc retrain` trains the first model"


def _read(workspace: Path) -> None:
    """Raises WbcError where params.yaml is wrong: every other command stops at that, and this one tells it."""
    read_params(workspace / "params.yaml")


def _refusal(check: Callable[[], None]) -> str:
    """What the next command would be refused with, and the way on; empty where it would not be."""
    try:
        check()
    except WbcError as refused:
        return str(refused)
    return ""


def _to_a_champion(workspace: Path) -> str:
    """The ways on where the gate has refused every model so far."""
    path, params = workspace / "models/gate.json", read_params(workspace / "params.yaml")
    note = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if note.get("promoted", True):
        return "`wbc champion` says why no model is champion"
    return (
        "give the model more labels or updates "
        f"(`wbc retrain --set presets.{params.preset}.updates={2 * params.size.updates}`), or take this one all the same "
        f"(`wbc champion --promote {note['version']} --reason TEXT`)"
    )


def _waits(workspace: Path, state: State | None) -> dict[str, int]:
    """`people`: cells of a queue that a retraining waits for; `asked`: how many it asked about; and what waits for others."""
    asks = site_of(workspace) is not None if state is None else state.status == "waiting"  # onboarding asks without a state
    waiting = asks and (workspace / "data/queue.csv").exists()
    return {
        "people": len(labels.awaited(workspace)) if waiting else 0,
        "asked": len(labels.read_queue(workspace)) if waiting else 0,
        "test_cells": len(fresh_cells.waiting(workspace)),
        "conflicts": len(labels.conflicts(workspace)),
        "put_off": labels.waiting(workspace),
        "new_labels": new_labels(workspace),
        "taken_back": taken_back(workspace),
    }


def _last_run(state: State | None) -> dict[str, Any]:
    if state is None:
        return {}
    row = state.rows[-1] if state.rows else {}
    scores = {name: row.get(name) for name in ("labels", "accuracy", "macro_f1", "pools")}
    gate = state.gate or {}
    said = {
        "promoted": gate.get("promoted"),
        "in_place": gate.get("in_place", False),
        "reason": "; ".join(gate.get("reasons", [])),
    }
    return {"retraining": state.key, "started": state.started, "status": state.status, **scores, **said}


def _failures(workspace: Path, state: State | None) -> list[str]:
    """What failed since the last retraining began: lines of the schedule's log, and log files of faults. What is no retraining's
    failure, such as an alarm or what the audit found, stands for a day: no retraining puts it right."""
    since = datetime.fromisoformat(state.started) if state else datetime.min.replace(tzinfo=UTC)
    path = workspace / notify.LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    of_others = min(since, datetime.now(UTC) - timedelta(days=1))
    told = [(line, since if notify.RETRAINING_FAILED in line else of_others) for line in lines]
    said = [line for line, start in told if (then := _moment(line)) is not None and then > start]
    faults = [log for log in sorted((workspace / FOLDER).glob("error-*.log")) if log.stat().st_mtime > since.timestamp()]
    return said + [f"a fault: see {log.relative_to(workspace)}" for log in faults]


def _moment(line: str) -> datetime | None:
    """When a line of the log was written; None where a full disk tore it. What came next then stands in the same line."""
    found = re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?=Z )", line)
    return datetime.fromisoformat(f"{found[-1]}+00:00") if found else None


def _champion(workspace: Path) -> dict[str, Any]:
    folder = workspace / "models/champion"
    if not (folder / CARD).exists():
        return {}
    card = read_card(folder, verify=False)
    test = card.metrics.get("test", {})
    learned = card.cells.get("labelled")
    return {
        "model": card.version,
        "created_at": card.created_at,
        "accuracy": test.get("accuracy"),
        "macro_f1": test.get("macro_f1"),
        "out_of_date": _corrected(workspace, card),
        "labels": learned.count if learned else None,
        "rendered": card.rendered,
        "uncalibrated": card.uncalibrated,
    }


def _corrected(workspace: Path, card: ModelCard) -> int:
    """How many of the test labels that the scores rest on are others now, whichever way the corrections came."""
    if not Pools.exist(workspace / "data/pools") or "test" not in card.cells:
        return int(card.metrics.get("test", {}).get("out_of_date", 0))
    now = Pools.read(workspace / "data/pools").named("test")
    return int(card.cells["test"].relabelled(now["sha256"].tolist(), now["label"].tolist()).sum())


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # somebody is at work
            total += 0 if file.is_dir() else file.lstat().st_size
    return total


def status_text(result: dict[str, Any]) -> str:
    """What `status` returns, for a terminal."""
    pools, waits, run = result["pools"], result["waits"], result["last_run"]
    lines = [f"workspace {result['workspace']}"]
    lines.append("pools: " + (", ".join(f"{name} {count}" for name, count in pools.items()) or "none yet"))
    lines += [f"waits: {line}" for line in _waiting_lines(waits)]
    lines += [f"at work: {result['at_work']}"] if result["at_work"] else []
    if run:
        scores = (
            f", {counted(run['labels'], 'label')}, accuracy {run['accuracy']:.2%}, {run['pools']}"
            if run["labels"] is not None
            else ""
        )
        promoted = ", the champion stays" if run["in_place"] else ", promoted"
        word = {True: promoted, False: ", not promoted:"}.get(run["promoted"], "")
        status = "interrupted" if run["status"] == "running" and not result["at_work"] else run["status"]
        lines.append(f"last run: {run['retraining']}, {status}{scores}{word}")
        lines += [f"  {reason}" for reason in run["reason"].split("; ") if run["promoted"] is False]
    lines += [f"failed: {line}" for line in result["failures"]]
    lines += [f"champion: {line}" for line in result["notes"]]
    lines.append(f"champion: {_champion_words(result['champion'])}")
    lines += [f"parameters: {result['parameters']}"] if result["parameters"] else []
    sizes = {name: size for name, size in result["disk"].items() if size}
    lines.append("disk: " + (", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()) or "nothing"))
    return "\n".join([*lines, *([f"next: {result['next']}"] if result["next"] else [])])


def _waiting_lines(waits: dict[str, int]) -> list[str]:
    words = {
        "people": ("cell", "for a label of people"),
        "test_cells": ("test cell", "for a label of people"),
        "conflicts": ("conflict", "for a person's decision"),
        "put_off": ("label", "for whoever is at work"),
        "new_labels": ("new label", "for the next training"),
        "taken_back": ("label taken back", "for a training without it"),
    }
    return [f"{counted(waits[name], one)} {what}" for name, (one, what) in words.items() if waits.get(name)]


def _champion_words(champion: dict[str, Any]) -> str:
    if not champion:
        return "none"
    accuracy, macro_f1 = champion["accuracy"], champion["macro_f1"]
    score = "no score" if accuracy is None else f"accuracy {accuracy:.2%}, macro-F1 {macro_f1:.2%}"
    old = (
        f" (rests on {counted(champion['out_of_date'], 'label that was', 'labels that were')} corrected since)"
        if champion["out_of_date"]
        else ""
    )
    labels_ = f", {counted(champion['labels'], 'label')}" if champion["labels"] is not None else ""
    rendered = ", of rendered cells" if champion["rendered"] else ""
    rendered += ", not calibrated" if champion["uncalibrated"] else ""
    when = f", data of {champion['created_at'][:10]}" if champion["created_at"] else ""
    return f"model {champion['model']}: {score}{old}{labels_}{when}{rendered}"
