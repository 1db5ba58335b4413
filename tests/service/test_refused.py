"""The domain says what it refuses and why; only serving/http makes problem documents of that, by one table."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import serving
from serving.contract.errors import Refused
from serving.contract.schemas import Block, ModelName
from serving.http.refused import TABLE, problem_of
from serving.labelling import errors as labelling
from serving.reports import errors as reports
from serving.security import errors as security
from serving.worklist import errors as worklist

ROOM = Path(str(serving.__file__)).parent
REPORT = "0123456789abcdef0123456789abcdef"
OLD, NEW = ModelName(name="wbc", version="1"), ModelName(name="wbc", version="2")
BLOCKED = [Block(kind="rendered_model", detail="Drawn."), Block(kind="unreviewed", detail="4 cells wait.")]
NUMBER = (409, "expected-images", "Another number of images")
FIELD = {"field": "expected_images"}
FULL = "Nothing was done: the call cannot be written into the audit log; the operator must make room for it."
AGAIN = "The report was changed while its cells were counted again; nothing was added. Try again."
ANSWERS: list[tuple[Refused, tuple[int, str, str], str, dict[str, Any], dict[str, str]]] = [
    (reports.NoSuchReport(), (404, "no-such-report", "No such report"), "There is no report with this id.", {}, {}),
    (
        reports.ChangedMeanwhile(version=3, expected=2),
        (412, "changed-meanwhile", "Changed meanwhile"),
        "The report was changed meanwhile: it is at version 3, not 2. Read it again.",
        {},
        {"ETag": '"3"'},
    ),
    (
        reports.NoSuchCell(position=20, cells=15),
        (404, "no-such-cell", "No such cell"),
        "The report has 15 cells, numbered from 0: there is no cell 20.",
        {},
        {},
    ),
    (reports.RejectedCell(4), (409, "rejected-image", "Rejected image"), "Image 4 was rejected; it cannot be counted.", {}, {}),
    (
        reports.NothingToUndo(4),
        (409, "nothing-to-undo", "Nothing to undo"),
        "No correction of cell 4 is left to be undone.",
        {},
        {},
    ),
    (reports.NothingToChange(), (409, "nothing-to-change", "Nothing to change"), "The report says so already.", {}, {}),
    (
        reports.AlreadySigned("change"),
        (409, "signed", "Signed"),
        "The report is signed. To change it, send `amend: true`; it has to be signed again and is then an amended one.",
        {},
        {},
    ),
    (
        reports.AlreadySigned("withdraw"),
        (409, "signed", "Signed"),
        "The report was signed. To withdraw it, send `amend: true`; who has received it must be told.",
        {},
        {},
    ),
    (
        reports.AlreadySigned("add cells"),
        (409, "signed", "Signed"),
        "The report was signed; cells cannot be added to it. Make a new one.",
        {},
        {},
    ),
    (
        reports.AlreadyWithdrawn(REPORT),
        (409, "withdrawn", "Withdrawn"),
        "The report was withdrawn, and nothing in it can be changed. "
        f"Take the withdrawal back (DELETE /v1/reports/{REPORT}/withdrawal), or make a new report.",
        {},
        {},
    ),
    (
        reports.NotWithdrawn(),
        (409, "not-withdrawn", "Not withdrawn"),
        "The report is not withdrawn; there is nothing to take back.",
        {},
        {},
    ),
    (
        reports.NotSignable(BLOCKED),
        (409, "rendered-model", "Model of rendered cells"),
        "Drawn.",
        {"blocked": [{"kind": "rendered_model", "detail": "Drawn."}, {"kind": "unreviewed", "detail": "4 cells wait."}]},
        {},
    ),
    (
        reports.AnotherModel(OLD, NEW, REPORT),
        (409, "another-model", "Another model"),
        "The report's cells were classified by wbc 1, which serves no longer, and not all of their images are kept, so that wbc "
        "2 cannot count them again. Post all images as a new report, and withdraw this one: "
        f"POST /v1/reports/{REPORT}/withdrawal.",
        {},
        {},
    ),
    (reports.CellsCameMeanwhile(), (503, "busy", "Busy"), AGAIN, {}, {"Retry-After": "1"}),
    (
        reports.AnotherSpecimen("wbc_count"),
        (409, "another-specimen", "Another specimen"),
        "The report has another wbc_count than the request; leave the field out or make a new report.",
        {"field": "wbc_count"},
        {},
    ),
    (
        reports.MoreThanAnnounced(images=12, expected=10),
        (422, "bad-field", "Field not accepted"),
        "'expected_images' is 10, and the request has 12 images.",
        FIELD,
        {},
    ),
    (
        reports.AnotherExpectation(expected=10, announced=12),
        NUMBER,
        "The report expects 10 images and the request says 12. Put it right with PATCH.",
        FIELD,
        {},
    ),
    (
        reports.MoreThanExpected(expected=10, held=8, more=3),
        NUMBER,
        "The report expects 10 images and has 8; 3 more would be too many. Send only those that it does not hold, or put "
        "expected_images right with PATCH.",
        FIELD,
        {},
    ),
    (
        reports.FewerThanHeld(held=8, expected=7),
        NUMBER,
        "The report has 8 images already; it cannot expect 7.",
        FIELD,
        {},
    ),
    (
        reports.ReportFull(4096),
        (413, "too-large", "Request too large"),
        "A report holds at most 4096 images.",
        {"limit": 4096},
        {},
    ),
    (
        reports.UnknownLabel("Thing", ["Basophil", "Band"]),
        (422, "bad-field", "Field not accepted"),
        "label: 'Thing' is no class and none of the site's further kinds: give Basophil, Band or null.",
        {"field": "label"},
        {},
    ),
    (
        worklist.NoSuchOpinion(3),
        (404, "no-such-opinion", "No such second opinion"),
        "Nobody was asked for a second opinion 3 on this report.",
        {},
        {},
    ),
    (
        worklist.AsksThemselves(),
        (409, "asks-themselves", "Nobody else is asked"),
        "A second opinion is another person's: ask somebody else, or write a comment.",
        {},
        {},
    ),
    (
        worklist.AskedAlready("Dr. Ben"),
        (409, "asked-already", "Asked already"),
        "Dr. Ben was asked already and has not answered: take that back first, or write a comment.",
        {},
        {},
    ),
    (
        worklist.NotTheOneAsked("Dr. Ben"),
        (409, "not-the-one-asked", "Another person was asked"),
        "Dr. Ben was asked, and nobody else can answer: write a comment, or take the question back and ask another one.",
        {},
        {},
    ),
    (
        worklist.TakenBackAlready(),
        (409, "taken-back", "Taken back"),
        "The question was taken back: ask again, or write a comment.",
        {},
        {},
    ),
    (
        worklist.AnsweredAlready(),
        (409, "answered", "Answered"),
        "It was answered, and an answer stays in the record: who gave it can give a further one.",
        {},
        {},
    ),
    (
        labelling.NotAsked(),
        (409, "not-asked", "Not asked"),
        "Nobody asked this reader about this cell. Ask for the next tasks: GET /v1/labelling/tasks.",
        {},
        {},
    ),
    (
        labelling.UnknownKind("Thing", ["Band", "unsure"]),
        (422, "unknown-kind", "Unknown kind"),
        "'Thing' is no answer at this site; there are Band, unsure.",
        {"known": ["Band", "unsure"]},
        {},
    ),
    (
        labelling.LeftTheQueue("labelled"),
        (409, "labelled", "Labelled meanwhile"),
        "The cell was labelled by another way meanwhile; nobody asks about it any more.",
        {},
        {},
    ),
    (
        labelling.LeftTheQueue("held-out"),
        (409, "held-out", "Validation or test cell"),
        "The cell is one of the validation or test cells; an answer here would be learned from by mistake.",
        {},
        {},
    ),
    (
        labelling.LeftTheQueue("quarantined"),
        (409, "quarantined", "Quarantined"),
        "The cell is quarantined and must not be used; nobody asks about it any more.",
        {},
        {},
    ),
    (
        labelling.NoAnswerToUndo(),
        (409, "nothing-to-undo", "Nothing to undo"),
        "No answer of yours is left to be undone.",
        {},
        {},
    ),
    (
        labelling.NoSuchDispute(),
        (404, "no-such-dispute", "No such dispute"),
        "There is no such dispute; it may have been decided. Ask for those that are left: GET /v1/labelling/disputes.",
        {},
        {},
    ),
    (
        labelling.OwnReading(),
        (403, "own-reading", "Own reading"),
        "You have read this cell yourself; a third person decides.",
        {},
        {},
    ),
    (
        labelling.LeftTheQueue("removed"),
        (409, "removed", "Removed"),
        "The cell was removed with its report; nobody asks about it any more.",
        {},
        {},
    ),
    (
        labelling.NoImage(),
        (404, "no-image", "Image not kept"),
        "The image of this cell is not kept any more: its queue was closed long ago, or its report removed.",
        {},
        {},
    ),
    (
        labelling.NoSuchReference(),
        (404, "no-such-reference", "No such reference"),
        "There is no such reference cell.",
        {},
        {},
    ),
    (
        security.UnknownKey(given=False),
        (401, "unauthorised", "Unauthorised"),
        "The header X-API-Key is missing.",
        {},
        {"WWW-Authenticate": "ApiKey"},
    ),
    (
        security.UnknownKey(given=True),
        (401, "unauthorised", "Unauthorised"),
        "The header X-API-Key is not one of the accepted keys.",
        {},
        {"WWW-Authenticate": "ApiKey"},
    ),
    (
        security.LacksScope("ward-3", ["admin", "review"]),
        (403, "forbidden", "Forbidden"),
        "The key ward-3 lacks the scope admin, review.",
        {},
        {},
    ),
    (
        security.AnotherPerson("Dr. Ada"),
        (403, "another-person", "Another person"),
        "The key is that of Dr. Ada: leave `by` out, or let it be that name.",
        {},
        {},
    ),
    (
        security.UnknownHost(),
        (403, "host-not-allowed", "Forbidden"),
        "The service is not known by the host name of this request; the operator can name it in WBC_HOSTS.",
        {},
        {},
    ),
    (
        security.AnotherPage(),
        (403, "cross-origin", "Forbidden"),
        "The request comes from another web page; the service answers its own page, and programs.",
        {},
        {},
    ),
    (
        security.NotDirect(),
        (403, "no-keys", "Forbidden"),
        "Without API keys the service answers its own machine only, directly: make a key with `wbc keys add`.",
        {},
        {},
    ),
    (security.LogNotWritable(), (503, "audit-log", "Audit log not writable"), FULL, {}, {"Retry-After": "10"}),
]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOM.rglob("*.py")):
        name = ".".join(("serving", *path.relative_to(ROOM).with_suffix("").parts)).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def test_only_the_contract_and_the_calls_name_a_problem() -> None:
    for name, tree in modules():
        if name.startswith(("serving.contract", "serving.http")):
            continue
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        named |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
        assert "Problem" not in named, name


def test_every_error_of_the_domain_has_its_row() -> None:
    for name, _ in modules():
        if not name.startswith(("serving.reports.migrations", "serving.service")):  # which only run within something
            importlib.import_module(name)
    assert set(TABLE) == set(Refused.__subclasses__())
    assert {kind for error in TABLE for kind in error.__subclasses__()} == set()
    assert {type(error) for error, *_ in ANSWERS} == set(TABLE)


@pytest.mark.parametrize(("error", "named", "detail", "members", "headers"), ANSWERS)
def test_what_is_answered(
    error: Refused, named: tuple[int, str, str], detail: str, members: dict[str, Any], headers: dict[str, str]
) -> None:
    status, kind, title = named
    problem = problem_of(error)
    document = {"type": f"urn:wbc:problem:{kind}", "title": title, "status": status, "detail": detail, **members}
    facts = {name: fact for name, fact in vars(error).items() if isinstance(fact, int | float | str)}
    assert all(document.setdefault(name, fact) == fact for name, fact in facts.items()), "none of them is another member's name"
    assert list(problem.document.items()) == list(document.items())
    assert (problem.status, problem.headers) == (status, headers)
    assert str(error).endswith("."), "a line for the command line, too"
