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
def map_body(context: Any, body: Any) -> Any:
    """Who acts on a report, where a valid body leaves it out: the server's key is no person's."""
    if isinstance(body, dict) and "/reports/" in context.operation.path and body.get("by") is None:
        body["by"] = "Dr. Ada"
    return body


@schemathesis.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> dict[str, Any] | None:
    """Each call its own key where it has a good one: another call with the same is refused, as it must be."""
    if headers and re.fullmatch(KEY, str(headers.get(HEADER, ""))):
        headers[HEADER] = str(uuid.uuid4())
    return headers
