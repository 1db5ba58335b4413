"""The BentoML service: one worker process that holds one model and serves the routes of `serving.http`.

See docs/decisions/005 for why the routes are an application of our own inside BentoML's.
"""

import json
import os
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serving.upkeep.telemetry import DISABLED, check_settings, has_receiver

# A hospital's server reports its use to nobody. BentoML reads this after it has imported the service.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
if not has_receiver():  # BentoML opens OpenTelemetry spans that nobody would export
    os.environ.setdefault(DISABLED, "true")

import bentoml
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.contract.differential import card_confusion
from serving.contract.problems import MEDIA_TYPE, of_status
from serving.contract.site import STORE_URL, Site, site_from_environment
from serving.http import connections
from serving.http.limits import Limits
from serving.security.audit import AuditLog
from serving.security.hosts import Hosts
from serving.security.keys import ApiKeys
from serving.settings import AWAITED, MODEL_DIR, resolve_paths
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import ModelCard, read_card

if TYPE_CHECKING:
    from serving.worker import Worker

connections.install()


class Routes:
    """Every path that is not BentoML's own. The worker makes them: the process that starts it checks, and loads none of them."""

    worker: "Worker"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self.worker.around(scope, receive, send)


routes = Routes()


def model_directory() -> Path:
    """WBC_MODEL_DIR, else the folder `model` that was packaged beside this code; it may be missing where it is awaited."""
    named = os.environ.get(MODEL_DIR, "").strip()
    directory = Path(named) if named else Path(__file__).resolve().parent.parent / "model"
    if not directory.is_dir() and not (named and os.environ.get(AWAITED)):
        hint = "" if named else f"; set {MODEL_DIR} to a model directory"
        raise WbcError(f"{directory} is not there{hint}")
    return directory


def present_card() -> ModelCard | None:
    """The card of the model directory; None while it is awaited. Raises WbcError as `read_card`."""
    directory = model_directory()
    return read_card(directory) if directory.is_dir() else None


def _bring_up_to_date(site: Site) -> None:
    """The store's tables, once; raises WbcError as `Store.open` and `check_image_key`."""
    from serving.reports.kept_images import check_image_key
    from serving.reports.store import Store

    if (store := Store.from_environment()) is not None:
        with store.held():
            check_image_key(store, site)
        store.close()


# The default host is loopback, so that a plain `bentoml serve` is no more open than `wbc serve`. BentoML would cut a request off
# after 60 seconds with an answer of its own; Limits.answer_seconds does, with ours. BentoML's access log writes paths as they
# come, line ends and all, and fails on a Content-Type that is not UTF-8; serving.http.layer logs requests. Its spans have the
# path and the query, too: serving.upkeep.telemetry has its own.
@bentoml.service(
    name="wbc",
    workers=1,
    traffic={"timeout": 24 * 60 * 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    http={"host": "127.0.0.1", "port": 3000},
)
@bentoml.asgi_app(routes)
class WbcService:
    """Leukocyte classification."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Before the server starts: a missing or damaged model, or a bad setting, ends it with one line."""
        resolve_paths()  # here the folder is still the one where the command was typed
        try:
            if (card := present_card()) is not None:
                card_confusion(card)
            site = site_from_environment()
            ApiKeys.from_environment()
            Limits.from_environment()
            Hosts.from_environment()
            check_settings()
            if audit := AuditLog.from_environment():
                audit.close()
            if os.environ.get(STORE_URL, "").strip():
                _bring_up_to_date(site)
        except WbcError as error:
            raise SystemExit(f"wbc: {error}") from None

    def __init__(self) -> None:
        from serving.worker import Worker

        routes.worker = Worker(model_directory(), present_card())

    def __is_ready__(self) -> bool:
        """What /readyz answers."""
        return routes.worker.running.ready

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """After the last request."""
        routes.worker.close()


class OverBento:
    """BentoML answers /schema.json to everybody; here it is a path like any other that does not exist. Its own refusals, such as
    /readyz before there is a model, become problem documents, as all of ours are."""

    def __init__(self, bento: ASGIApp) -> None:
        self.bento = bento

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.bento(scope, receive, send)
        elif scope["path"] == "/schema.json":
            await routes(scope, receive, send)
        else:
            await self.bento(scope, receive, _Refusals(scope, receive, send).send)


class _Refusals:
    """Passes on what BentoML and our routes send, and a problem document in the place of a refusal that is none."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._asgi = scope, receive, send
        self._refused: Message = {}

    async def send(self, message: Message) -> None:
        scope, receive, send = self._asgi
        if message["type"] == "http.response.start" and _bentos_own(message):
            self._refused = message
        elif not self._refused:
            await send(message)
        elif not message.get("more_body", False):
            status = self._refused["status"]
            headers = {name.decode(): value.decode() for name, value in self._refused["headers"] if name.lower() == b"allow"}
            document = json.dumps(of_status(status, scope["method"], scope["path"]))
            await Response(document, status, headers, MEDIA_TYPE)(scope, receive, send)


def _bentos_own(start: Message) -> bool:
    """Whether an answer is a refusal that our routes have not made: they make problem documents, and 499 for nobody."""
    kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
    return start["status"] in HTTP_ERRORS and MEDIA_TYPE.encode() not in kinds


HTTP_ERRORS: Final = {status.value for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST}
WbcService.add_asgi_middleware(OverBento)  # type: ignore[attr-defined]  # the decorator has made it a Service
