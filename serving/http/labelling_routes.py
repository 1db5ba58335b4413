"""The routes of the labelling: a reader's tasks, answers and their undoing, grids of alike cells, references, and disputes.

They need a store. Names of tasks, disputes and references say nothing of the cell: readers see no file name, rank or opinion. The
reader is the person of the key; with a system's key it is the key's name.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from serving.contract.agreement_schemas import Agreement
from serving.contract.labelling import (
    MOST_TASKS,
    Answered,
    AnswerList,
    AnswerRequest,
    AnswersRequest,
    Decided,
    DecisionRequest,
    DisputeList,
    LabellingState,
    Next,
    OpenQueue,
    Opinion,
    ReaderDispute,
    ReaderTask,
    ReferenceGroup,
    ReferenceList,
    SaidBefore,
    TaskList,
    Undone,
    kinds_of,
)
from serving.contract.problems import Problem, bad_field, described
from serving.contract.site import Site
from serving.http.access import ADJUDICATE, ANY_KEY, LABEL, any_of
from serving.http.deeds import PARAMETER, Done, carry_out
from serving.http.limits import heavy
from serving.http.preview import png
from serving.http.report_routes import no_store
from serving.http.running import running_of
from serving.http.upload import read_json
from serving.labelling import answers, comparison, disputes, history, references
from serving.labelling.overview import overview
from serving.labelling.queue import SHOWN_SIDE
from serving.labelling.sweep import sweep_tasks
from serving.labelling.tasks import Given, Who, image_of, next_tasks
from serving.reports.store import Store
from wbc_model.core.errors import ImageRejected

LEAD: Final = "adjudicate"  # the scope of whoever leads the readers
DISPUTES: Final = 3  # shown at once
PNG: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {"image/png": {}}}}
WRITES: Final[dict[int | str, dict[str, Any]]] = {
    403: described("The key lacks the scope; or the person has read the cell that is to be decided on"),
    408: described("The body did not arrive in time"),
    409: described("Nobody asked this reader, the cell has left the queue, or there is nothing to undo; `detail` says which"),
    410: described("The call was done under this Idempotency-Key, and its report was removed since"),
    413: described("The body is too large"),
    415: described("Not application/json"),
}
ASKED: Final[dict[int | str, dict[str, Any]]] = {409: described("It is no task of this reader")}

router = APIRouter(
    prefix="/labelling",
    responses={
        404: described("No such dispute or reference; or this service keeps nothing"),
        422: described(
            "A parameter or a field that is not accepted; or an answer that the site does not know (`known` has those)"
        ),
        503: described("The store cannot be reached; try again"),
    },
)
TaskName = Annotated[str, Path(alias="task", description="As `GET /v1/labelling/tasks` gave it.")]
DisputeName = Annotated[str, Path(alias="dispute", description="As `GET /v1/labelling/disputes` gave it.")]
ReferenceName = Annotated[str, Path(alias="reference", description="As `GET /v1/labelling/references` gave it.")]


def _store(request: Request) -> Store:
    kept = running_of(request).kept
    if kept is None:
        raise no_store()
    return kept.store


def _site(request: Request) -> Site:
    return running_of(request).site


def _who(request: Request) -> Who:
    caller: str = request.state.caller
    return Who(request.state.person or caller, caller)


def _takes(kind: type[BaseModel] | None) -> dict[str, Any]:
    """What the OpenAPI document says of a call that writes."""
    if kind is None:
        return {"parameters": [PARAMETER]}
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"parameters": [PARAMETER], "requestBody": body}


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _tasks(given: Sequence[Given]) -> Response:
    return _json(TaskList(tasks=[ReaderTask(task=one.name, width=one.width, height=one.height) for one in given]))


def _png(data: bytes) -> Response:
    try:
        return Response(png(data, SHOWN_SIDE), media_type="image/png")
    except ImageRejected as error:
        raise Problem(404, "no-such-image", "No such image", f"The image cannot be shown: {error.detail}.") from None


# --- readers ----------------------------------------------------------------------------------------------------------------


@router.get("", response_model=LabellingState, dependencies=ANY_KEY)
def labelling(request: Request) -> Response:
    """How far the labelling is, for this reader or for whoever adjudicates; and by which keys what can be said."""
    any_of(request, "label", LEAD)
    who, site = _who(request), _site(request)
    seen = overview(_store(request), who.reader)
    queue = seen.queue
    state = LabellingState(
        reader=who.reader,
        lead=LEAD in request.state.scopes,
        queue=None if queue is None else OpenQueue.model_validate(queue, from_attributes=True),
        kinds=kinds_of(site),
        pixel_um=site.labelling.pixel_um,
        done=seen.done,
        left=seen.left,
        cells=seen.cells,
        agreed=seen.agreed,
        disputed=seen.disputed,
        unnamed=seen.unnamed,
        median_seconds=seen.median_seconds,
        next_step="" if queue is None else queue.next_step,
        next_parts=None if queue is None or queue.next_parts is None else [Next(**part) for part in queue.next_parts],
        gain=None if queue is None else queue.gain,
    )
    return _json(state)


@router.get("/tasks", response_model=TaskList, dependencies=LABEL)
def tasks(request: Request, count: Annotated[int, Query(ge=1, le=MOST_TASKS)] = 4) -> Response:
    """The reader's next tasks that wait for an answer, in the reader's order. They are kept for the reader for 30 minutes."""
    return _tasks(next_tasks(_store(request), _who(request).reader, count, _site(request)))


@router.get("/tasks/{task}/image", dependencies=LABEL, responses={**PNG, **ASKED}, response_class=Response)
@heavy
def task_image(request: Request, task: TaskName) -> Response:
    """The cell of a task of this reader, drawn anew as PNG of 1024 pixels at most."""
    return _png(image_of(_store(request), _who(request).reader, task))


@router.put("/tasks/{task}", response_model=Answered, dependencies=LABEL, responses=WRITES, openapi_extra=_takes(AnswerRequest))
async def answer_task(request: Request, task: TaskName) -> Response:
    """The reader's answer to a task. A later one supersedes it, and both stay in the record."""
    store, asked = _store(request), await read_json(request, AnswerRequest)
    said, seconds = {task: asked.answer}, asked.seconds
    take = partial(answers.answer_several, store, _who(request), said, _site(request), seconds, asked.way)
    return await _answered(request, take, asked)


