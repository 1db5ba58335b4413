"""The labelling over HTTP: what a page, or a program, does with the cells that the model asks about."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from readers import QUEUE, asked, cell, in_groups, site_of
from test_reports import assert_problem, client_of

from serving.contract.labelling import answers_of
from serving.contract.site import Site
from serving.http.app import create_app
from serving.http.layer import Around
from serving.http.limits import Limits
from serving.http.running import Kept, Running
from serving.inference.classify import Classifier
from serving.labelling.queue import withdraw_cells
from serving.reports.store import Store, sqlite_url
from serving.security.audit import AuditLog
from serving.security.chain import lines, read_record, verify
from serving.security.keys import ApiKeys, add_key
from serving.upkeep.metrics import call_of, endpoint

PEOPLE = {
    "ada": ("Dr. Ada", ["label", "review"]),
    "ben": ("Dr. Ben", ["label"]),
    "eve": ("Dr. Eve", ["label", "adjudicate"]),
    "judge": ("Dr. Jo", ["adjudicate"]),
    "robot": ("", ["label"]),
    "ward": ("", ["classify"]),
    "reviewer": ("Dr. Rue", ["review"]),
}
TWO = site_of(second=1.0)


@pytest.fixture(scope="module")
def classifier(model_dir: Path) -> Iterator[Classifier]:
    made = Classifier.open(model_dir)
    yield made
    made.close()


class Desk:
    """A service with a queue, and the calls of its readers."""

    def __init__(self, classifier: Classifier, folder: Path, site: Site = TWO) -> None:
        self.keys = {name: add_key(folder / "keys", name, scopes, who) for name, (who, scopes) in PEOPLE.items()}
        self.log = folder / "audit.jsonl"
        self.store = Store.open(sqlite_url(folder / "service.db"))
        self.audit = AuditLog(self.log)
        self.kept = Kept(Store.open(sqlite_url(folder / "service.db")), site)
        app = create_app()
        app.state.running = Running(classifier, ApiKeys(file=folder / "keys"), Limits(), site, self.audit, self.kept)
        self.client = TestClient(Around(app), raise_server_exceptions=False)

    def close(self) -> None:
        self.audit.close()
        self.kept.close()
        self.store.close()

    def call(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        url = f"/v1/labelling{path}"
        return self.client.request(method, url, json=body, headers={"X-API-Key": self.keys[who], **headers})

    def get(self, who: str, path: str = "") -> Any:
        answer = self.call(who, "GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def tasks(self, who: str, count: int = 4) -> list[str]:
        return [one["task"] for one in self.get(who, f"/tasks?count={count}")["tasks"]]

    def say(self, who: str, task: str, answer: str, **more: Any) -> httpx.Response:
        return self.call(who, "PUT", f"/tasks/{task}", {"answer": answer, **more})

    def records(self) -> list[dict[str, Any]]:
        return [record for *_, line in lines(self.log) if (record := read_record(line))]


@pytest.fixture
def desk(classifier: Classifier, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(classifier, tmp_path)
    yield made
    made.close()


def test_while_nothing_is_asked_the_page_can_say_so(desk: Desk) -> None:
    state = desk.get("ada")
    assert (state["reader"], state["lead"], state["queue"], state["left"]) == ("Dr. Ada", False, None, 0)
    assert [kind["key"] for kind in state["kinds"]] == [*"12345", "b", "i", "l", "e", "p", "s", "a", "0", "?"]
    assert [kind["answer"] for kind in state["kinds"]] == list(answers_of(TWO))
    assert {kind["answer"]: kind["loinc"] for kind in state["kinds"]}["Band"] == "26508-2"
    assert desk.get("ada", "/tasks") == desk.get("ada", "/sweep") == {"tasks": []}
    assert desk.get("eve", "/disputes") == {"disputes": []}
    assert_problem(desk.call("ada", "POST", "/undo"), 409, "nothing-to-undo")


def test_two_readers_and_a_third_person(desk: Desk) -> None:
    asked(desk.store, 3, TWO)
    assert [desk.get("ada")[name] for name in ("cells", "left", "done")] == [3, 3, 0]
    for task in desk.tasks("ada"):
        assert desk.say("ada", task, "Monocyte", seconds=2).json()["disputed"] == 0
    for task in desk.tasks("ben"):
        assert desk.say("ben", task, "Lymphocyte", seconds=1.5, way="single").status_code == 200
    state = desk.get("eve")
    assert (state["lead"], state["disputed"], state["agreed"], state["queue"]["id"]) == (True, 3, 0, QUEUE)
    first, *_ = desk.get("eve", "/disputes")["disputes"]
    assert (first["answers"], first["left"], set(first["opinion"])) == (["Lymphocyte", "Monocyte"], 3, {"label", "probability"})
    assert_problem(desk.call("ben", "PUT", f"/disputes/{first['dispute']}", {"answer": "Band"}), 403, "forbidden")
    decided = desk.call("eve", "PUT", f"/disputes/{first['dispute']}", {"answer": "Band", "seconds": 3.5})
    assert decided.json() == {"left": 2}
    assert (desk.get("ada")["agreed"], desk.get("ada")["disputed"], desk.get("ada")["median_seconds"]) == (1, 2, 2.0)
    assert desk.call("eve", "POST", "/undo").json() == {"task": None, "dispute": first["dispute"]}
    assert_problem(desk.call("eve", "PUT", f"/disputes/{QUEUE}.000000000000000", {"answer": "Band"}), 404, "no-such-dispute")


def test_a_reader_sees_nothing_of_the_cell_but_its_picture(desk: Desk) -> None:
    asked(desk.store, 6, TWO)
    seen = [desk.get("ada"), desk.get("ada", "/tasks?count=6")]
    for task in seen[1]["tasks"]:
        assert set(task) == {"task", "width", "height"}
    text = json.dumps(seen)
    for number in range(6):
        assert cell(number).sha256 not in text
    assert "uncertain" not in text
    assert "m-1" not in text


def test_the_picture_is_drawn_anew_and_only_for_whose_task_it_is(desk: Desk) -> None:
    asked(desk.store, 1, TWO)
    [task] = desk.tasks("ada")
    answer = desk.call("ada", "GET", f"/tasks/{task}/image")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(answer.content)).size == (40, 40)
    for who, name in (("ben", task), ("ada", f"{QUEUE}.2"), ("ada", "nothing")):
        assert_problem(desk.call(who, "GET", f"/tasks/{name}/image"), 409, "not-asked")


def test_undo_shows_the_task_again(desk: Desk) -> None:
    asked(desk.store, 2, TWO)
    first, second = desk.tasks("ada")
    desk.say("ada", first, "Monocyte")
    assert desk.say("ada", second, "unsure").json() == {"done": 2, "left": 0, "disputed": 0}
    assert desk.call("ada", "POST", "/undo").json() == {"task": second, "dispute": None}
    assert (desk.tasks("ada"), desk.get("ada")["done"]) == ([second], 1)


def test_a_grid_is_named_with_one_call(classifier: Classifier, tmp_path: Path) -> None:
    desk = Desk(classifier, tmp_path, site_of())
    asked(desk.store, in_groups(12, 2), site_of())
    grid = [one["task"] for one in desk.get("ada", "/sweep?count=6")["tasks"]]
    assert len(grid) == 6
    said = [{"task": task, "answer": "Neutrophil"} for task in grid[1:]] + [{"task": grid[0], "answer": "Platelet"}]
    assert_problem(desk.call("ada", "PUT", "/tasks", {"answers": [*said, said[0]], "seconds": 9}), 422, "bad-field")
    assert_problem(desk.call("ada", "PUT", "/tasks", {"answers": []}), 422, "bad-field")
    assert_problem(desk.call("ada", "PUT", "/tasks", {"answers": [{"task": "x", "answer": "Band"}]}), 422, "bad-field")
    assert desk.call("ada", "PUT", "/tasks", {"answers": said, "seconds": 9}).json() == {"done": 6, "left": 6, "disputed": 0}
    assert desk.get("ada")["median_seconds"] == 1.5
    desk.close()


@pytest.mark.parametrize(
    ("body", "kind", "field"),
    [
        ({"answer": "Thing"}, "unknown-kind", None),
        ({"answer": ""}, "bad-field", "answer"),
        ({}, "bad-field", "answer"),
        ({"answer": "Band", "seconds": -1}, "bad-field", "seconds"),
        ({"answer": "Band", "seconds": "fast"}, "bad-field", "seconds"),
        ({"answer": "Band", "way": "adjudicated"}, "bad-field", "way"),
        ({"answer": "Band", "by": "Dr. Ben"}, "bad-field", "by"),
        ([], "bad-field", "body"),
    ],
)
def test_an_answer_that_is_not_right_is_named(desk: Desk, body: Any, kind: str, field: str | None) -> None:
    asked(desk.store, 1, TWO)
    [task] = desk.tasks("ada")
    problem = assert_problem(desk.call("ada", "PUT", f"/tasks/{task}", body), 422, kind)
    assert problem.get("field") == field
    assert problem.get("known", [*answers_of(TWO)]) == [*answers_of(TWO)]
    assert desk.get("ada")["done"] == 0


def test_what_cannot_be_answered_says_why(desk: Desk) -> None:
    asked(desk.store, 2, TWO)
    task, other = desk.tasks("ada")
    for who, name in (("ben", task), ("ada", f"{QUEUE}.77"), ("ada", "nothing")):
        assert_problem(desk.say(who, name, "Monocyte"), 409, "not-asked")
    withdraw_cells(desk.store, "ward", [cell(0).sha256], "held-out")
    withdraw_cells(desk.store, "ward", [cell(1).sha256], "quarantined")
    kinds = {desk.say("ada", name, "Monocyte").json()["type"].rpartition(":")[2] for name in (task, other)}
    assert kinds == {"held-out", "quarantined"}


def test_each_call_asks_for_its_scope(desk: Desk) -> None:
    asked(desk.store, 1, TWO)
    labels, decides = {"ada", "ben", "eve", "robot"}, {"eve", "judge"}
    allowed = {
        "": labels | decides,
        "/tasks": labels,
        "/sweep": labels,
        "/disputes": decides,
        "/references": labels | decides | {"reviewer"},
        "/answers": labels | decides,
    }
    for path, who in allowed.items():
        for name in PEOPLE:
            assert desk.call(name, "GET", path).status_code == (200 if name in who else 403), (path, name)
    assert desk.call("ward", "POST", "/undo").status_code == 403
    assert desk.call("ward", "PUT", f"/tasks/{QUEUE}.1", {"answer": "Band"}).status_code == 403


def test_what_a_person_has_said_is_listed_and_taken_back(desk: Desk) -> None:
    asked(desk.store, 3, TWO)
    tasks = desk.tasks("ada")
    for task in tasks:
        desk.say("ada", task, "Platelet")
    for task in desk.tasks("ben"):
        desk.say("ben", task, "unsure")
    first = desk.get("ada", "/answers?count=2")
    assert [(one["task"], one["answer"], one["image"], one["left"]) for one in first["answers"]] == [
        (task, "Platelet", True, False) for task in (tasks[2], tasks[1])
    ]
    rest = desk.get("ada", f"/answers?count=2&before={first['next']}")
    assert ([one["task"] for one in rest["answers"]], rest["next"]) == ([tasks[0]], None)
    assert desk.call("ada", "DELETE", f"/tasks/{tasks[1]}").json() == {"task": tasks[1], "dispute": None}
    assert_problem(desk.call("ada", "DELETE", f"/tasks/{tasks[1]}"), 409, "nothing-to-undo")
    assert_problem(desk.call("ben", "DELETE", f"/tasks/{QUEUE}.77"), 409, "not-asked")
    dispute = desk.get("judge", "/disputes")["disputes"][0]["dispute"]
    assert desk.call("judge", "PUT", f"/disputes/{dispute}", {"answer": "unsure"}).json() == {"left": 1}
    assert [desk.get("judge")[name] for name in ("disputed", "unnamed")] == [1, 1]
    assert (desk.get("judge", "/agreement")["unnamed"], desk.get("ada", "/agreement")["disputed"]) == (1, 1)
    assert [one["dispute"] for one in desk.get("judge", "/disputes?unnamed=true")["disputes"]] == [dispute]
    assert [(one["task"], one["dispute"]) for one in desk.get("judge", "/answers")["answers"]] == [(None, dispute)]
    assert desk.call("judge", "DELETE", f"/disputes/{dispute}").json() == {"task": None, "dispute": dispute}
    assert_problem(desk.call("judge", "DELETE", f"/disputes/{dispute}"), 409, "nothing-to-undo")
    assert desk.get("judge")["unnamed"] == 0


def test_a_system_is_a_reader_by_the_name_of_its_key(desk: Desk) -> None:
    assert desk.get("robot")["reader"] == "robot"


def test_a_repeated_call_is_one_answer_and_each_has_its_lines(desk: Desk) -> None:
    asked(desk.store, 1, TWO)
    [task] = desk.tasks("ada")
    key = {"Idempotency-Key": "one"}
    first = desk.call("ada", "PUT", f"/tasks/{task}", {"answer": "Monocyte"}, **key)
    again = desk.call("ada", "PUT", f"/tasks/{task}", {"answer": "Monocyte"}, **key)
    assert (first.json(), again.headers["Idempotency-Replayed"]) == (again.json(), "true")
    other = desk.call("ada", "PUT", f"/tasks/{task}", {"answer": "Band"}, **key)
    assert_problem(other, 422, "idempotency-key-reused")
    written = [one for one in desk.records() if "PUT" in one.get("call", one.get("intends", ""))]
    call = f"PUT /v1/labelling/tasks/{task}"
    assert [one.get("intends") for one in written] == [call, None, None, None]
    assert {one["person"] for one in written} == {"Dr. Ada"}
    assert written[1]["images"] == [cell(0).sha256]
    assert written[1]["answer"] == hashlib.sha256(first.content).hexdigest()
    assert verify(desk.log).records == len(desk.records())


def test_references_are_pictures_for_whoever_looks_at_cells(desk: Desk) -> None:
    asked(desk.store, [cell(0), cell(1, purpose="reference", truth="Basophil")], TWO)
    groups = {one["answer"]: one["images"] for one in desk.get("reviewer", "/references")["references"]}
    assert [len(groups[name]) for name in ("Basophil", "Monocyte", "not a leukocyte")] == [1, 0, 0]
    answer = desk.call("reviewer", "GET", f"/references/{groups['Basophil'][0]}")
    assert answer.headers["content-type"] == "image/png"
    for name in ("nothing", f"{QUEUE}.{'0' * 15}"):
        assert_problem(desk.call("reviewer", "GET", f"/references/{name}"), 404, "no-such-reference")


def test_without_a_store_there_is_nothing_to_name(classifier: Classifier) -> None:
    app = create_app()
    app.state.running = Running(classifier, ApiKeys(), Limits())
    client = TestClient(Around(app))
    for path in ("", "/tasks", "/sweep", "/references", "/disputes"):
        assert_problem(client.get(f"/v1/labelling{path}"), 404, "no-store")


def test_without_keys_whoever_is_at_the_machine_is_the_reader(classifier: Classifier, tmp_path: Path) -> None:
    for client in client_of(classifier, tmp_path, site_of()):
        store = Store.open(sqlite_url(tmp_path / "service.db"))
        asked(store, 1)
        [task] = client.get("/v1/labelling/tasks").json()["tasks"]
        assert client.put(f"/v1/labelling/tasks/{task['task']}", json={"answer": "Band"}).json()["done"] == 1
        assert client.get("/v1/labelling").json()["reader"] == "local"
        store.close()


@pytest.mark.parametrize(
    ("path", "known", "said"),
    [
        ("/v1/labelling", "/v1/labelling", "/v1/labelling"),
        (f"/v1/labelling/tasks/{QUEUE}.12/image", "/v1/labelling/tasks/{task}/image", f"/v1/labelling/tasks/{QUEUE}.12/image"),
        ("/v1/labelling/tasks/SMITH", "/v1/labelling/tasks/{task}", "/v1/labelling/tasks/{task}"),
        (
            "/v1/labelling/disputes/SMITH/image",
            "/v1/labelling/disputes/{dispute}/image",
            "/v1/labelling/disputes/{dispute}/image",
        ),
        ("/v1/labelling/references/SMITH", "/v1/labelling/references/{reference}", "/v1/labelling/references/{reference}"),
        ("/v1/labelling/other", "other", "other"),
    ],
)
def test_metrics_and_log_know_the_calls_and_nothing_that_a_caller_invents(path: str, known: str, said: str) -> None:
    assert endpoint(path) == known
    assert call_of("GET", path) == f"GET {said}"
