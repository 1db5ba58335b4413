"""The BentoML service: one worker process that holds one model and serves the routes of `serving.api`.

See docs/decisions/005 for why the routes are an application of our own inside BentoML's.
"""

import os
from pathlib import Path

# A hospital's server reports its use to nobody. BentoML reads this after it has imported the service.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
# BentoML opens four OpenTelemetry spans a request that nobody exports; about a millisecond each request. `false` turns them on.
os.environ.setdefault("OTEL_SDK_DISABLED", "true")

import bentoml

from serving.api import Around, Running, create_app
from serving.classify import Classifier
from serving.differential import card_confusion
from serving.keys import ApiKeys
from serving.limits import Limits
from serving.site import site_from_environment
from wbc_model.card import read_card
from wbc_model.errors import WbcError

MODEL_DIR = "WBC_MODEL_DIR"

app = create_app()


def model_directory() -> Path:
    """WBC_MODEL_DIR, else the folder `model` that was packaged beside this code."""
    named = os.environ.get(MODEL_DIR, "").strip()
    directory = Path(named) if named else Path(__file__).resolve().parent.parent / "model"
    if not directory.is_dir():
        hint = "" if named else f"; set {MODEL_DIR} to a model directory"
        raise WbcError(f"{directory} is not there{hint}")
    return directory


# The default host is loopback, so that a plain `bentoml serve` is no more open than `wbc serve`; BentoML's 60 seconds for a
# whole request would cut off what Limits.read_seconds still allows.
@bentoml.service(
    name="wbc", workers=1, traffic={"timeout": 180}, metrics={"enabled": False}, http={"host": "127.0.0.1", "port": 3000}
)
@bentoml.asgi_app(Around(app))
class WbcService:
    """Leukocyte classification."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Before the server starts: a missing or damaged model, or a bad setting, ends it with one line."""
        try:
            card_confusion(read_card(model_directory()))
            site_from_environment()
            ApiKeys.from_environment()
            Limits.from_environment()
        except WbcError as error:
            raise SystemExit(f"wbc: {error}") from None

    def __init__(self) -> None:
        classifier = Classifier.open(model_directory())
        app.state.running = Running(classifier, ApiKeys.from_environment(), Limits.from_environment(), site_from_environment())

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Let running inference end."""
        app.state.running.classifier.close()
