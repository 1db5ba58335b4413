"""Kept images: encrypted with a key outside the store, shown as PNG, deleted after the time that the site states."""

import base64
import io
import secrets
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from live import encode, fails_to_start, form, free_port, of_class, serve_command
from PIL import Image
from specimens import SPECIMEN, classified, read, rejected, site
from sqlalchemy import select, update
from test_more_cells import add, report_of
from test_reports import assert_problem, classifier, posted  # noqa: F401 - the first is a fixture
from tiny_model import COLOURS

from serving.contract.site import KeepImages, Site
from serving.contract.specimen import Specimen
from serving.http.app import create_app
from serving.http.layer import Around
from serving.http.limits import Limits
from serving.http.running import Kept, Running
from serving.inference.classify import Classifier, Seen
from serving.reports.intake import take_in
from serving.reports.kept_images import check_image_key, delete_expired, fingerprints_of, images_of
from serving.reports.review import find
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Cell, KeptImage, Report
from serving.security.image_key import NO_KEYS, ImageKeys
from serving.security.keys import ApiKeys
from tests.pictures import NOT_ONE_PICTURE
from wbc_model.core.errors import WbcError
from wbc_model.rendering.cells import render_cells

SECRET = b"a picture of a cell that nobody must see"


def keeping(days: int | None = 90, encrypted: bool = False) -> Site:
    return site().model_copy(update={"keep_images": KeepImages(days=days, encrypted=encrypted)})


def beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-keys")


def key_file(folder: Path, *keys: str) -> Path:
    file = folder / f"image-{secrets.token_hex(4)}.key"
    folder.mkdir(exist_ok=True)
    file.write_text("\n".join(keys or [secrets.token_hex(32)]) + "\n")
    return file


def opened(url: str, keys: Path | None) -> Store:
    return Store.open(url, NO_KEYS if keys is None else ImageKeys.read(keys))


def print_of(data: bytes) -> bytes:
    """A fingerprint that begins with the image's bytes, of a cell without a landmark."""
    return (b"print of " + data[:40]).ljust(4100, b"\0")


def taken(store: Store, of: Site, files: tuple[bytes, ...] = (SECRET,)) -> str:
    """A report of as many cells, and an image that was rejected."""
    cells = [classified("Neutrophil") for _ in files]
    reading = read([*cells, rejected()])
    seen = [*(Seen(cell, print_of(data)) for cell, data in zip(cells, files, strict=True)), Seen(rejected(), None)]
    return take_in(store, reading._replace(seen=seen, files=[*files, b"x"]), Specimen(5.0, SPECIMEN), of).report.id


def stored(store: Store) -> list[tuple[str | None, bytes, bytes | None]]:
    with store.reading() as session:
        query = select(KeptImage.key, KeptImage.data, Cell.fingerprint).join(
            Cell, (Cell.report_id == KeptImage.report_id) & (Cell.position == KeptImage.position)
        )
        return [(key, bytes(data), print_) for key, data, print_ in session.execute(query.order_by(KeptImage.position))]


def test_what_is_encrypted_can_be_read_with_its_key_alone(store_url: str, tmp_path: Path) -> None:
    old, other = key_file(beside(tmp_path)), key_file(beside(tmp_path))
    store = opened(store_url, old)
    report = taken(store, keeping(encrypted=True))
    [(name, data, print_)] = stored(store)
    assert name in store.image_keys
    assert print_ is not None
    assert SECRET not in data + print_
    with store.reading() as session:
        assert images_of(session, report, [0, 1]) == {0: SECRET}
        assert fingerprints_of(session, report) == {0: print_of(SECRET)}
    check_image_key(store, keeping())
    store.close()
    for keys, says in ((None, "it is not set"), (other, f"{other} does not hold it")):
        without = opened(store_url, keys)
        with pytest.raises(WbcError) as caught:
            check_image_key(without, keeping())
        message = f"kept images are encrypted with the key {name}: WBC_IMAGE_KEY_FILE must name its file, and {says}"
        assert str(caught.value) == message
        with pytest.raises(WbcError, match=str(name)), without.reading() as session:
            images_of(session, report, [0])
        without.close()


def test_a_new_key_stands_before_the_old_one(store_url: str, tmp_path: Path) -> None:
    first, second = secrets.token_hex(32), secrets.token_hex(32)
    store = opened(store_url, key_file(beside(tmp_path), first))
    old = taken(store, keeping(encrypted=True))
    store.close()
    store = opened(store_url, key_file(beside(tmp_path), "# the newest first", second, "", first))
    check_image_key(store, keeping(encrypted=True))
    new, plain = taken(store, keeping(encrypted=True)), taken(store, keeping())
    with store.reading() as session:
        assert [images_of(session, report, [0]) for report in (old, new, plain)] == [{0: SECRET}] * 3
        names = dict(session.execute(select(KeptImage.report_id, KeptImage.key)).tuples().all())
    assert len(set(names.values())) == 3
    assert names[plain] is None
    store.close()


