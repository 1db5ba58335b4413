"""What people have said of registered models, and what that means for the gate: decision 039.

A word is a tag of the registered model: it outlives the version. It is about the model, which is its weights and whatever the
same labels and parameters give with different rounding.
"""

import getpass
import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import WEIGHTS, ModelCard

if TYPE_CHECKING:
    from flows.tracking import Tracker

Word = Literal["promoted", "rejected", "withdrawn", "replaced", "asked"]
AGAINST: Final = ("rejected", "withdrawn", "replaced")
TAGS: Final = ("wbc.word.", "wbc.question.")  # each with the version's number
ROLLED_BACK: Final = "wbc.gate.rolled_back"  # how versions before decision 039 said `withdrawn`
ROUNDING: Final = {"train": ("devices", "accelerator"), "size": ("precision",)}  # of a card's parameters
MAX_REASON: Final = 2000
# Parameters that became constants, with the values that they had (decision 048): words of before know a model by all of them.
FORMER: Final = {
    "weight_decay": 0.05,
    "label_smoothing": 0.0,
    "warmup_share": 0.1,
    "patience": 0.8,
    "lossnet_weight": 1.0,
    "lossnet_margin": 1.0,
    "hard_fraction": 0.3,
    "hard_start_share": 0.2,
    "rarity": 0.5,
    "pseudo_label_threshold": 0.9,
}


@dataclass(frozen=True)
class Verdict:
    """A word about a version; `number` counts words, the later the higher. `asked` is the gate's question, no person's word.
    `recipe`, `pools` and `lesson` name what the model was made of: see `recipes`. Words of before have no `lesson`."""

    word: Word
    version: str
    number: int
    weights: str
    recipe: str
    pools: str
    reason: str
    by: str
    at: str
    lesson: str = ""

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        when = f" on {self.at[:10]}" if self.at else ""
        return f"version {self.version} was {self.word}{by}{when}: {self.reason}"


def recipes(card: ModelCard) -> dict[str, str]:
    """Names of what a model was made of. `lesson`: its labelled cells (of older cards its pools' version) and the parameters but
    for those that only round differently. `recipe` (empty for cards without cells) and `pools`: cells or pools with all
    parameters, by which words of before are known. No code or package is part: another torch only rounds differently."""
    labelled = card.cells.get("labelled")
    cells = [labelled.prefixes, labelled.labels] if labelled else None
    parameters = _with_former(card.parameters)
    return {
        "lesson": _name(cells or card.pool_version, _taught_by(parameters)),
        "recipe": _name(cells, parameters) if cells else "",
        "pools": _name(card.pool_version, parameters),
    }


def _with_former(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters with those that a card does not list any more, as it would have listed them."""
    train = parameters.get("train")
    if not isinstance(train, dict):
        return parameters
    start_share = 0.4 if train.get("unlabelled_ratio") else 0.2
    return {**parameters, "train": {**FORMER, "unlabelled_start_share": start_share, **train}}


def _taught_by(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters without device and precision, and without the preset's name, whose numbers are in `size`."""
    taught = {name: value for name, value in parameters.items() if name != "preset"}
    for section, names in ROUNDING.items():
        if isinstance(taught.get(section), dict):
            taught[section] = {name: value for name, value in taught[section].items() if name not in names}
    return taught


def _name(made_from: object, parameters: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([made_from, parameters], sort_keys=True).encode()).hexdigest()[:16]


def verdicts(tracker: "Tracker") -> list[Verdict]:
    """All words about the registered model, oldest first."""
    tags = tracker.model_tags()
    found = [Verdict(**json.loads(text)) for name, text in tags.items() if name.startswith(TAGS)]
    known = {one.version for one in found if one.word != "asked"}
    for version in tracker.versions():
        if ROLLED_BACK in version.tags and str(version.version) not in known:
            facts = _facts(tracker, str(version.version))
            found.append(Verdict("withdrawn", str(version.version), 0, **facts, reason="rolled back", by="", at=""))
    return sorted(found, key=lambda one: one.number)


def _facts(tracker: "Tracker", version: str) -> dict[str, str]:
    card = tracker.card(version)
    return {"weights": card.sha256.get(WEIGHTS, ""), **recipes(card)}


def say(tracker: "Tracker", word: Word, version: str, reason: str, by: str = "") -> Verdict:
    """Note a word about a version; it takes the place of an earlier one about the same version. Raises WbcError without a
    reason, and where the version's files are gone."""
    reason = " ".join(reason.split())
    if not reason:
        raise WbcError("a decision about the champion needs a reason: give one with --reason TEXT")
    if len(reason) > MAX_REASON:
        raise WbcError(f"the reason has {len(reason)} characters; at most {MAX_REASON} are kept")
    number = max((one.number for one in verdicts(tracker)), default=0) + 1
    at = datetime.now(UTC).isoformat(timespec="seconds")
    said = Verdict(word, version, number, **_facts(tracker, version), reason=reason, by=by, at=at)
    tracker.tag_model(f"{TAGS[word == 'asked']}{version}", json.dumps(asdict(said)))
    who = f" by {by}" if by else ""
    head = "A person is asked to decide." if word == "asked" else f"{word.capitalize()}{who} on {at[:10]}."
    tracker.add_to_description(version, f"**{head}** {reason}")
    return said


def person() -> str:
    """Who types, by the system's name for them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


@dataclass(frozen=True)
class Objection:
    """Why the gate must not let a model in, whatever its scores; `question` is what a person is to type, once."""

    reason: str
    question: str = ""


def objection(tracker: "Tracker", card: ModelCard, version: str) -> Objection | None:
    """What people's words have against a challenger registered as `version`, or None; notes the question where one is asked."""
    said = verdicts(tracker)
    weights = card.sha256.get(WEIGHTS, "")
    about = [one for one in said if one.weights == weights and one.word != "asked"]
    if about:
        return Objection(f"{about[-1]}; only a person lets it in again") if about[-1].word in AGAINST else None
    made_of = recipes(card).items()
    twins = [one for one in said if any(name and getattr(one, kind) == name for kind, name in made_of)]
    words = [one for one in twins if one.word != "asked"]
    if not words or words[-1].word not in AGAINST:
        return None
    last = words[-1]
    same = f"it was made of the same labels and parameters as a model that stays out: {last}"
    asked = [one for one in twins if one.word == "asked"]
    if asked and asked[-1].number < last.number:  # a person has answered since
        return Objection(same)
    commands = "`wbc champion --promote {0} --reason TEXT` or `wbc champion --reject {0} --reason TEXT`"
    if asked:
        waits = f"a person was asked on {asked[-1].at[:10]} and has not answered"
        return Objection(f"{same}; {waits}: {commands.format(asked[-1].version)}")
    say(tracker, "asked", version, f"made of what version {last.version} was made of")
    return Objection(same, f"a person must decide on version {version}: {commands.format(version)}")


def as_dict(said: list[Verdict], version: str) -> dict[str, Any] | None:
    """The last word of a person about a version, for `--json`."""
    words = [one for one in said if one.version == version and one.word != "asked"]
    return {name: getattr(words[-1], name) for name in ("word", "reason", "by", "at")} if words else None
