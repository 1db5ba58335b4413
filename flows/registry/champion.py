"""The champion of a workspace: what the registry says, what people say, and the files in `models/champion` that are served.

The registry decides. Where somebody moved its alias, the workspace follows at its next command, or says why it does not.
"""

import contextlib
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.registry import verdicts
from flows.registry.verdicts import AGAINST, say
from flows.state import Busy, hold_lock, read_state
from flows.tracking import BEFORE, CHALLENGER, CHAMPION, open_tracker, packaged_digest, registry_exists
from flows.workspace import is_workspace
from wbc_model.cells.pools import Pools
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import CARD, ModelCard, read_card
from wbc_model.params import read_params

if TYPE_CHECKING:
    from flows.tracking import Tracker

FOLDER: Final = "models/champion"
MOVED: Final = "the alias was moved in MLflow"


def _tracker(workspace: Path) -> "Tracker":
    return open_tracker(workspace, read_params(workspace / "params.yaml"))


def champions(workspace: Path) -> dict[str, Any]:
    """The registered models, newest first, with their aliases, the gate's reason and the last word of a person."""
    from flows.registry import scores

    tracker = _tracker(workspace)
    try:
        moved = _follow_at_rest(workspace, tracker)
    except WbcError as refusal:  # a list must show what there is to decide on
        moved = str(refusal)
    notes = [
        *([moved] if moved else []),
        *_elsewhere(workspace, tracker),
        *(scores.mark(workspace) if Pools.exist(workspace / "data/pools") else []),
    ]
    aliases = {name: tracker.alias(name) for name in (CHAMPION, CHALLENGER)}
    said = verdicts.verdicts(tracker)
    versions = [
        {
            "version": str(version.version),
            "model": version.tags.get("wbc.model", ""),
            "aliases": [name for name, pointed in aliases.items() if pointed == str(version.version)],
            "decision": version.tags.get("wbc.gate", ""),
            "reason": version.tags.get("wbc.gate.reason", ""),
            "word": verdicts.as_dict(said, str(version.version)),
        }
        for version in tracker.versions()
    ]
    return {"champion": aliases[CHAMPION], "versions": versions, "notes": notes}


def champions_text(result: dict[str, Any]) -> str:
    """What `champions` returns, for a terminal."""
    lines = [*(rolled_back_text(result["rolled_back"]) if "rolled_back" in result else []), *result["notes"]]
    for one in result["versions"]:
        aliases = f" {' '.join(one['aliases'])}" if one["aliases"] else ""
        decision = {"promoted": "promoted", "refused": "not promoted"}.get(one["decision"], "no decision")
        lines.append(f"version {one['version']} ({one['model']}){aliases}: {decision}")
        lines += [f"  {reason}" for reason in one["reason"].split("; ") if reason]
        if word := one["word"]:
            when = f" on {word['at'][:10]}" if word["at"] else ""
            lines.append(f"  {word['word']} by {word['by'] or 'a person'}{when}: {word['reason']}")
    return "\n".join(lines) or "no model is registered yet"


def rescore(workspace: Path) -> dict[str, Any]:
    """Make the champion's numbers again that rest on labels which were corrected since; raises WbcError."""
    from flows.registry import scores

    with hold_lock(workspace):
        tracker = _tracker(workspace)
        done = scores.renew(workspace, tracker, read_params(workspace / "params.yaml"))
    result = champions(workspace)
    notes = [*result["notes"], *(done or ["no label that the champion's numbers rest on was corrected: they stay as they are"])]
    return {**result, "notes": notes, "wrote": [FOLDER] if done else []}


def promote(workspace: Path, version: str, reason: str, by: str = "") -> dict[str, Any]:
    """A person makes a version the champion, whatever the gate said; the one before stays out. Raises WbcError."""
    with hold_lock(workspace):
        tracker = _tracker(workspace)
        present = tracker.alias(CHAMPION)
        _known(tracker, version)
        card = _put(workspace, tracker, version, present, reason, by)
    change = {"from": present, "to": version, "model": card.version}
    return {**champions(workspace), "promoted": change, "wrote": [FOLDER]}