@router.put("/tasks", response_model=Answered, dependencies=LABEL, responses=WRITES, openapi_extra=_takes(AnswersRequest))
async def answer_tasks(request: Request) -> Response:
    """The reader's answers to several tasks at once, as from a grid: all are taken, or none."""
    store, asked = _store(request), await read_json(request, AnswersRequest)
    said = {one.task: one.answer for one in asked.answers}

    def take() -> answers.HowFar:
        far = answers.answer_several(store, _who(request), said, _site(request), asked.seconds, asked.way)
        if len(said) < len(asked.answers):  # nothing is kept of what raises
            raise bad_field("answers", "answers: A task stands twice.")
        return far

    return await _answered(request, take, asked)


async def _answered(request: Request, take: Callable[[], answers.HowFar], asked: BaseModel) -> Response:
    def work() -> Done:
        far = take()
        return Done(_json(Answered(done=far.done, left=far.left, disputed=far.disputed)), far.cells)

    return await carry_out(request, work, asked.model_dump_json())


@router.post("/undo", response_model=Undone, dependencies=ANY_KEY, responses=WRITES, openapi_extra=_takes(None))
async def undo(request: Request) -> Response:
    """Take back this person's last answer or decision that stands: it waits again. Both stay in the record."""
    any_of(request, "label", LEAD)
    return await _undone(request, partial(answers.undo, _store(request), _who(request)))


async def _undone(request: Request, take_back: Callable[[], answers.Undone]) -> Response:
    def work() -> Done:
        back = take_back()
        return Done(_json(Undone(task=back.task, dispute=back.dispute)), [back.cell])

    return await carry_out(request, work)


@router.delete("/tasks/{task}", response_model=Undone, dependencies=LABEL, responses=WRITES, openapi_extra=_takes(None))
async def take_answer_back(request: Request, task: TaskName) -> Response:
    """Take back what this reader said last of a task, whenever that was. Both stay in the record."""
    return await _undone(request, partial(answers.take_back_answer, _store(request), _who(request), task))


@router.delete(
    "/disputes/{dispute}", response_model=Undone, dependencies=ADJUDICATE, responses=WRITES, openapi_extra=_takes(None)
)
async def take_decision_back(request: Request, dispute: DisputeName) -> Response:
    """Take back what this person decided on a dispute, whenever that was. Both stay in the record."""
    return await _undone(request, partial(answers.take_back_decision, _store(request), _who(request), dispute))


