"""What is answered where the domain refuses: a row for each of its errors."""

from collections.abc import Callable
from typing import Any, Final

from serving.contract.errors import Refused
from serving.contract.problems import Problem, bad_field, too_large
from serving.contract.schemas import Why
from serving.contract.specimen import EXPECTED_IMAGES
from serving.labelling import errors as labelling
from serving.reports import errors as reports
from serving.reports.signing import withdrawn
from serving.security import errors as security
from serving.security.hosts import HOSTS
from serving.security.keys import HEADER
from serving.worklist import errors as worklist

UNSIGNABLE: Final[dict[Why, str]] = {
    "incomplete": "Incomplete",
    "unreviewed": "Not reviewed",
    "rendered_model": "Model of rendered cells",
    "no_cells": "No cell",
    "withdrawn": "Withdrawn",
    "signed": "Signed",
}
SIGNED: Final = {
    "change": "The report is signed. To change it, send `amend: true`; it has to be signed again and is then an amended one.",
    "withdraw": "The report was signed. To withdraw it, send `amend: true`; who has received it must be told.",
    "add cells": "The report was signed; cells cannot be added to it. Make a new one.",
}
LEFT: Final = {
    "labelled": "Labelled meanwhile",
    "held-out": "Validation or test cell",
    "quarantined": "Quarantined",
    "removed": "Removed",
}
ENOUGH: Final = f"Send only those that it does not hold, or put {EXPECTED_IMAGES} right with PATCH."
TABLE: Final[dict[type[Refused], Callable[[Any], Problem]]] = {
    reports.NoSuchReport: lambda error: Problem(404, "no-such-report", "No such report", str(error)),
    reports.ChangedMeanwhile: lambda error: Problem(
        412, "changed-meanwhile", "Changed meanwhile", str(error), {"ETag": f'"{error.version}"'}
    ),
    reports.NoSuchCell: lambda error: Problem(404, "no-such-cell", "No such cell", str(error)),
    reports.RejectedCell: lambda error: Problem(409, "rejected-image", "Rejected image", str(error)),
    reports.UnknownLabel: lambda error: bad_field("label", str(error)),
    reports.NothingToUndo: lambda error: Problem(409, "nothing-to-undo", "Nothing to undo", str(error)),
    reports.NothingToChange: lambda error: Problem(409, "nothing-to-change", "Nothing to change", str(error)),
    reports.AlreadySigned: lambda error: Problem(409, "signed", "Signed", SIGNED[error.asked]),
    reports.AlreadyWithdrawn: lambda error: Problem(409, "withdrawn", "Withdrawn", withdrawn(error.report_id)),
    reports.NotWithdrawn: lambda error: Problem(409, "not-withdrawn", "Not withdrawn", str(error)),
    reports.NotSignable: lambda error: Problem(
        409,
        error.blocked[0].kind.replace("_", "-"),
        UNSIGNABLE[error.blocked[0].kind],
        error.blocked[0].detail,
        blocked=[block.model_dump() for block in error.blocked],
    ),
    reports.AnotherModel: lambda error: Problem(
        409,
        "another-model",
        "Another model",
        f"{error} Post all images as a new report, and withdraw this one: POST /v1/reports/{error.report_id}/withdrawal.",
    ),
    reports.CellsCameMeanwhile: lambda error: Problem(503, "busy", "Busy", str(error), {"Retry-After": "1"}),
    reports.AnotherSpecimen: lambda error: Problem(409, "another-specimen", "Another specimen", str(error), field=error.field),
    reports.MoreThanAnnounced: lambda error: bad_field(EXPECTED_IMAGES, str(error)),
    reports.AnotherExpectation: lambda error: _another_number(f"{error} Put it right with PATCH."),
    reports.MoreThanExpected: lambda error: _another_number(f"{error} {ENOUGH}"),
    reports.FewerThanHeld: lambda error: _another_number(str(error)),
    reports.ReportFull: lambda error: too_large(str(error), error.most),
    labelling.NotAsked: lambda error: Problem(409, "not-asked", "Not asked", str(error)),
    labelling.UnknownKind: lambda error: Problem(422, "unknown-kind", "Unknown kind", str(error), known=list(error.known)),
    labelling.LeftTheQueue: lambda error: Problem(409, error.why, LEFT[error.why], str(error)),
    labelling.NoAnswerToUndo: lambda error: Problem(409, "nothing-to-undo", "Nothing to undo", str(error)),
    labelling.NoSuchDispute: lambda error: Problem(404, "no-such-dispute", "No such dispute", str(error)),
    labelling.OwnReading: lambda error: Problem(403, "own-reading", "Own reading", str(error)),
    labelling.NoImage: lambda error: Problem(404, "no-image", "Image not kept", str(error)),
    labelling.NoSuchReference: lambda error: Problem(404, "no-such-reference", "No such reference", str(error)),
    worklist.NoSuchOpinion: lambda error: Problem(404, "no-such-opinion", "No such second opinion", str(error)),
    worklist.AsksThemselves: lambda error: Problem(409, "asks-themselves", "Nobody else is asked", str(error)),
    worklist.AskedAlready: lambda error: Problem(409, "asked-already", "Asked already", str(error)),
    worklist.NotTheOneAsked: lambda error: Problem(409, "not-the-one-asked", "Another person was asked", str(error)),
    worklist.TakenBackAlready: lambda error: Problem(409, "taken-back", "Taken back", str(error)),
    worklist.AnsweredAlready: lambda error: Problem(409, "answered", "Answered", str(error)),
    security.UnknownKey: lambda error: Problem(
        401,
        "unauthorised",
        "Unauthorised",
        f"The header {HEADER} {'is not one of the accepted keys' if error.given else 'is missing'}.",
        {"WWW-Authenticate": "ApiKey"},
    ),
    security.LacksScope: lambda error: Problem(403, "forbidden", "Forbidden", str(error)),
    security.AnotherPerson: lambda error: Problem(403, "another-person", "Another person", str(error)),
    security.UnknownHost: lambda error: Problem(
        403, "host-not-allowed", "Forbidden", f"{str(error)[:-1]}; the operator can name it in {HOSTS}."
    ),
    security.AnotherPage: lambda error: Problem(403, "cross-origin", "Forbidden", str(error)),
    security.NotDirect: lambda error: Problem(403, "no-keys", "Forbidden", str(error)),
    security.LogNotWritable: lambda error: Problem(503, "audit-log", "Audit log not writable", str(error), {"Retry-After": "10"}),
}


def _another_number(detail: str) -> Problem:
    return Problem(409, "expected-images", "Another number of images", detail, field=EXPECTED_IMAGES)


def problem_of(error: Refused) -> Problem:
    """The answer to what the domain refuses. The facts of the error are members of the document, so that a page can say it in its
    own language."""
    problem = TABLE[type(error)](error)
    for name, fact in vars(error).items():
        if isinstance(fact, int | float | str):
            problem.document.setdefault(name, fact)
    return problem
