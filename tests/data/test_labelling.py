"""The flow's side of labelling by people: what it gives them, what it takes from them, when it goes on, and what it says."""

import csv
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sqlalchemy import select

from flows.identity import workspace_name
from flows.labelling.agreed import Came, leave, take_agreed
from flows.labelling.publish import REFERENCES, publish_queue, queue_id
from flows.labelling.store import meeting_store
from flows.labelling.waiting import Wait, in_words, next_parts, said_on_the_page
from flows.labels import QUEUE, Taken, awaited, check_replayed, read_log, read_none_of_five, read_queue, take_in, take_waiting
from flows.retraining import people
from flows.state import State, new_labels, note_learned, read_state
from flows.workspace import nameless
from serving.contract.labelling import UNSURE
from serving.contract.site import Site, read_site
from serving.labelling import answers
from serving.labelling.answers import undo
from serving.labelling.disputes import decide, disputes
from serving.labelling.queue import Notice, Progress, asked_now, progress
from serving.labelling.tasks import Who, image_of, next_tasks
from serving.reports.labelling_tables import Asked, Task
from serving.reports.store import Store, sqlite_url
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.core.classes import CLASSES
from wbc_model.params import read_params

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
NOBODY_TWICE = {"second_reader_share": 0.0, "repeat_share": 0.0, "known_share": 0.25}


def site_with(**shares: float) -> Site:
    site = read_site()
    return site.model_copy(update={"labelling": site.labelling.model_copy(update=NOBODY_TWICE | shares)})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred cells of noise, twenty of which wait; eight of these are asked about."""
    tmp_path = tmp_path_factory.mktemp("labelling")
    rng, rows = np.random.default_rng(0), []
    for number in range(100):
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name)
        split = "test" if number > 94 else "val" if number > 89 else "train"
        rows.append([name, "" if number < 20 else CLASSES[number % 5], split])
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "manifest.csv", index=False)
    root = tmp_path / "site"
    root.mkdir()
    params = read_params(ROOT / "params.yaml")
    everything = params.model_copy(update={"data": params.data.model_copy(update={"initial_share": 1.0})})
    ingest(tmp_path / "manifest.csv", root / "data", everything)
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    waiting = Pools.read(root / "data/pools").frames["unlabelled"].sort_values("path")
    queue = waiting[["sha256", "path"]].head(8).assign(score="1.0", reason="unsure", predicted="Monocyte", probability="0.5")
    queue.assign(rank=range(1, 9))[QUEUE].to_csv(root / "data/queue.csv", index=False)
    return root


@pytest.fixture
def workspace(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "site"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(sqlite_url(tmp_path / "service.db"))


@dataclass
class Reading:
    """A queue that was published, and readers who can see what no reader sees."""

    workspace: Path
    store: Store
    site: Site
    name: str

    def read(self, reader: str, said: dict[str, str]) -> int:
        """The reader answers all tasks, by the cell's sha256; returns how many there were."""
        who, done = Who(reader, f"key of {reader}"), 0
        while given := next_tasks(self.store, reader, 4, self.site):
            for task in given:
                sha256 = self._cell(reader, task.name)
                answers.answer(self.store, who, task.name, said.get(sha256, "Monocyte"), self.site)
                done += 1
        return done

    def _cell(self, reader: str, task: str) -> str:
        import hashlib

        return hashlib.sha256(image_of(self.store, reader, task)).hexdigest()


def published(workspace: Path, store: Store, site: Site) -> Reading:
    name = queue_id("20261129-120000-000", 0)
    notice = Notice(workspace_name(workspace), 0, "model")
    publish_queue(workspace, store, name, notice, pd.DataFrame(columns=QUEUE), site)
    return Reading(workspace, store, site, name)


def cells_of(store: Store, purpose: str) -> list[Asked]:
    with store.reading() as session:
        return list(session.scalars(select(Asked).where(Asked.purpose == purpose)))


def test_a_queue_has_the_asked_cells_known_ones_and_references_each_once(workspace: Path, store: Store) -> None:
    published(workspace, store, site_with())
    labelled = Pools.read(workspace / "data/pools").frames["labelled"].set_index("sha256")["label"]
    asked, known, shown = (cells_of(store, purpose) for purpose in ("asked", "known", "reference"))
    assert {one.sha256 for one in asked} == set(read_queue(workspace)["sha256"])
    assert len(known) == 2, "a quarter of eight"
    assert len(shown) == REFERENCES * len(CLASSES)
    assert not {one.sha256 for one in known} & {one.sha256 for one in shown}
    assert all(one.truth == labelled[one.sha256] for one in [*known, *shown])
    assert pd.Series([one.truth for one in shown]).value_counts().to_dict() == dict.fromkeys(CLASSES, REFERENCES)
    published(workspace, store, site_with())
    assert len(cells_of(store, "asked")) == 8, "published twice it is one queue"


