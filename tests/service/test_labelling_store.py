"""The labelling's store: who is given which cell, what stands, what is agreed; on SQLite and on a real PostgreSQL."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from readers import NOTICE, PICTURE, QUEUE, asked, cell, in_groups, next_of, reads_all, says, sha_of, site_of
from specimens import SPECIMEN, reported, several
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from serving.contract.labelling import NOT_A_LEUKOCYTE, UNSURE
from serving.contract.site import KeepImages
from serving.labelling import answers as answers_module
from serving.labelling import tasks as tasks_module
from serving.labelling.answers import answer_several, take_back_answer, take_back_decision, undo
from serving.labelling.comparison import agreement
from serving.labelling.disputes import decide, dispute_image, disputes
from serving.labelling.errors import LeftTheQueue, NoAnswerToUndo, NoImage, NoSuchDispute, NotAsked, OwnReading, UnknownKind
from serving.labelling.history import said
from serving.labelling.overview import overview
from serving.labelling.queue import Notice, agreed, close, progress, publish, say, taken, withdraw_cells
from serving.labelling.readings import Readings, readings_of
from serving.labelling.references import reference_image, references
from serving.labelling.sweep import sweep_tasks
from serving.labelling.tasks import LAPSE, Who, image_of, next_tasks
from serving.reports.kept_images import delete_of_closed_queues
from serving.reports.labelling_tables import READ, Answer, Asked, AskedImage, Queue, Reader, Task
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Cell
from serving.security.image_key import ImageKey, ImageKeys
from serving.upkeep.removal import remove
from wbc_model.core.errors import WbcError

ADA, BEN, EVE = "Dr. Ada", "Dr. Ben", "Dr. Eve"
NEXT = "fedcba987654"
TWO = site_of(second=1.0)


@pytest.fixture
def light(tmp_path: Path) -> Store:
    """SQLite: where the database makes no difference."""
    return Store.open(sqlite_url(tmp_path / "light.db"))


def cell_of(store: Store, number: int = 0, queue: str = QUEUE) -> Asked:
    with store.reading() as session:
        return session.get_one(Asked, (queue, sha_of(number)))


def readings_in(store: Store) -> Readings:
    with store.reading() as session:
        return readings_of(session, "ward")


def sha_of_task(store: Store, reader: str, task: str) -> str:
    with store.reading() as session:
        return session.get_one(Task, (task[:12], reader, int(task[13:]))).sha256


def test_one_answer_is_enough_where_one_reader_is(store: Store) -> None:
    asked(store, 3)
    tasks = reads_all(store, ADA, "Monocyte")
    assert len(tasks) == 3
    found = agreed(store, "ward")
    assert {(one.sha256, one.answer, one.how, one.readers, one.changed, one.cycle) for one in found} == {
        (sha_of(number), "Monocyte", "one", (ADA,), False, 3) for number in range(3)
    }
    far = progress(store, "ward")
    assert (far.cells, far.agreed, far.open, far.disputed, far.readers) == (3, 3, 0, 0, {ADA: 3})


def test_two_readers_must_say_the_same(store: Store) -> None:
    asked(store, 2, TWO)
    first = reads_all(store, ADA, "Monocyte", TWO)
    assert agreed(store, "ward") == []
    assert progress(store, "ward").second_waiting == 2
    assert next_of(store, ADA, TWO) is None, "a reader does not read a cell twice"
    for _ in range(2):
        task = str(next_of(store, BEN, TWO))
        same = sha_of_task(store, BEN, task) == sha_of(0)
        far = says(store, BEN, task, "Monocyte" if same else "Lymphocyte", TWO)
    assert (far.done, far.left, far.disputed) == (2, 0, 1)
    [one] = agreed(store, "ward")
    assert (one.sha256, one.answer, one.how, one.readers) == (sha_of(0), "Monocyte", "two", (ADA, BEN))
    assert next_of(store, EVE, TWO) is None
    assert len(first) == 2


@pytest.mark.parametrize(("second", "state"), [("Monocyte", "disputed"), (UNSURE, "disputed")])
def test_what_one_is_unsure_of_is_read_by_a_second(store: Store, second: str, state: str) -> None:
    asked(store, 1)
    task = next_of(store, ADA)
    assert next_of(store, BEN) is None, "one reader is enough, and has it"
    says(store, ADA, str(task), UNSURE)
    assert (cell_of(store).state, cell_of(store).readers_wanted, progress(store, "ward").unsure) == ("open", 2, 1)
    says(store, BEN, str(next_of(store, BEN)), second)
    assert cell_of(store).state == state


def test_a_change_of_mind_supersedes_and_stays_in_the_record(store: Store) -> None:
    asked(store, 1)
    task = str(next_of(store, ADA))
    for what in ("Monocyte", "Band", "Band"):
        far = says(store, ADA, task, what)
    assert (far.done, cell_of(store).answer) == (1, "Band")
    with store.reading() as session:
        rows = list(session.scalars(select(Answer).order_by(Answer.id)))
    said = [(row.answer, row.reader, row.caller, row.number, row.way, row.seconds) for row in rows]
    assert said == [("Monocyte", ADA, f"key-{ADA}", 1, "single", 1.5), ("Band", ADA, f"key-{ADA}", 1, "single", 1.5)]


def test_undo_takes_back_the_last_that_stands_and_the_task_waits_again(store: Store) -> None:
    asked(store, 2)
    first, second = (str(one.name) for one in next_tasks(store, ADA, 2, site_of()))
    says(store, ADA, first, "Monocyte")
    says(store, ADA, second, "Basophil")
    says(store, ADA, second, "Eosinophil")
    ada = Who(ADA, "k")
    assert undo(store, ada).task == second
    assert {one.answer for one in agreed(store, "ward")} == {"Monocyte", "Basophil"}, "what it had superseded stands again"
    assert [undo(store, ada).task, undo(store, ada).task] == [second, first]
    assert agreed(store, "ward") == []
    assert [one.name for one in next_tasks(store, ADA, 2, site_of())] == [first, second]
    with pytest.raises(NoAnswerToUndo):
        undo(store, ada)
    far = says(store, ADA, first, "Platelet")
    assert (far.done, far.left) == (1, 1)
    with store.reading() as session:
        assert len(list(session.scalars(select(Answer)))) == 7


def test_the_database_itself_keeps_answers_as_they_are(store: Store) -> None:
    asked(store, 1)
    reads_all(store, ADA, "Monocyte")
    for statement in ("UPDATE answers SET answer = 'Basophil'", "DELETE FROM answers"):
        with pytest.raises(DBAPIError, match="only ever added"), store.writing() as session:
            session.execute(text(statement))


def test_what_was_not_asked_is_refused(light: Store) -> None:
    asked(light, 2)
    task = str(next_of(light, ADA))
    for name in (f"{QUEUE}.9", f"{QUEUE}.0", "nothing", f"{'0' * 12}.1", f"{QUEUE}.१", task + "0"):
        with pytest.raises(NotAsked):
            says(light, ADA, name, "Monocyte")
    with pytest.raises(NotAsked):
        says(light, BEN, task, "Monocyte")
    with pytest.raises(NotAsked):
        image_of(light, BEN, task)
    with pytest.raises(UnknownKind, match="'Thing' is no answer at this site"):
        says(light, ADA, task, "Thing")
    assert image_of(light, ADA, task) == PICTURE
    with light.reading() as session:
        assert list(session.scalars(select(Answer))) == []


@pytest.mark.parametrize("why", ["labelled", "held-out", "quarantined"])
def test_a_cell_that_left_the_queue_says_why(light: Store, why: str) -> None:
    asked(light, 2)
    task = str(next_of(light, ADA))
    name = sha_of_task(light, ADA, task)
    assert withdraw_cells(light, "ward", [name, "f" * 64], why) == 1  # type: ignore[arg-type]
    with pytest.raises(LeftTheQueue) as refused:
        says(light, ADA, task, "Monocyte")
    assert refused.value.why == why
    assert progress(light, "ward").cells == 1


def test_a_cell_that_left_the_queue_is_shown_to_nobody_again(light: Store) -> None:
    asked(light, 3)
    first, *rest = [one.name for one in next_tasks(light, ADA, 3, site_of())]
    withdraw_cells(light, "ward", [sha_of_task(light, ADA, first)])
    assert [one.name for one in next_tasks(light, ADA, 3, site_of())] == rest
    assert overview(light, ADA).left == 2
    for task in rest:
        says(light, ADA, task, "Monocyte")
    assert next_of(light, ADA) is None
    assert (overview(light, ADA).done, overview(light, ADA).left) == (2, 0)
    [reader] = agreement(light, site_of(), lead=True).readers
    assert reader.left == 0


def test_who_has_how_much_to_do_is_of_now(light: Store) -> None:
    asked(light, 6)
    says(light, ADA, str(next_of(light, ADA)), "Monocyte")
    assert progress(light, "ward").left == {ADA: 5}
    reads_all(light, BEN, "Monocyte")
    assert progress(light, "ward").left == {ADA: 0, BEN: 0}, "others have read what was left for her"


def test_answers_in_a_sweep_are_all_taken_or_none(light: Store) -> None:
    asked(light, 3)
    names = [one.name for one in next_tasks(light, ADA, 3, site_of())]
    ada = Who(ADA, "k")
    with pytest.raises(UnknownKind):
        answer_several(light, ada, {names[0]: "Monocyte", names[1]: "Thing"}, site_of())
    with pytest.raises(NotAsked):
        answer_several(light, ada, {names[0]: "Monocyte", f"{QUEUE}.7": "Monocyte"}, site_of())
    assert overview(light, ADA).done == 0
    far = answer_several(light, ada, dict.fromkeys(names, NOT_A_LEUKOCYTE), site_of(), 6.0)
    assert (far.done, far.left, len(far.cells)) == (3, 0, 3)
    assert overview(light, ADA).median_seconds == 2.0


def test_a_task_lapses_and_its_cell_is_free_for_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(store, 1)
    task = str(next_of(store, ADA))
    assert next_of(store, BEN) is None
    later = datetime.now(UTC) + LAPSE + timedelta(seconds=1)
    monkeypatch.setattr(tasks_module, "now", lambda: later)
    other = next_of(store, BEN)
    assert other is not None
    assert next_of(store, ADA) is None
    says(store, BEN, other, "Monocyte")
    says(store, ADA, task, "Lymphocyte")  # who comes back late has read the cell, too: no answer is lost
    assert cell_of(store).state == "disputed"


def test_what_lapsed_and_nobody_took_is_given_again_to_the_same_reader(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(store, 2)
    before = [one.name for one in next_tasks(store, ADA, 2, site_of())]
    monkeypatch.setattr(tasks_module, "now", lambda: datetime.now(UTC) + LAPSE + timedelta(seconds=1))
    assert next_of(store, BEN) is not None
    again = [one.name for one in next_tasks(store, ADA, 2, site_of())]
    assert len(again) == 1
    assert again[0] in before


def test_a_third_person_decides_and_sees_no_names(store: Store) -> None:
    asked(store, 1, TWO)
    reads_all(store, ADA, "Monocyte", TWO)
    reads_all(store, BEN, "Lymphocyte", TWO)
    assert disputes(store, ADA, 3, TWO) == disputes(store, BEN, 3, TWO) == []
    [one] = disputes(store, EVE, 3, TWO)
    assert (one.answers, one.predicted, one.left) == (("Lymphocyte", "Monocyte"), "Basophil", 1)
    with pytest.raises(OwnReading):
        decide(store, Who(ADA, "k"), one.name, "Monocyte", TWO)
    eve = Who(EVE, "k")
    assert decide(store, eve, one.name, "Monocyte", TWO).left == 0
    [found] = agreed(store, "ward")
    assert (found.answer, found.how, found.readers) == ("Monocyte", "adjudicated", (EVE,))
    decide(store, eve, one.name, "Blast", TWO)
    assert [found.answer for found in agreed(store, "ward")] == ["Blast"]
    assert undo(store, eve).dispute == one.name
    assert [found.answer for found in agreed(store, "ward")] == ["Monocyte"]


def test_what_a_third_person_cannot_name_waits_for_nobody_and_can_be_named_all_the_same(store: Store) -> None:
    eve, fay = Who(EVE, "k"), Who("Dr. Fay", "k")
    asked(store, 2, TWO)
    reads_all(store, ADA, "Monocyte", TWO)
    reads_all(store, BEN, UNSURE, TWO)
    name = next(one.name for one in disputes(store, EVE, 3, TWO) if one.name.endswith(f"{cell_of(store).place:015x}"))
    assert decide(store, eve, name, UNSURE, TWO).left == 1
    assert (cell_of(store).state, cell_of(store).answer, cell_of(store).vacant) == ("unnamed", None, False)
    assert agreed(store, "ward") == []
    assert name not in {one.name for one in disputes(store, "Dr. Fay", 3, TWO)}
    assert [one.name for one in disputes(store, "Dr. Fay", 3, TWO, unnamed=True)] == [name]
    far, seen = progress(store, "ward"), overview(store, EVE)
    assert (far.unnamed, far.disputed, seen.unnamed, seen.cells, seen.disputed) == (1, 1, 1, 2, 1)
    assert "unsure" not in readings_in(store).adjudicated.values()

    # Whoever knows better says so; and takes it back, and so does the first.
    decide(store, fay, name, "Blast", TWO)
    assert [one.answer for one in agreed(store, "ward")] == ["Blast"]
    assert undo(store, fay).dispute == name
    assert cell_of(store).state == "unnamed"
    assert take_back_decision(store, eve, name) == (None, name, sha_of(0))
    assert cell_of(store).state == "disputed"
    with pytest.raises(NoAnswerToUndo):
        take_back_decision(store, eve, name)


def test_what_nobody_could_name_is_not_asked_again_by_the_next_queue(store: Store) -> None:
    eve = Who(EVE, "k")
    asked(store, 1, TWO)
    for reader in (ADA, BEN):
        reads_all(store, reader, UNSURE, TWO)
    [one] = disputes(store, EVE, 3, TWO)
    decide(store, eve, one.name, UNSURE, TWO)
    asked(store, 1, TWO, queue=NEXT)
    assert (cell_of(store, queue=NEXT).state, next_of(store, "Dr. Fay", TWO)) == ("unnamed", None)
    assert disputes(store, "Dr. Fay", 3, TWO) == []
    [again] = disputes(store, "Dr. Fay", 3, TWO, unnamed=True)
    assert again.name.startswith(NEXT)
    assert take_back_decision(store, eve, one.name).dispute == one.name
    assert cell_of(store, queue=NEXT).state == "disputed", "taken back where it was said, it waits where it is asked now"


def test_what_somebody_said_is_found_again_and_taken_back_at_any_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    site, ada = site_of(repeat=0.4), Who(ADA, "k")
    asked(store, 30, site)
    tasks = reads_all(store, ADA, "Platelet", site)
    with store.reading() as session:
        counted = [f"{QUEUE}.{task.number}" for task in session.scalars(select(Task).order_by(Task.number)) if task.kind in READ]
    assert len(tasks) > len(counted) == 30, "a repetition decides nothing, and is not shown"
    says(store, ADA, counted[3], "Monocyte", site)
    assert [one.task for one in said(store, ADA, 2)] == [counted[3], counted[29]]
    listed = said(store, ADA, 100)
    assert (len(listed), {one.answer for one in listed[1:]}, listed[0].answer) == (30, {"Platelet"}, "Monocyte")
    assert [one.id for one in said(store, ADA, 5, listed[10].id)] == [one.id for one in listed[11:16]]
    assert said(store, BEN, 5) == []

    close(store, QUEUE)
    monkeypatch.setattr(answers_module, "now", lambda: datetime.now(UTC) + 100 * LAPSE)
    with pytest.raises(NoAnswerToUndo):
        undo(store, ada)
    assert take_back_answer(store, ada, counted[5]).task == counted[5]
    assert len(agreed(store, "ward")) == 29
    assert counted[5] not in {one.task for one in said(store, ADA, 100)}
    with pytest.raises(NoAnswerToUndo):
        take_back_answer(store, ada, counted[5])
    for who, name in ((Who(BEN, "k"), counted[5]), (ada, "nothing")):
        with pytest.raises(NotAsked):
            take_back_answer(store, who, name)
    says(store, ADA, counted[5], "Band", site)
    assert "Band" in {one.answer for one in agreed(store, "ward")}


def test_a_sweep_measures_its_reader_as_single_reading_does(light: Store) -> None:
    site = site_of(repeat=0.2, known=0.2)
    many = in_groups(120, 2)
    known = [replace(one, purpose="known", truth="Band", reason="known") for one in many[:20]]
    asked(light, [*known, *many[20:]], site)
    kinds = Counter[str]()
    while grid := sweep_tasks(light, ADA, 25, site):
        with light.reading() as session:
            given = [session.get_one(Task, (QUEUE, ADA, int(one.name[13:]))) for one in grid]
        assert len({task.sha256 for task in given}) == len(grid)
        assert {task.kind for task in given} - {"known", "repeat"}, "never all of them"
        kinds.update(task.kind for task in given)
        far = answer_several(light, Who(ADA, "k"), {one.name: "Band" for one in grid}, site)
        assert far.left == overview(light, ADA).left
    assert kinds["first"] == 100
    assert 10 <= kinds["known"] <= 20
    assert 10 <= kinds["repeat"] <= 50
    found = readings_in(light)
    assert (len(found.known[ADA]), len(found.twice[ADA])) == (kinds["known"], kinds["repeat"])
    assert len(agreed(light, "ward")) == 100


def test_the_cells_of_a_removed_report_leave_the_queues(store: Store) -> None:
    removed, other = (reported(store, results=several("Neutrophil", 2)) for _ in range(2))
    with store.reading() as session:
        of = {one: list(session.scalars(select(Cell.sha256).where(Cell.report_id == one))) for one in (removed, other)}
    cells = [replace(cell(number), sha256=name) for number, name in enumerate([*of[removed], *of[other]])]
    asked(store, cells)
    task, *_ = tasks = [one.name for one in next_tasks(store, ADA, 4, site_of())]
    says(store, ADA, task, "Monocyte")
    close(store, QUEUE)
    asked(store, [*cells, replace(cells[0], sha256=sha_of(7), purpose="reference", truth="Band")], queue=NEXT)
    remove(store, removed, "Dr. Ada", "asked for")
    with store.reading() as session:
        images = set(session.scalars(select(AskedImage.sha256)))
        states = {(one.sha256, one.state, one.withdrawn) for one in session.scalars(select(Asked)) if one.sha256 in of[removed]}
        people = [list(session.execute(table.__table__.select())) for table in (Queue, Asked, Task, Answer, Reader)]
    assert images == {*of[other], sha_of(7)}
    assert states == {(sha256, "withdrawn", "removed") for sha256 in of[removed]}
    assert removed not in str(people)
    assert SPECIMEN not in str(people)
    far = progress(store, "ward")
    assert (far.cells, far.removed) == (2, 2)
    gone = next(one for one in tasks if sha_of_task(store, ADA, one) in of[removed])
    with pytest.raises(LeftTheQueue, match="removed with its report"):
        says(store, ADA, gone, "Band")
    assert {sha_of_task(store, ADA, one) for one in reads_all(store, ADA, "Band")} <= set(of[other])


def test_the_images_of_a_queue_go_after_their_time_and_the_answers_stay(store: Store) -> None:
    asked(store, [cell(0), cell(1), cell(2), cell(9, purpose="reference", truth="Band")], TWO)
    first = reads_all(store, ADA, "Monocyte", TWO)
    reads_all(store, BEN, "Band", TWO)
    [dispute, *_] = disputes(store, EVE, 3, TWO)
    moment = datetime.now(UTC)
    assert delete_of_closed_queues(store, 0, moment + timedelta(days=9)) == 0, "it is open"
    close(store, QUEUE)
    assert delete_of_closed_queues(store, 90, moment + timedelta(days=89)) == 0
    assert len(references(store, EVE, TWO)["Band"]) == 1
    assert [delete_of_closed_queues(store, 90, moment + timedelta(days=91)) for _ in range(2)] == [1, 0]
    with store.reading() as session:
        assert list(session.scalars(select(AskedImage.sha256))) == []
        assert len(list(session.scalars(select(Answer)))) == 6
    assert (references(store, EVE, TWO)["Band"], disputes(store, EVE, 3, TWO)) == ([], [])
    for look in (lambda: image_of(store, ADA, first[0]), lambda: dispute_image(store, dispute.name)):
        with pytest.raises(NoImage):
            look()
    assert [one.image for one in said(store, ADA, 1)] == [False]


def test_what_is_not_in_dispute_is_not_decided(light: Store) -> None:
    asked(light, 1)
    reads_all(light, ADA, "Monocyte")
    with light.reading() as session:
        place = session.get_one(Asked, (QUEUE, sha_of(0))).place
    for name in (f"{QUEUE}.{place:015x}", "nothing", f"{QUEUE}.{'0' * 15}"):
        with pytest.raises(NoSuchDispute):
            decide(light, Who(EVE, "k"), name, "Basophil", site_of())


def test_the_flow_takes_each_agreement_once_and_what_changed_again(store: Store) -> None:
    asked(store, 2)
    tasks = reads_all(store, ADA, "Monocyte")
    found = agreed(store, "ward")
    taken(store, found)
    taken(store, found)
    assert agreed(store, "ward") == []
    says(store, ADA, tasks[0], "Basophil")
    [one] = agreed(store, "ward")
    assert (one.answer, one.changed, one.taken) == ("Basophil", True, "Monocyte")
    says(store, ADA, tasks[0], "Monocyte")
    taken(store, [one])  # it says something else meanwhile, and is as it was taken
    assert agreed(store, "ward") == []


def test_a_queue_is_put_in_once_however_often_it_is_published(store: Store) -> None:
    assert [asked(store, 5), asked(store, 5), asked(store, 7)] == [5, 0, 2]
    tasks = reads_all(store, ADA, "Monocyte")
    assert asked(store, 7) == 0
    assert (len(tasks), progress(store, "ward").agreed) == (7, 7)
    say(store, QUEUE, "Dr. Ada reads 7 cells", {"text": "+1 %", "low": 0.1, "high": 2.0})
    far = progress(store, "ward")
    assert (far.next_step, far.gain) == ("Dr. Ada reads 7 cells", {"text": "+1 %", "low": 0.1, "high": 2.0})


def test_a_killed_publishing_shows_nothing_and_goes_on(light: Store) -> None:
    asked(light, [cell(1)], queue="aaaaaaaaaaaa")

    def killed() -> object:
        yield from map(cell, range(2, 350))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(light, QUEUE, NOTICE, killed(), site_of())  # type: ignore[arg-type]
    assert next_of(light, ADA, site_of()) == "aaaaaaaaaaaa.1", "the queue before is still the one that is read"
    assert asked(light, map(cell, range(2, 350))) == 148
    assert str(next_of(light, ADA)).startswith(QUEUE)


def test_the_next_queue_closes_the_one_before_and_knows_what_was_said(store: Store) -> None:
    asked(store, 2, TWO, queue="aaaaaaaaaaaa")
    task = str(next_of(store, ADA, TWO))
    name = sha_of_task(store, ADA, task)
    says(store, ADA, task, "Monocyte", TWO)
    asked(store, 2, TWO)
    left = str(next_of(store, ADA, TWO))
    assert left.startswith(QUEUE)
    assert sha_of_task(store, ADA, left) != name, "the reader has named the other one, in the queue before"
    reads_all(store, BEN, "Monocyte", TWO)
    found = agreed(store, "ward")
    assert [(one.queue_id, one.sha256, one.readers) for one in found] == [(QUEUE, name, (ADA, BEN))]
    close(store, QUEUE)
    assert next_of(store, ADA, TWO) is None
    assert overview(store, ADA).queue is None
    says(store, ADA, left, "Monocyte", TWO)  # an answer on its way is not lost
    assert len(agreed(store, "ward")) == 2


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([cell(0), cell(0)], "stands twice"),
        ([cell(0, purpose="known")], "nothing that a cell can be"),
        ([cell(0, purpose="reference", truth="Thing")], "nothing that a cell can be"),
        ([cell(0, purpose="known", truth=UNSURE)], "nothing that a cell can be"),
        ([cell(0, data=b"no picture")], "is no picture"),
    ],
)
def test_a_cell_that_cannot_be_asked_for_is_named(light: Store, cells: list[object], words: str) -> None:
    with pytest.raises(WbcError, match=words) as refused:
        publish(light, QUEUE, NOTICE, cells, site_of())  # type: ignore[arg-type]
    assert sha_of(0) in str(refused.value)
    with pytest.raises(WbcError, match="12 hexadecimal digits"):
        publish(light, "queue 1", NOTICE, [], site_of())
    with pytest.raises(WbcError, match="of the workspace 'ward'"):
        publish(light, QUEUE, Notice("other", 1, "m"), [], site_of())


def test_orders_are_shuffled_for_each_reader_and_say_nothing_of_rank(light: Store) -> None:
    asked(light, 200, TWO)
    ranks = {}
    for reader in (ADA, BEN):
        names = [one.name for one in next_tasks(light, reader, 100, TWO)]
        with light.reading() as session:
            tasks = {f"{QUEUE}.{task.number}": task.sha256 for task in session.scalars(select(Task).where(Task.reader == reader))}
            rank = dict(session.execute(select(Asked.sha256, Asked.rank)).tuples().all())
        ranks[reader] = [rank[tasks[name]] for name in names]
        rising = sum(one < other for one, other in zip(ranks[reader], ranks[reader][1:], strict=False))
        assert 30 <= rising <= 69
    both = set(ranks[ADA]) & set(ranks[BEN])
    orders = [[rank for rank in ranks[reader] if rank in both] for reader in (ADA, BEN)]
    follow = sum(orders[1].index(two) == orders[1].index(one) + 1 for one, two in zip(orders[0], orders[0][1:], strict=False))
    assert len(both) > 20
    assert follow < len(both) / 4


def test_repeats_and_known_cells_are_among_the_tasks_and_count_for_no_cell(light: Store) -> None:
    shares = site_of(repeat=0.1, known=0.1)
    known = [cell(1000 + number, purpose="known", truth="Basophil") for number in range(40)]
    asked(light, [*map(cell, range(100)), *known], shares)
    reads_all(light, ADA, "Monocyte", shares)
    with light.reading() as session:
        tasks = list(session.scalars(select(Task).order_by(Task.number)))
    kinds = Counter(task.kind for task in tasks)
    assert kinds["first"] == 100
    assert 4 <= kinds["repeat"] <= 25
    assert 4 <= kinds["known"] <= 25
    for kind in ("known", "repeat", "first"):
        names = [task.sha256 for task in tasks if task.kind == kind]
        assert len(set(names)) == len(names)
    number_of = {task.sha256: task.number for task in tasks if task.kind == "first"}
    assert all(task.number - number_of[task.sha256] > tasks_module.REPEAT_AFTER for task in tasks if task.kind == "repeat")
    assert progress(light, "ward").agreed == len(agreed(light, "ward")) == 100
    repeat = next(task for task in tasks if task.kind == "repeat")
    says(light, ADA, f"{QUEUE}.{repeat.number}", "Basophil", shares)
    assert {one.answer for one in agreed(light, "ward")} == {"Monocyte"}


def test_a_share_of_the_cells_is_read_by_two(light: Store) -> None:
    asked(light, 300, site_of(second=0.2))
    with light.reading() as session:
        wanted = Counter(session.scalars(select(Asked.readers_wanted)))
    assert wanted.total() == 300
    assert 40 <= wanted[2] <= 80


def test_a_grid_holds_alike_cells_and_waits_until_it_is_answered(store: Store) -> None:
    asked(store, in_groups(60, 3))
    grid = sweep_tasks(store, ADA, 15, site_of())
    assert len(grid) == 15
    with store.reading() as session:
        numbers = {sha_of(number): number for number in range(60)}
        groups = {numbers[name] % 3 for name in session.scalars(select(Task.sha256).where(Task.reader == ADA))}
    assert len(groups) == 1
    assert sweep_tasks(store, ADA, 15, site_of()) == grid
    other = sweep_tasks(store, BEN, 15, site_of())
    taken_by = {sha_of_task(store, ADA, one.name) for one in grid} & {sha_of_task(store, BEN, one.name) for one in other}
    assert taken_by == set()
    answer_several(store, Who(ADA, "k"), {one.name: "Monocyte" for one in grid}, site_of(), 12.0)
    following = sweep_tasks(store, ADA, 15, site_of())
    assert not {one.name for one in following} & {one.name for one in grid}


def test_what_is_not_named_of_a_grid_comes_by_itself(light: Store) -> None:
    asked(light, in_groups(60, 3))
    named, odd = (grid := sweep_tasks(light, ADA, 15, site_of()))[3:], grid[:3]
    answer_several(light, Who(ADA, "k"), {one.name: "Monocyte" for one in named}, site_of(), 12.0)
    assert not {one.name for one in sweep_tasks(light, ADA, 15, site_of())} & {one.name for one in grid}
    assert {one.name for one in odd} <= {one.name for one in next_tasks(light, ADA, 5, site_of())}


def test_without_embeddings_there_is_no_grid(light: Store) -> None:
    assert sweep_tasks(light, ADA, 25, site_of()) == []
    asked(light, 5)
    assert sweep_tasks(light, ADA, 25, site_of()) == []


def test_references_are_agreed_ones_first_then_published_ones(light: Store) -> None:
    other = site_of()
    published = [cell(500 + number, purpose="reference", truth="Monocyte") for number in range(3)]
    asked(light, [*map(cell, range(2)), *published])
    says(light, ADA, str(next_of(light, ADA)), "Monocyte")
    assert len(references(light, BEN, other)["Monocyte"]) == 4
    assert len(references(light, ADA, other)["Monocyte"]) == 3, "what she may be asked about again is not shown to her"
    assert references(light, BEN, other)["Band"] == []
    assert UNSURE not in references(light, BEN, other)
    assert reference_image(light, references(light, BEN, other)["Monocyte"][0]) == PICTURE
    close(light, QUEUE)
    assert len(references(light, ADA, other)["Monocyte"]) == 4


def test_images_are_sealed_where_the_sites_are(light: Store, tmp_path: Path) -> None:
    sealed = site_of(keep_images=KeepImages(encrypted=True))
    with pytest.raises(WbcError, match="WBC_IMAGE_KEY_FILE"):
        asked(light, 1, sealed)
    keys = ImageKeys([ImageKey(bytes(32))])
    store = Store.open(sqlite_url(tmp_path / "sealed.db"), keys)
    asked(store, 1, sealed)
    with store.reading() as session:
        image = session.get_one(AskedImage, (QUEUE, sha_of(0)))
    assert PICTURE not in image.data
    assert image.key == keys.newest.name if keys.newest else False
    assert image_of(store, ADA, str(next_of(store, ADA))) == PICTURE


def test_the_size_of_an_image_is_that_which_is_shown(light: Store) -> None:
    from live import encode
    from PIL import Image

    turned = Image.new("RGB", (60, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    wide = encode(Image.new("RGB", (2048, 512)))
    asked(light, [cell(0, data=wide), cell(1, data=encode(turned, "JPEG", exif=exif))])
    sizes = {(one.width, one.height) for one in next_tasks(light, ADA, 2, site_of())}
    assert sizes == {(1024, 256), (20, 60)}


def test_done_and_left_are_carried_on_as_they_are_counted(store: Store) -> None:
    asked(store, 12, TWO)
    assert overview(store, ADA).left == 12
    for number in range(5):
        far = says(store, ADA, str(next_of(store, ADA, TWO)), "Monocyte", TWO)
        assert (far.done, far.left) == (number + 1, 11 - number)
    seen = overview(store, ADA)
    assert (seen.done, seen.left, seen.cells, seen.median_seconds) == (5, 7, 12, 1.5)
    assert overview(store, BEN).left == 12