def reject(workspace: Path, version: str, reason: str, by: str = "") -> dict[str, Any]:
    """A person says that a version must not become champion. Raises WbcError where it is the champion."""
    with hold_lock(workspace):
        tracker = _tracker(workspace)
        _known(tracker, version)
        if tracker.alias(CHAMPION) == version:
            raise WbcError(
                f"version {version} is the champion: `wbc champion --rollback --reason TEXT` takes it back, "
                "or --promote puts another in its place"
            )
        say(tracker, "rejected", version, reason, by)
    return {**champions(workspace), "rejected": version, "wrote": []}


def roll_back(workspace: Path, reason: str, by: str = "", steps: int = 1) -> dict[str, Any]:
    """A person takes the last `steps` champions back; the one before them is champion again. Those that were taken back before
    count as no step. Raises WbcError, before anything changes, where there are not so many.

    All that it leaves behind is withdrawn. The words come before the alias: the same command again finishes what a kill cut off.
    Where no champion before it is left, there is none then.
    """
    with hold_lock(workspace):
        tracker = _tracker(workspace)
        present = tracker.alias(CHAMPION)
        if present is None:
            raise WbcError("; ".join(["there is no champion to go back from", *_elsewhere(workspace, tracker)]))
        finished = _said_by_a_killed_one(tracker, present, reason, by)
        earlier = _earlier(tracker, present, finished)
        if steps == 1 and not earlier:
            _take_away(workspace, tracker, present, reason, by if present not in finished else None)
            change: dict[str, Any] = {"from": present, "to": None, "model": "", "withdrawn": [present]}
            return {**champions(workspace), "rolled_back": change, "wrote": []}
        _enough(tracker, present, earlier, steps)
        behind, target = [present, *earlier[: steps - 1]], earlier[steps - 1]
        for version in behind:  # a word names the model by its card: one without files is told of now
            tracker.card(version)
        card = _fetch(workspace, tracker, target)
        for version in behind:
            if version not in finished:
                say(tracker, "withdrawn", version, reason, by)
        say(tracker, "promoted", target, f"{_versions(behind)} withdrawn: {' '.join(reason.split())}", by)
        tracker.set_alias(CHAMPION, target)
    change = {"from": present, "to": target, "model": card.version, "withdrawn": behind}
    return {**champions(workspace), "rolled_back": change, "wrote": [FOLDER]}


def rolled_back_text(change: dict[str, Any]) -> list[str]:
    """What a rollback changed, for a terminal: in the registry, in the files, and in a service."""
    behind, last = change["withdrawn"], change["withdrawn"][0]
    if change["to"] is None:
        return [
            f"version {last} was withdrawn, and no champion before it is left: there is none now",
            "changed: the alias champion in MLflow, and models/champion is gone; a running service keeps the model until it ends",
            f"no retraining brings it back; `wbc champion --promote {last} --reason TEXT` does",
        ]
    return [
        f"version {change['to']} ({change['model']}) is champion in the place of version {change['from']}",
        f"{_versions(behind)} withdrawn: no retraining brings {'it' if len(behind) == 1 else 'them'} back; "
        f"`wbc champion --promote {last} --reason TEXT` does",
        "changed: the alias champion in MLflow, and models/champion; a service that serves that folder follows within seconds",
    ]


def _versions(versions: list[str]) -> str:
    """Versions in words, with the verb."""
    names = " and ".join(filter(None, [", ".join(versions[:-1]), versions[-1]]))
    return f"version {names} was" if len(versions) == 1 else f"versions {names} were"


def _put(workspace: Path, tracker: "Tracker", version: str, present: str | None, reason: str, by: str) -> ModelCard:
    """Files first, then the words, then the alias: an alias never names a model that is not in place, and whatever a kill cuts
    off the same command does again."""
    card = _fetch(workspace, tracker, version)
    say(tracker, "promoted", version, reason, by)
    if present is not None and present != version:
        say(tracker, "replaced", present, f"version {version} was put in its place: {' '.join(reason.split())}", by)
        tracker.tag_version(version, {BEFORE: present})
    tracker.set_alias(CHAMPION, version)
    return card