def test_encryption_without_a_key_is_refused(tmp_path: Path) -> None:
    store = Store.open(sqlite_url(tmp_path / "service.db"))
    with pytest.raises(WbcError) as caught:
        check_image_key(store, keeping(encrypted=True))
    assert str(caught.value) == (
        "the site's file says keep_images.encrypted, and WBC_IMAGE_KEY_FILE names no file with a key; "
        "make a key with `openssl rand -hex 32`"
    )
    store.close()
    store = opened(sqlite_url(tmp_path / "service.db"), key_file(tmp_path / "inside"))
    with pytest.raises(WbcError, match="lies in the folder of the store, and a copy of that would hold both; move it"):
        check_image_key(store, keeping(encrypted=True))
    store.close()


def test_an_image_cannot_pass_for_another(store_url: str, tmp_path: Path) -> None:
    store = opened(store_url, key_file(beside(tmp_path)))
    report = taken(store, keeping(encrypted=True), (b"one", b"two"))
    with store.writing() as session:
        first, second = (session.get_one(KeptImage, (report, place)) for place in (0, 1))
        first.data, second.data = second.data, first.data
    with pytest.raises(WbcError, match="cannot be decrypted: it was changed"), store.reading() as session:
        images_of(session, report, [0])
    store.close()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no key; make a key with `openssl rand -hex 32`"),
        ("0123\n", "key 1 of"),
        ("x" * 64, "key 1 of"),
        ("a" * 64 + "\n" + "b" * 63, "key 2 of"),
        (None, "image.key: cannot be read"),
    ],
)
def test_a_key_file_that_is_none_is_one_line(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "image.key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(WbcError) as caught:
        ImageKeys.from_environment({"WBC_IMAGE_KEY_FILE": str(file)})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(content or "") < 60 or (content or "")[:60] not in str(caught.value)


def test_a_key_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "image.key"
    file.write_bytes(("\ufeff" + "ab" * 32 + "\r\n").encode())
    assert ImageKeys.read(file).newest is not None


def test_images_go_after_their_time_and_the_report_says_so(store_url: str) -> None:
    store, now, of = Store.open(store_url), datetime.now(UTC), keeping(days=30)
    old, young, none = taken(store, of), taken(store, of), taken(store, site())
    with store.writing() as session:
        session.execute(update(Report).where(Report.id.in_([old, none])).values(created_at=now - timedelta(days=31)))
        session.execute(update(Report).where(Report.id == young).values(created_at=now - timedelta(days=29)))
    assert delete_expired(store, 30, now) == 1
    assert delete_expired(store, 30, now) == 0
    with store.reading() as session:
        assert images_of(session, old, [0]) == {}
        assert images_of(session, young, [0]) == {0: SECRET}
        assert fingerprints_of(session, young)
    with store.reading() as session:
        assert session.scalar(select(Cell.fingerprint).where(Cell.report_id == old, Cell.position == 0)) is None
    assert [find(store, report).images_deleted_at for report in (old, young, none)] == [now, None, None]
    assert [[cell.has_image for cell in find(store, report).cells] for report in (old, young)] == [[False] * 2, [True, False]]
    store.close()


def test_many_reports_are_deleted_a_few_at_a_time(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.reports.kept_images.REPORTS_AT_A_TIME", 3)
    store = Store.open(store_url)
    for _ in range(7):
        taken(store, keeping())
    assert delete_expired(store, 1, datetime.now(UTC) + timedelta(days=2)) == 7
    assert stored(store) == []
    store.close()


def test_what_was_deleted_is_not_left_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "service.db"
    store = Store.open(sqlite_url(path))
    taken(store, keeping(), tuple(SECRET * 200 for _ in range(20)))
    delete_expired(store, 1, datetime.now(UTC) + timedelta(days=2))
    store.close()
    assert SECRET not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


@pytest.fixture
def service(classifier: Classifier, tmp_path: Path) -> Iterator[TestClient]:  # noqa: F811
    """A service that keeps images for a week, encrypted."""
    app, of = create_app(), keeping(days=7, encrypted=True)
    kept = Kept(opened(sqlite_url(tmp_path / "service.db"), key_file(beside(tmp_path))), of)
    app.state.running = Running(classifier, ApiKeys([]), Limits(), of, None, kept)
    yield TestClient(Around(app), raise_server_exceptions=False)
    kept.close()


def image_at(answer: bytes) -> Image.Image:
    return Image.open(io.BytesIO(answer))


def test_a_report_says_what_is_kept_and_shows_it(service: TestClient) -> None:
    report = posted(service, [encode(COLOURS["Basophil"], "TIFF"), of_class("Monocyte", kind="JPEG"), b"none"])["report_id"]
    kept = report_of(service, report)
    images = kept["images"]
    after = datetime.fromisoformat(images["delete_after"]) - datetime.fromisoformat(kept["created_at"])
    assert (images["kept"], images["encrypted"], images["deleted_at"], after) == (2, True, None, timedelta(days=7))
    for place, label in enumerate(("Basophil", "Monocyte")):
        answer = service.get(f"/v1/reports/{report}/cells/{place}/image")
        assert answer.headers["content-type"] == "image/png"
        shown = image_at(answer.content).convert("RGB").getpixel((10, 10))
        assert isinstance(shown, tuple)
        assert shown == pytest.approx(COLOURS[label], abs=3)
    for place in (2, 3, -1, 10**30):
        assert_problem(service.get(f"/v1/reports/{report}/cells/{place}/image"), 404, "no-such-image")
    assert_problem(service.get(f"/v1/reports/{'0' * 32}/cells/0/image"), 404, "no-such-report")
    running = service.app.app.state.running  # type: ignore[attr-defined]
    assert delete_expired(running.kept.store, 7, datetime.now(UTC) + timedelta(days=8)) == 1
    images = report_of(service, report)["images"]
    assert (images["kept"], images["encrypted"], images["delete_after"]) == (0, False, None)
    assert images["deleted_at"] is not None
    assert_problem(service.get(f"/v1/reports/{report}/cells/0/image"), 404, "no-such-image")


def test_twins_are_known_over_encrypted_fingerprints(service: TestClient) -> None:
    cell, other = (Image.fromarray(drawn.pixels) for drawn in render_cells(2, seed=11, size=160))
    report = posted(service, [encode(other), encode(cell)])["report_id"]
    assert add(service, report, encode(cell, "JPEG", quality=80)).json()["results"][0]["twin"] == 1


def test_images_whose_time_is_over_go_when_the_service_starts(classifier: Classifier, tmp_path: Path) -> None:  # noqa: F811
    store = Store.open(sqlite_url(tmp_path / "service.db"))
    taken(store, keeping())
    with store.writing() as session:
        session.execute(update(Report).values(created_at=datetime.now(UTC) - timedelta(days=91)))
    kept = Kept(store, keeping())
    deadline = time.monotonic() + 20
    while stored(store) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert stored(store) == []
    kept.close()
    assert "retention" not in {thread.name for thread in threading.enumerate()}


def test_a_site_that_keeps_no_images_any_more_deletes_those_of_before(tmp_path: Path) -> None:
    """At the next start, and the report says so; also what a lost key has encrypted, or a clock that was ahead has dated."""
    url, lost = sqlite_url(tmp_path / "service.db"), key_file(beside(tmp_path))
    store = opened(url, lost)
    sealed, plain = taken(store, keeping(encrypted=True)), taken(store, keeping(days=None))
    with store.writing() as session:
        session.execute(update(Report).where(Report.id == plain).values(created_at=datetime.now(UTC) + timedelta(days=9)))
    store.close()
    store = opened(url, None)
    check_image_key(store, site())
    before = datetime.now(UTC)
    kept = Kept(store, site())
    deadline = time.monotonic() + 20
    while stored(store) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert stored(store) == []
    for report in (sealed, plain):
        deleted = find(store, report).images_deleted_at
        assert deleted is not None
        assert before <= deleted <= datetime.now(UTC)
    kept.close()


def test_previews_of_what_browsers_do_not_show(service: TestClient) -> None:
    wide = Image.new("RGB", (2000, 1000), COLOURS["Monocyte"])
    answer = service.post("/v1/preview", files=form(encode(wide, "TIFF"), b"no image", NOT_ONE_PICTURE["tiff of two pages"][0]))
    assert answer.status_code == 200
    shown, *none = answer.json()["previews"]
    assert none == [None, None]
    image = image_at(base64.b64decode(shown))
    assert (image.format, image.size, image.getpixel((0, 0))) == ("PNG", (512, 256), COLOURS["Monocyte"])
    assert_problem(service.post("/v1/preview", files=form(*[of_class("Basophil")] * 17)), 413, "too-large")
    assert_problem(service.post("/v1/preview", content=b"{}"), 415, "not-multipart")
    assert service.get("/v1/reports").json()["reports"] == []


@pytest.mark.slow
def test_the_server_does_not_start_with_the_wrong_key(model_dir: Path, tmp_path: Path) -> None:
    url, right = sqlite_url(tmp_path / "service.db"), key_file(beside(tmp_path))
    store = opened(url, right)
    taken(store, keeping(encrypted=True))
    store.close()
    (tmp_path / "site.yaml").write_text("keep_images: {encrypted: true}\n")
    command, named = serve_command(model_dir, free_port()), {"WBC_STORE_URL": url, "WBC_SITE_FILE": str(tmp_path / "site.yaml")}
    wrong = key_file(beside(tmp_path))
    line = fails_to_start(command, **named, WBC_IMAGE_KEY_FILE=str(wrong))
    assert "must name its file" in line
    assert f"{wrong} does not hold it" in line
