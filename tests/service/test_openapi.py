"""The OpenAPI document is right: schemathesis makes requests from it and holds the answers of a real server to it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from live import Server, of_class
from schemathesis.specs.openapi.checks import ignored_auth
from tiny_model import COLOURS

SETTINGS = settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

# The document cannot say what makes bytes an image; random ones are refused, and tests/service/test_hostile_images.py sends them.
IMAGES = st.lists(st.sampled_from([of_class(label) for label in COLOURS]), min_size=1, max_size=3)
for media_type in ("image/jpeg", "image/png", "image/bmp", "image/tiff"):
    schemathesis.openapi.media_type(media_type, IMAGES)


@pytest.fixture
def interface(server: Server) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/v1/openapi.json")


schema = schemathesis.pytest.from_fixture("interface")


@schema.parametrize()
@SETTINGS
def test_every_answer_is_one_that_the_document_describes(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=[ignored_auth])  # this server has no key; test_keys_and_start.py has one


@schema.include(path="/v1/differential").parametrize()
@SETTINGS
def test_so_is_the_answer_in_fhir(case: schemathesis.Case) -> None:
    case.call_and_validate(headers={"Accept": "application/fhir+json"}, excluded_checks=[ignored_auth])