def _fetch(workspace: Path, tracker: "Tracker", version: str) -> ModelCard:
    """Put the files of a registered version in the champion's place. Its card says what the gate's promotion writes there, too:
    the test scores, the cells that they are from, and the commit that has its pools."""

    def finish(folder: Path) -> None:
        from wbc_model.network.card_page import write_card

        card, found = read_card(folder, verify=False), tracker.scores(version)
        if "test" in card.metrics or found is None:
            return
        scores, cells = found
        test = CellFilter.of(cells["sha256"].tolist(), cells["label"].tolist())
        metrics, seen = {**card.metrics, "test": scores}, {**card.cells, "test": test}
        update = {"metrics": metrics, "cells": seen, "git_commit": tracker.commit(version)}
        write_card(folder, card.model_copy(update=update))

    return tracker.fetch(version, workspace / FOLDER, finish)


def _known(tracker: "Tracker", version: str) -> None:
    known = [str(one.version) for one in tracker.versions()]
    if version not in known:
        raise WbcError(f"no version {version} is registered; `wbc champion` lists them (there are {', '.join(known) or 'none'})")


def _earlier(tracker: "Tracker", present: str, finished: set[str]) -> list[str]:
    """The champions before `present`, the last first, without those that a person took back but for `finished`."""
    tags = {str(one.version): one.tags for one in tracker.versions()}
    words = {one.version: one.word for one in verdicts.verdicts(tracker) if one.word != "asked"}
    found, seen, version = [], {present}, tags[present].get(BEFORE)
    while version is not None and version not in seen and version in tags:
        if version in finished or words.get(version) not in ("withdrawn", "rejected"):
            found.append(version)
        seen.add(version)
        version = tags[version].get(BEFORE)
    return found


def _said_by_a_killed_one(tracker: "Tracker", present: str, reason: str, by: str) -> set[str]:
    """The versions that this very command has withdrawn already: it was killed before it moved the alias."""
    said = {one.version: one for one in verdicts.verdicts(tracker) if one.word != "asked"}
    same = {
        version for version, one in said.items() if (one.word, one.reason, one.by) == ("withdrawn", " ".join(reason.split()), by)
    }
    return same if present in same else set()


def _take_away(workspace: Path, tracker: "Tracker", present: str, reason: str, by: str | None) -> None:
    """Have no champion; the word is said already where `by` is None. The alias goes last: the same command then finishes what a
    kill cut off."""
    if by is not None:
        say(tracker, "withdrawn", present, reason, by)
    folder = workspace / FOLDER
    if folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as gone:
            folder.rename(Path(gone) / folder.name)  # whole or not at all, for a service that reads it
    tracker.drop_alias(CHAMPION)


def _enough(tracker: "Tracker", present: str, earlier: list[str], steps: int) -> None:
    """Raises WbcError, with what there is, where so many steps back lead nowhere."""
    if 1 <= steps <= len(earlier):
        return
    another = "`wbc champion --promote VERSION --reason TEXT` takes another"
    if not earlier:
        first = BEFORE not in tracker.version_tags(present)
        why = "was the first champion" if first else "is the last: those before it were withdrawn or deleted"
        none = "`wbc champion --rollback --reason TEXT` takes it back, and there is none then"
        raise WbcError(f"version {present} {why}; {none}; {another}")
    listed = ", ".join(f"{number} leads to version {version}" for number, version in enumerate(earlier, 1))
    raise WbcError(f"{steps} steps back from version {present} lead nowhere: {listed}; {another}")


# --- the registry decides -----------------------------------------------------------------------------------------------


def followed(workspace: Path) -> str | None:
    """`follow` for a command that needs no registry otherwise: does nothing where the workspace has none."""
    params = read_params(workspace / "params.yaml")
    return _follow_at_rest(workspace, open_tracker(workspace, params)) if registry_exists(workspace, params) else None


def followed_for(model: Path) -> str | None:
    """`followed`, for a command that was given this model directory: where it is the champion's of some workspace."""
    folder = model.resolve()
    workspace = folder.parents[1] if len(folder.parts) > 2 else folder
    return followed(workspace) if folder == workspace / FOLDER and is_workspace(workspace) else None


