"""The adapted model of a site in the site's own registry, and as its champion where neither a person nor a retraining decided."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from flows.pipeline.dvc import PoolsVersion
from flows.registry.champion import FOLDER, follow
from flows.registry.verdicts import objection
from flows.site import ADAPTED, REPORT
from flows.tracking import BEFORE, CHALLENGER, CHAMPION, Tracker, open_tracker
from wbc_model.core.model_card import CARD, read_card
from wbc_model.params import read_params

ONBOARDED: Final = "wbc.onboarded"  # tag of an adapted version: the name of the pools it was adapted with
PROMOTED: Final = {"wbc.gate": "promoted", "wbc.gate.reason": "adapted to this site by onboarding; nothing was compared"}


def register(site: Path, pools: PoolsVersion, say: Callable[[str], None]) -> dict[str, Any]:
    """Register a site's adapted model, and make it the champion where there is none, or one that was adapted before it.

    A person's word binds here as it binds the gate. May be repeated, after a kill too: the same model stays one version.
    Returns `model`, `version`, `champion` (whether it is), and `reason` where it is not. Raises WbcError.
    """
    params, card = read_params(site / "params.yaml"), read_card(site / ADAPTED)
    tracker = open_tracker(site, params)
    run = tracker.retraining(f"onboard {card.version}", params)
    version = tracker.register(run, site / ADAPTED)
    tracker.tag_version(version, {ONBOARDED: pools.name})
    if not _was_being_put(site, tracker, version) and (line := follow(site, tracker)):
        say(line)
    reason = _put(site, tracker, version)
    tracker.end_retraining(run, [site / REPORT])
    said = {"reason": reason} if reason else {}
    return {"model": tracker.model_name, "version": version, "champion": not reason, **said}


def _was_being_put(site: Path, tracker: Tracker, version: str) -> bool:
    """Whether a kill cut `_put` off behind the files: nobody has moved an alias then."""
    folder = site / FOLDER
    if not (folder / CARD).exists() or tracker.version_tags(version).get("wbc.gate") == "promoted":
        return False
    return tracker.same_model(read_card(folder, verify=False)) == version


def _put(site: Path, tracker: Tracker, version: str) -> str:
    """Make a version the champion; returns why it must not be, empty where it is."""
    present = tracker.alias(CHAMPION)
    against = None if present == version else objection(tracker, read_card(site / ADAPTED), version)
    if against is not None:
        reason = f"{against.reason}. {against.question}" if against.question else against.reason
    elif present not in (None, version) and ONBOARDED not in tracker.version_tags(str(present)):
        reason = (
            f"the site's champion is version {present}, which was not adapted by onboarding: "
            f"`wbc champion --promote {version} --reason TEXT` puts this one in its place"
        )
    else:
        if present != version:
            tracker.fetch(version, site / FOLDER)  # files first: an alias never names a model that is not in place
            tracker.tag_version(version, {BEFORE: present} if present is not None else {})
            tracker.set_alias(CHAMPION, version)
        tracker.tag_version(version, PROMOTED)
        return ""
    tracker.set_alias(CHALLENGER, version)
    return reason