@router.get("/answers", response_model=AnswerList, dependencies=ANY_KEY)
def given_answers(
    request: Request,
    count: Annotated[int, Query(ge=1, le=MOST_TASKS)] = 24,
    before: Annotated[int | None, Query(ge=1, description="The `next` of the list before.")] = None,
) -> Response:
    """What this person has said, the latest first: answers to tasks, and decisions on disputes, that stand."""
    any_of(request, "label", LEAD)
    found = history.said(_store(request), _who(request).reader, count + 1, before)
    shown = [SaidBefore.model_validate(one._asdict()) for one in found[:count]]
    return _json(AnswerList(answers=shown, next=shown[-1].id if len(found) > count else None))


@router.get("/sweep", response_model=TaskList, dependencies=LABEL)
def sweep(request: Request, count: Annotated[int, Query(ge=1, le=MOST_TASKS)] = 25) -> Response:
    """A grid of cells that are alike to the network, to be named together; empty where none are left or none can be compared."""
    return _tasks(sweep_tasks(_store(request), _who(request).reader, count, _site(request)))


@router.get("/references", response_model=ReferenceList, dependencies=ANY_KEY)
def reference_cells(request: Request) -> Response:
    """Cells that are known to be something, of each kind: agreed ones of this site first. For keys that label, adjudicate or
    review."""
    any_of(request, "label", "review", LEAD)
    found = references.references(_store(request), _who(request).reader, _site(request))
    return _json(ReferenceList(references=[ReferenceGroup(answer=kind, images=names) for kind, names in found.items()]))


@router.get("/references/{reference}", dependencies=ANY_KEY, responses=PNG, response_class=Response)
@heavy
def reference_image(request: Request, reference: ReferenceName) -> Response:
    """A reference cell, as PNG. For keys that label, adjudicate or review."""
    any_of(request, "label", "review", LEAD)
    return _png(references.reference_image(_store(request), reference))


@router.get("/agreement", response_model=Agreement, dependencies=ANY_KEY)
@heavy
def reader_agreement(request: Request) -> Response:
    """How far readers agree, what each takes which cells for, and who has how much to do. For keys that label or adjudicate.

    Only whoever adjudicates is told how often each reader was right at known cells.
    """
    any_of(request, "label", LEAD)
    return _json(comparison.agreement(_store(request), _site(request), LEAD in request.state.scopes))


# --- a third person ---------------------------------------------------------------------------------------------------------


@router.get("/disputes", response_model=DisputeList, dependencies=ADJUDICATE)
def disputed_cells(
    request: Request, unnamed: Annotated[bool, Query(description="Those that nobody could name so far, in their place.")] = False
) -> Response:
    """The next cells that readers disagree about, or are both unsure of; not those that this person has read."""
    found = disputes.disputes(_store(request), _who(request).reader, DISPUTES, _site(request), unnamed)
    return _json(DisputeList(disputes=[_dispute(one) for one in found]))


def _dispute(one: disputes.Dispute) -> ReaderDispute:
    opinion = Opinion(label=one.predicted, probability=one.probability) if one.predicted else None
    size = {"width": one.width, "height": one.height}
    return ReaderDispute(dispute=one.name, answers=list(one.answers), opinion=opinion, left=one.left, **size)


@router.get("/disputes/{dispute}/image", dependencies=ADJUDICATE, responses=PNG, response_class=Response)
@heavy
def dispute_image(request: Request, dispute: DisputeName) -> Response:
    """The cell of a dispute, as PNG."""
    return _png(disputes.dispute_image(_store(request), dispute))


@router.put(
    "/disputes/{dispute}",
    response_model=Decided,
    dependencies=ADJUDICATE,
    responses=WRITES,
    openapi_extra=_takes(DecisionRequest),
)
async def decide_dispute(request: Request, dispute: DisputeName) -> Response:
    """A third person's word on a cell; a later one supersedes it. `unsure` says that nobody can name it."""
    store, site, who = _store(request), _site(request), _who(request)
    asked = await read_json(request, DecisionRequest)

    def work() -> Done:
        decided = disputes.decide(store, who, dispute, asked.answer, site, asked.seconds)
        return Done(_json(Decided(left=decided.left)), [decided.cell])

    return await carry_out(request, work, asked.model_dump_json())
