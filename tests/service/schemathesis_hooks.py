"""What schemathesis cannot know: which bytes are an image (random ones are refused; test_hostile_images.py sends those), and
the report and the cells that there are."""

import os
import re
import uuid
from typing import Any

import schemathesis
from hypothesis import strategies as st
from live import of_class
from tiny_model import COLOURS

from serving.http.deeds import HEADER, KEY
from serving.security.keys import HEADER as API_KEY
from wbc_model.core.classes import CLASSES

IMAGES = st.lists(st.sampled_from([of_class(label) for label in COLOURS]), min_size=1, max_size=3)
for media_type in ("image/jpeg", "image/png", "image/bmp", "image/tiff"):
    schemathesis.openapi.media_type(media_type, IMAGES)


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two of three times a report that is there, but for the call that removes it: the others need it."""
    removes = context.operation.method.upper() == "DELETE"
    if path_parameters and "id" in path_parameters and len(str(path_parameters)) % 3 and not removes:
        path_parameters["id"] = os.environ["WBC_TEST_REPORT"]
        if isinstance(path_parameters.get("index"), int):
            path_parameters["index"] %= 2
    return path_parameters


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Each call its own key where it has a good one: another call with the same is refused, as it must be.

    Who acts on a report is filled in where a valid body leaves it out: the server's key is no person's. Where the API key is to
    be missing it is taken out, as the command line puts it into every call.
    """
    if case.headers and re.fullmatch(KEY, str(case.headers.get(HEADER, ""))):
        case.headers[HEADER] = str(uuid.uuid4())
    if isinstance(case.body, dict) and "/reports/" in case.operation.path and case.body.get("by") is None:
        case.body["by"] = "Dr. Ada"
    if isinstance(case.body, dict) and case.operation.path.endswith("/cells/{index}") and isinstance(case.body.get("label"), str):
        case.body["label"] = CLASSES[len(case.body["label"]) % len(CLASSES)]  # which kinds there are is the site's
    if case.meta is not None and getattr(case.meta.phase.data, "description", "") == f"Missing `{API_KEY}` at header":
        case.headers.pop(API_KEY, None)