def test_what_is_out_of_use_or_labelled_is_not_asked(workspace: Path, store: Store) -> None:
    first, second = read_queue(workspace)["sha256"].tolist()[:2]
    with (workspace / "data/quarantine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "sha256", "reason", "detail"], ["0.png", first, "blank", ""]])
    given = pd.DataFrame([[second, "Monocyte", "Eve", ""]], columns=["sha256", "label", "labelled_by", "labelled_at"])
    take_in(workspace, given, 1)
    published(workspace, store, site_with())
    assert {one.sha256 for one in cells_of(store, "asked")} == set(read_queue(workspace)["sha256"]) - {first, second}


def test_agreed_answers_become_labels_once_and_a_change_of_mind_follows(workspace: Path, store: Store) -> None:
    reading = published(workspace, store, site_with())
    asked = read_queue(workspace)["sha256"].tolist()
    odd, blast = asked[:2]
    assert reading.read("Ada", {odd: "not a leukocyte", blast: "Blast"}) >= 8
    came = take_agreed(workspace, store, 1)
    assert (came.labels, came.none, came.refused) == (6, 2, [])
    assert came.line == "of the people's answers came: 6 labels, 2 none of the five classes"
    log = read_log(workspace)
    assert set(log["sha256"]) == set(asked[2:])
    assert set(log["labelled_by"]) == {"Ada"}
    assert set(log["why"]) == {"on the page"}
    pools = Pools.read(workspace / "data/pools")
    assert set(asked[2:]) <= set(pools.frames["labelled"]["sha256"])
    assert {odd, blast} == set(pools.none_of_five()["sha256"])
    assert awaited(workspace).empty
    again = take_agreed(workspace, store, 1)
    assert (again.new, again.line) == (0, "")

    with store.reading() as session:
        changed = session.get_one(Asked, (reading.name, asked[2]))
        assert (changed.taken_answer, changed.answer) == ("Monocyte", "Monocyte")
    answers.undo(store, Who("Ada", "key of Ada"))
    reading.read("Ada", dict.fromkeys(asked, "Basophil"))
    take_agreed(workspace, store, 1)
    labels = Pools.read(workspace / "data/pools").frames["labelled"].set_index("sha256")["label"]
    assert (labels[asked[2:]] == "Basophil").sum() == 1, "the last answer was taken back and given anew"


def test_two_readers_are_named_and_a_kill_between_log_and_store_changes_nothing(
    workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = published(workspace, store, site_with(second_reader_share=1.0))
    asked = read_queue(workspace)["sha256"].tolist()
    reading.read("Ada", {})
    assert take_agreed(workspace, store, 1).new == 0, "one of two has read"
    reading.read("Bo", {asked[0]: "Lymphocyte"})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("serving.labelling.queue.taken", killed)
        with pytest.raises(KeyboardInterrupt):
            take_agreed(workspace, store, 1)
    assert len(read_log(workspace)) == 7
    assert take_agreed(workspace, store, 1).new == 0
    assert set(read_log(workspace)["labelled_by"]) == {"Ada + Bo"}
    assert len(read_log(workspace)) == 7
    assert progress(store, workspace_name(workspace)).disputed == 1


def test_a_cell_that_a_file_labelled_leaves_the_queue_and_one_of_the_page_stays(workspace: Path, store: Store) -> None:
    reading = published(workspace, store, site_with())
    asked = read_queue(workspace)["sha256"].tolist()
    with store.reading():
        [task] = next_tasks(store, "Ada", 1, reading.site)
    answers.answer(store, Who("Ada", "a"), task.name, "Monocyte", reading.site)
    take_agreed(workspace, store, 1)
    [by_page] = read_log(workspace)["sha256"]
    by_file = next(sha256 for sha256 in asked if sha256 != by_page)
    rows = pd.DataFrame([[by_file, "Basophil", "Eve", ""]], columns=["sha256", "label", "labelled_by", "labelled_at"])
    take_in(workspace, rows, 1)
    assert leave(workspace, store) == 1
    with store.reading() as session:
        states = {one.sha256: one.state for one in session.scalars(select(Asked).where(Asked.purpose == "asked"))}
    assert (states[by_file], states[by_page]) == ("withdrawn", "agreed")
    assert leave(workspace, store) == 0


def test_none_of_the_five_is_taken_back_on_the_page_without_another_answer(workspace: Path, store: Store) -> None:
    reading, ada = published(workspace, store, site_with()), Who("Ada", "a")
    [task] = next_tasks(store, "Ada", 1, reading.site)
    cell = sha_of(store, "Ada", task.name)
    answers.answer(store, ada, task.name, "Smudge", reading.site)
    assert take_agreed(workspace, store, 1).none == 1
    assert cell not in set(awaited(workspace)["sha256"])
    answers.take_back_answer(store, ada, task.name)
    came = take_agreed(workspace, store, 1)
    assert (came.back, came.new, came.line) == (1, 0, "of the people's answers came: 1 taken back")
    pools = Pools.read(workspace / "data/pools")
    assert pools.none_of_five().empty
    assert pools.frames["unlabelled"].set_index("sha256").loc[cell, "labelled_by"] == ""
    assert cell in set(awaited(workspace)["sha256"])
    record = read_none_of_five(workspace)
    assert record[["sha256", "label", "why"]].to_numpy().tolist()[1:] == [[cell, "", "on the page: taken back"]]
    assert take_agreed(workspace, store, 1) == Came(), "once"
    check_replayed(workspace)
    answers.answer(store, ada, task.name, "Smudge", reading.site)
    assert take_agreed(workspace, store, 1).none == 1, "said once more, it is so again"


def test_a_class_from_a_file_after_none_of_the_five_on_the_page_takes_the_cell_off_the_page(
    workspace: Path, store: Store
) -> None:
    reading = published(workspace, store, site_with())
    [task] = next_tasks(store, "Ada", 1, reading.site)
    answers.answer(store, Who("Ada", "a"), task.name, "Smudge", reading.site)
    assert take_agreed(workspace, store, 1).none == 1
    [said] = [one for one in cells_of(store, "asked") if one.state == "agreed"]
    rows = pd.DataFrame(
        [[said.sha256, "Basophil", "Eve", "2099-01-01T00:00:00Z"]], columns=["sha256", "label", "labelled_by", "labelled_at"]
    )
    take_in(workspace, rows, 1)
    assert leave(workspace, store) == 1


def test_an_import_takes_its_cells_off_the_page_and_needs_no_store_for_its_labels(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WBC_STORE_URL", raising=False)
    by_file = read_queue(workspace)["sha256"].tolist()
    given = pd.DataFrame({"sha256": by_file[:2], "label": "Basophil", "labelled_by": "Eve", "labelled_at": ""})
    take_in(workspace, given, 1)
    assert people.leave_queue(workspace) == "", "there is no store"
    with meeting_store(workspace) as store:
        published(workspace, store, site_with())
    take_in(workspace, given.assign(sha256=by_file[2:4]), 1)
    assert people.leave_queue(workspace) == "2 cells left the queue of the page"
    assert people.leave_queue(workspace) == ""
    monkeypatch.setenv("WBC_STORE_URL", "postgresql://nobody:secret@127.0.0.1:9/nothing")
    assert people.left_to_name(workspace) == 4, "files can still answer"
    line = people.leave_queue(workspace)
    assert line.startswith("the page still asks about them, until the next retraining: the store 'nothing' on PostgreSQL")
    assert "secret" not in line


# --- in the wrong order ---------------------------------------------------------------------------------------------------


KEY = "20261129-120000-000"


def waiting(workspace: Path, **more: bool) -> State:
    """A retraining that waits for people."""
    state = State(KEY, "2-0", "2026-11-29T12:00:00+00:00", 0, False, status="waiting", **more)  # type: ignore[arg-type]
    state.write(workspace)
    return state


def asked_of_people(workspace: Path, by_itself: bool = False, **more: bool) -> people.Standing:
    """Ask as a retraining does, in the workspace's own store."""
    return people.ask(workspace, waiting(workspace, **more), read_params(workspace / "params.yaml"), by_itself)


def on_the_page(workspace: Path) -> set[str]:
    with meeting_store(workspace) as store:
        return set(asked_now(store, workspace_name(workspace)))


def labelled(workspace: Path, sha256s: list[str], label: str, by: str = "Eve") -> Taken:
    rows = pd.DataFrame({"sha256": sha256s, "label": label, "labelled_by": by, "labelled_at": ""})
    return take_in(workspace, rows, 1)


def test_labels_that_came_before_the_question_count_and_nobody_is_asked_again(workspace: Path) -> None:
    asked = read_queue(workspace)["sha256"].tolist()
    labelled(workspace, asked[:3], "Basophil")
    standing = asked_of_people(workspace)
    assert standing.wait == Wait(8, 3, 8)
    assert on_the_page(workspace) == set(asked[3:])
    labelled(workspace, asked[3:], "Basophil")
    people.show(workspace)
    assert on_the_page(workspace) == set()
    assert people.stand(workspace).line == "8 of 8 cells are agreed; that is enough: `wbc retrain` goes on"


def test_a_label_that_waited_for_the_end_of_a_training_takes_its_cell_off_the_page(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of_people(workspace)
    cell = read_queue(workspace)["sha256"].iloc[0]
    with monkeypatch.context() as patch:
        patch.setattr("flows.labels.at_work", lambda root: "a retraining (pid 1)")
        assert labelled(workspace, [cell], "Basophil").waits_for
        people.show(workspace)
        assert cell in on_the_page(workspace), "nothing is known of it yet"
    assert take_waiting(workspace) == 1
    people.show(workspace)
    assert cell not in on_the_page(workspace)


def test_a_question_of_before_loses_the_cells_that_the_oracle_has_named_since(workspace: Path) -> None:
    """As where params.yaml was changed, and another retraining began with the oracle."""
    asked_of_people(workspace)
    asked = read_queue(workspace)["sha256"].tolist()
    (workspace / "data/queue.csv").unlink()
    labelled(workspace, asked[:2], "Basophil", "oracle")
    waiting(workspace, scheduled=False)
    people.show(workspace)
    assert on_the_page(workspace) == set(asked[2:])
    assert people.stand(workspace).line == "data/queue.csv is gone: `wbc retrain` asks again"
    with meeting_store(workspace) as store:
        assert progress(store, workspace_name(workspace)).next_step == "data/queue.csv is gone: `wbc retrain` asks again"


def test_a_cell_that_the_checks_take_out_is_waited_for_no_longer(workspace: Path) -> None:
    asked_of_people(workspace)
    gone, *others = read_queue(workspace)["sha256"].tolist()
    with (workspace / "data/quarantine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "sha256", "reason", "detail"], ["0.png", gone, "blank", ""]])
    people.show(workspace)
    assert on_the_page(workspace) == set(others)
    assert people.stand(workspace).wait == Wait(7, 0, 7)


def test_a_cell_that_nobody_can_name_is_waited_for_no_longer(workspace: Path) -> None:
    asked_of_people(workspace)
    gone, *others = read_queue(workspace)["sha256"].tolist()
    labelled(workspace, others, "Basophil")
    assert people.stand(workspace).wait == Wait(8, 7, 8)
    site = site_with(**NOBODY_TWICE)
    with meeting_store(workspace) as store:
        for reader in ("Ada", "Ben"):
            task = next(one for one in next_tasks(store, reader, 20, site) if sha_of(store, reader, one.name) == gone)
            answers.answer(store, Who(reader, "key"), task.name, UNSURE, site)
        [one] = disputes(store, "Eve", 3, site)
        decide(store, Who("Eve", "key"), one.name, UNSURE, site)
    standing = people.stand(workspace)
    assert (standing.wait, people.cells_given_up(workspace)) == (Wait(7, 7, 7), {gone})
    assert standing.line.startswith("7 of 7 cells are agreed; ")
    assert standing.line.endswith("; nobody can name 1; that is enough: `wbc retrain` goes on")
    assert people.take(workspace).new == 0, "it is no label"
    people.note_nameless(workspace)
    assert nameless(workspace) == {gone}, "no query asks about it"
    with meeting_store(workspace) as store:
        undo(store, Who("Eve", "key"))
    assert people.stand(workspace).wait == Wait(8, 7, 8)
    people.note_nameless(workspace)
    assert nameless(workspace) == set(), "the word was taken back"


def sha_of(store: Store, reader: str, task: str) -> str:
    with store.reading() as session:
        return session.get_one(Task, (task[:12], reader, int(task[13:]))).sha256


def test_a_queue_that_was_made_anew_is_put_to_people_too(workspace: Path) -> None:
    """As after `dvc repro` or `wbc query` while a retraining waits: the round is the same, its cells are others."""
    asked_of_people(workspace, by_itself=True)
    before = read_queue(workspace)
    unlabelled = Pools.read(workspace / "data/pools").frames["unlabelled"]
    others = unlabelled[~unlabelled["sha256"].isin(before["sha256"])].head(8)
    made = before.assign(sha256=others["sha256"].to_numpy(), path=others["path"].to_numpy())
    made.to_csv(workspace / "data/queue.csv", index=False)
    state = read_state(workspace)
    assert state is not None
    people.ask(workspace, state, read_params(workspace / "params.yaml"), False)
    assert on_the_page(workspace) == set(before["sha256"]) | set(made["sha256"])
    assert state.scheduled, "a person who looks in on it does not stop the watch"
    state.cycle += 1
    people.ask(workspace, state, read_params(workspace / "params.yaml"), False)
    assert not state.scheduled, "the next round is that of who asks it"
    people.goes_on_by_itself(workspace)
    assert (after := read_state(workspace)) is not None
    assert after.scheduled


def test_a_label_that_changes_after_the_resume_is_the_next_rounds(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_of_people(workspace)
    cell = read_queue(workspace)["sha256"].iloc[0]
    labelled(workspace, [cell], "Basophil", "Ada")
    note_learned(workspace, Pools.read(workspace / "data/pools"))
    with monkeypatch.context() as patch:
        patch.setattr("flows.labels.at_work", lambda root: "a retraining (pid 1)")
        labelled(workspace, [cell], "Monocyte", "Dr Lead")
        assert new_labels(workspace) == 0, "the training works on the pools as they are"
    take_waiting(workspace)
    assert new_labels(workspace) == 1
    assert read_log(workspace)["label"].tolist() == ["Basophil", "Monocyte"]


# --- when it goes on, and what it says ------------------------------------------------------------------------------------


def test_it_goes_on_when_enough_is_agreed_or_the_time_is_up_with_something() -> None:
    over = NOW - timedelta(seconds=1)
    assert not Wait(400, 299, 300).ready(NOW)
    assert Wait(400, 300, 300).ready(NOW) == "300 of 400 cells are agreed, and 300 are enough"
    assert Wait(400, 1, 300, over).ready(NOW) == "the time is up, with 1 of 400 cells agreed"
    assert not Wait(400, 0, 300, over).ready(NOW)
    assert Wait(400, 0, 300, over).overdue(NOW)
    assert not Wait(400, 1, 300, NOW + timedelta(hours=1)).ready(NOW)


LATER = datetime(2026, 12, 2, 8, tzinfo=UTC)
BUSY = Progress("q", 0, 400, 120, 3, 200, left={"Bo": 12, "Ada": 40, "Cy": 0})


@pytest.mark.parametrize(
    ("wait", "seen", "scheduled", "line"),
    [
        (
            Wait(400, 120, 300, LATER),
            BUSY,
            True,
            "120 of 400 cells are agreed; Ada has 40 to read, Bo 12; 3 await adjudication; "
            "the retraining goes on at 300, or on Dec 2, 08:00 UTC",
        ),
        (
            Wait(400, 120, 300, LATER),
            BUSY,
            False,
            "120 of 400 cells are agreed; Ada has 40 to read, Bo 12; 3 await adjudication; "
            "`wbc retrain` goes on with what is agreed, and 300 are enough",
        ),
        (
            Wait(1, 0, 1),
            Progress("q", cells=1, open=1),
            True,
            "0 of 1 cell is agreed; nobody has begun to read; the retraining goes on at 1",
        ),
        (
            Wait(8, 5, 8),
            Progress("q", readers={"Ada": 8}, unnamed=1, disputed=1),
            True,
            "5 of 8 cells are agreed; 1 awaits adjudication; nobody can name 1; the retraining goes on at 8",
        ),
        (Wait(9, 9, 9), None, True, "9 of 9 cells are agreed; the retraining goes on now"),
        (Wait(9, 9, 9), None, False, "9 of 9 cells are agreed; that is enough: `wbc retrain` goes on"),
        (
            Wait(9, 0, 9, NOW),
            None,
            True,
            "0 of 9 cells are agreed; the time is up, and the retraining goes on with the first answer",
        ),
        (Wait(9, 2, 9, NOW), None, True, "2 of 9 cells are agreed; the time is up, and the retraining goes on now"),
    ],
)
def test_one_line_says_what_happens_next_and_by_whom(wait: Wait, seen: Progress | None, scheduled: bool, line: str) -> None:
    assert in_words(next_parts(wait, seen, scheduled, NOW)) == line


def test_the_page_repeats_the_line_only_where_somebody_repeats_it_each_minute() -> None:
    wait = Wait(20, 3, 15)
    parts = next_parts(wait, BUSY, True, NOW)
    assert said_on_the_page(wait, parts, True) == parts
    later = "somebody starts the retraining with `wbc retrain`; 15 of 20 agreed cells are enough"
    assert in_words(said_on_the_page(wait, parts, False)) == later


def test_a_crowd_of_readers_keeps_the_line_short() -> None:
    seen = Progress("q", open=9, left={f"reader {number}": 50 - number for number in range(9)})
    line = in_words(next_parts(Wait(9, 0, 9), seen, True, NOW))
    assert "reader 0 has 50 to read, reader 1 49" in line
    assert "3 more" in line
    assert "reader 7" not in line
