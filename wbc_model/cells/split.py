"""The seeded choices of an ingest: which cells go to validation and test, and which labels are revealed first.

Every choice sorts by a hash of the seed and the cell's sha256 (or its group's name). Neither the order of the manifest's rows
nor a second ingest changes it.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Sequence

import pandas as pd

HELD_OUT = ("test", "validation")


def seeded_rank(seed: int, purpose: str, name: str) -> bytes:
    """A key to sort by that is random in `name` and fixed for a seed."""
    return hashlib.sha256(f"{seed}:{purpose}:{name}".encode("utf-8", "surrogatepass")).digest()


def choose_sides(cells: pd.DataFrame, validation_share: float, test_share: float, seed: int) -> list[str]:
    """`train`, `validation` or `test` for each row of `cells` (text columns sha256, label, group; all of them new).

    Stratified by label as far as whole groups allow. A cell without a label, and with it its group, goes to training. A
    class of at least three cells gets at least one into each pool whose share is not zero.
    """
    groups: list[str] = cells["group"].tolist()
    labels: list[str] = cells["label"].tolist()
    unlabelled_groups = {group for group, label in zip(groups, labels, strict=True) if group and not label}
    free = [bool(label) and group not in unlabelled_groups for group, label in zip(groups, labels, strict=True)]
    targets = _targets([label for label, ok in zip(labels, free, strict=True) if ok], validation_share, test_share)
    side_of_group = _place_groups(groups, labels, free, targets, seed)
    sides = [side_of_group.get(group, "train") if group else "" for group in groups]
    taken = {side: Counter(label for label, chosen in zip(labels, sides, strict=True) if chosen == side) for side in HELD_OUT}
    singles: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        if not groups[row]:
            sides[row] = "train"
            if label:
                singles.setdefault(label, []).append(row)
    sha256: list[str] = cells["sha256"].tolist()
    for label, rows in singles.items():
        rows.sort(key=lambda row: seeded_rank(seed, "split", sha256[row]))
        start = 0
        for side in HELD_OUT:
            wanted = max(0, targets[side][label] - taken[side][label])
            for row in rows[start : start + wanted]:
                sides[row] = side
            start += wanted
    return sides


def _targets(labels: Sequence[str], validation_share: float, test_share: float) -> dict[str, Counter[str]]:
    """How many cells of each class each held-out pool should get."""
    shares = {"test": test_share, "validation": validation_share}
    targets: dict[str, Counter[str]] = {side: Counter() for side in HELD_OUT}
    for label, count in Counter(labels).items():
        for side in HELD_OUT:
            least = 1 if count >= 3 and shares[side] > 0 else 0
            targets[side][label] = max(round(shares[side] * count), least)
    return targets


def _place_groups(
    groups: Sequence[str], labels: Sequence[str], free: Sequence[bool], targets: dict[str, Counter[str]], seed: int
) -> dict[str, str]:
    """Side of every group: the largest first, each to where it brings the class counts nearest to their targets."""
    content: dict[str, Counter[str]] = {}
    totals: Counter[str] = Counter()
    for group, label, ok in zip(groups, labels, free, strict=True):
        if ok:
            totals[label] += 1
            if group:
                content.setdefault(group, Counter())[label] += 1
    goal = {side: targets[side] for side in HELD_OUT}
    goal["train"] = Counter({label: totals[label] - sum(targets[side][label] for side in HELD_OUT) for label in totals})
    placed: dict[str, Counter[str]] = {side: Counter() for side in goal}

    def worse_by(group: str, side: str) -> float:
        change = 0.0
        for label, count in content[group].items():
            missing = goal[side][label] - placed[side][label]
            change += ((missing - count) ** 2 - missing**2) / totals[label]
        return change

    chosen = {}
    for group in sorted(content, key=lambda name: (-content[name].total(), seeded_rank(seed, "group", name))):
        side = min(("train", *HELD_OUT), key=lambda name: worse_by(group, name))
        chosen[group] = side
        placed[side].update(content[group])
    return chosen


def reveal(sha256s: Sequence[str], count: int, seed: int) -> set[str]:
    """`count` cells drawn at random, whose label is known from the start."""
    return set(heapq.nsmallest(count, sha256s, key=lambda sha256: seeded_rank(seed, "reveal", sha256)))
