"""The next queue asks about cells that readers of the one before still have on their screens; on SQLite and on PostgreSQL."""

import pytest
from readers import PICTURE, QUEUE, asked, cell, next_of, reads_all, says, sha_of, site_of

from serving.labelling import answers as answers_module
from serving.labelling.answers import undo
from serving.labelling.disputes import decide, disputes
from serving.labelling.errors import NoAnswerToUndo
from serving.labelling.queue import Notice, agreed, close, progress, publish, taken
from serving.labelling.tasks import LAPSE, Who, image_of, next_tasks, now
from serving.reports.store import Store

ADA, BEN = "Dr. Ada", "Dr. Ben"
NEXT = "fedcba987654"


def test_cells_that_wait_on_a_screen_are_asked_again_of_the_same_reader(store: Store) -> None:
    asked(store, 6)
    assert len(next_tasks(store, ADA, 4, site_of())) == 4
    asked(store, 6, queue=NEXT)
    assert len(reads_all(store, ADA, "Monocyte")) == 6
    assert progress(store, "ward").agreed == 6


def test_cells_that_wait_on_a_screen_are_free_for_others(store: Store) -> None:
    asked(store, 6)
    assert len(next_tasks(store, ADA, 4, site_of())) == 4
    close(store, QUEUE)
    asked(store, 6, queue=NEXT)
    assert len(reads_all(store, BEN, "Monocyte")) == 6
    assert progress(store, "ward").agreed == 6


def test_an_answer_that_comes_late_counts_in_the_next_queue(store: Store) -> None:
    asked(store, 1)
    late = str(next_of(store, ADA))
    asked(store, 1, queue=NEXT)
    says(store, ADA, late, "Band")
    assert (progress(store, "ward").agreed, next_of(store, BEN)) == (1, None)
    assert {one.answer for one in agreed(store, "ward")} == {"Band"}


def test_a_dispute_outlives_its_queue_and_is_decided_where_its_cell_was_asked_last(store: Store) -> None:
    both = site_of(second=1.0)
    asked(store, 2, both)
    for reader, said in ((ADA, "Monocyte"), (BEN, "Band")):
        reads_all(store, reader, said, both)
    asked(store, [cell(0)], both, queue=NEXT)
    found = {one.name.partition(".")[0]: one.name for one in disputes(store, "Dr. Eve", 9, both)}
    assert set(found) == {QUEUE, NEXT}, "the cell that is not asked again is decided in the queue that has closed"
    assert [one.left for one in disputes(store, "Dr. Eve", 9, both)] == [2, 2]
    assert decide(store, Who("Dr. Eve", "key"), found[QUEUE], "Monocyte", both).left == 1
    assert [(one.sha256, one.answer, one.how) for one in agreed(store, "ward")] == [(sha_of(1), "Monocyte", "adjudicated")]


def test_another_workspace_asks_the_same_person_about_the_same_cell(store: Store) -> None:
    asked(store, 2)
    assert len(reads_all(store, ADA, "Monocyte")) == 2
    close(store, QUEUE)
    publish(store, NEXT, Notice(workspace="other ward", cycle=1, model_version="m"), [cell(0), cell(1)], site_of())
    assert len(reads_all(store, ADA, "Band")) == 2
    assert {(one.sha256, one.answer) for one in agreed(store, "other ward")} == {(sha_of(0), "Band"), (sha_of(1), "Band")}
    assert {one.answer for one in agreed(store, "ward")} == {"Monocyte"}


def test_the_last_answer_can_be_taken_back_just_after_its_queue_was_closed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last wanted answer closes a queue, and it is the one of which somebody thinks better."""
    asked(store, 1)
    task = str(next_of(store, ADA))
    says(store, ADA, task, "Band")
    taken(store, agreed(store, "ward"))
    asked(store, [cell(1)], queue=NEXT)
    assert undo(store, Who(ADA, "key")).task == task
    assert image_of(store, ADA, task) == PICTURE
    says(store, ADA, task, "Monocyte")
    assert [(one.sha256, one.answer, one.changed) for one in agreed(store, "ward")] == [(sha_of(0), "Monocyte", True)]
    moment = now()
    monkeypatch.setattr(answers_module, "now", lambda: moment + LAPSE)
    with pytest.raises(NoAnswerToUndo):
        undo(store, Who(ADA, "key"))