def follow_notes(workspace: Path) -> list[str]:
    """`followed`, for a command that only tells: what it says, why the workspace does not follow, or that the champion is of
    another registry than the one which params.yaml names."""
    params = read_params(workspace / "params.yaml")
    try:
        tracker = open_tracker(workspace, params) if registry_exists(workspace, params) else None
        line = _follow_at_rest(workspace, tracker) if tracker is not None else None
        return [line] if line else _elsewhere(workspace, tracker)
    except WbcError as refusal:
        return [str(refusal)]
    except PermissionError:  # who may only read here sees the champion as it is
        return []


def registered_cards(workspace: Path, models: Container[str]) -> Iterator[ModelCard]:
    """The cards of the registered versions whose cards name one of the versions `models`; of those whose files are there."""
    params = read_params(workspace / "params.yaml")
    if not registry_exists(workspace, params):
        return
    tracker = open_tracker(workspace, params)
    for version in tracker.versions():
        if version.tags.get("wbc.model") in models:
            with contextlib.suppress(WbcError):
                yield tracker.card(str(version.version))


def _follow_at_rest(workspace: Path, tracker: "Tracker") -> str | None:
    """`follow`, unless a retraining is at work in the workspace: it does that itself."""
    try:
        with hold_lock(workspace):
            return follow(workspace, tracker)
    except Busy:
        return None


def follow(workspace: Path, tracker: "Tracker") -> str | None:
    """Put the version that the registry calls champion into `models/champion` where another one lies there; returns a line that
    says so, None where nothing had to be done. Raises WbcError where the workspace does not follow, with the reason.

    A retraining that was killed while it promoted finishes that first: it is not second-guessed here.
    """
    version, folder = tracker.alias(CHAMPION), workspace / FOLDER
    here = read_card(folder, verify=False) if (folder / CARD).exists() else None
    if version is None:
        _without_alias(workspace, tracker, here)
        return None
    if here is not None and packaged_digest(here) == tracker.digest(version):
        return None
    said = [one for one in verdicts.verdicts(tracker) if one.version == version and one.word != "asked"]
    if said and said[-1].word in AGAINST:
        raise WbcError(
            f"MLflow's alias champion names version {version}, but {said[-1]}. "
            f"`wbc champion --promote {version} --reason TEXT` makes it champion all the same, or promote another"
        )
    displaced = _version_of(tracker, here)
    card = _fetch(workspace, tracker, version)
    if here is None:
        return f"models/champion was missing: version {version} ({card.version}) came from the registry"
    _note_move(tracker, version, displaced)
    name = f"version {displaced}" if displaced else "another model"
    return f"the registry's champion is version {version} ({card.version}): it takes the place of {name} in models/champion"


def _without_alias(workspace: Path, tracker: "Tracker", here: ModelCard | None) -> None:
    state = read_state(workspace)
    if here is None or (state is not None and state.status != "done"):
        return
    version = _version_of(tracker, here)
    if version is not None:
        raise WbcError(
            f"the registry has no champion, but models/champion holds version {version}: somebody took MLflow's alias away. "
            f"`wbc champion --promote {version} --reason TEXT` makes it champion again; remove models/champion to have none"
        )


def _elsewhere(workspace: Path, tracker: "Tracker | None") -> list[str]:
    """That the champion which is served came from another registry, where it did; None is one that nobody has made yet."""
    folder = workspace / FOLDER
    here = read_card(folder, verify=False) if (folder / CARD).exists() else None
    if here is None:
        return []
    if tracker is not None and (tracker.alias(CHAMPION) is not None or _version_of(tracker, here) is not None):
        return []
    return [
        f"models/champion holds model {here.version}, which the registry of tracking.uri in params.yaml does not have, as "
        "after a change of it: service and gate go on with that model; with the tracking.uri of before it can be rolled back"
    ]


def _version_of(tracker: "Tracker", card: ModelCard | None) -> str | None:
    return tracker.same_model(card) if card is not None else None


def _note_move(tracker: "Tracker", version: str, displaced: str | None) -> None:
    """Whoever moves the alias by hand decides like with `--promote`; a gate's promotion elsewhere is no person's word."""
    tags = tracker.version_tags(version)
    if displaced is None or (tags.get("wbc.gate") == "promoted" and int(version) > int(displaced)):
        return
    say(tracker, "promoted", version, MOVED)
    say(tracker, "replaced", displaced, f"version {version} was put in its place: {MOVED}")
    tracker.tag_version(version, {BEFORE: displaced})
