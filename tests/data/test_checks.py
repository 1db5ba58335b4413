import hashlib
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageFilter

from flows.pipeline import checks, data_docs
from flows.pipeline.checks import ChecksStopped, ValidationReport, validate
from tests.chromium import headless_chromium
from tests.data.conftest import encoded, write_manifest
from tests.pools import ingest
from wbc_model.cells.pools import POOLS, Pools
from wbc_model.cells.rejections import quarantined
from wbc_model.cells.store import ImageStore
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.params import Params
from wbc_model.rendering.cells import render_cells

COLUMNS = ("path", "label", "split", "group")


class Site:
    """A source folder of rendered cells with a manifest, and a workspace."""

    def __init__(self, folder: Path, params: Params) -> None:
        self.source, self.workspace = folder / "source", folder / "workspace"
        self.data, self.params = self.workspace / "data", params
        self.source.mkdir()
        self.rows: list[tuple[str, str, str, str]] = []
        self.cells = [Image.fromarray(cell.pixels) for cell in render_cells(110, seed=11, size=96)]
        for number in range(90):
            split = ("train", "train", "train", "val", "test", "test")[number // 15]
            self.add(f"{number}.png", self.cells[number], CLASSES[number % 5], split)

    def add(self, name: str, image: Image.Image, label: str, split: str, image_format: str = "PNG", group: str = "") -> None:
        (self.source / name).write_bytes(encoded(image, image_format))
        self.rows.append((name, label, split, group))

    def ingest(self) -> None:
        ingest(write_manifest(self.source, self.rows, COLUMNS), self.data, self.params, "rendered")

    def validate(self) -> ValidationReport:
        return validate(self.workspace, self.params)

    def quarantine(self) -> set[tuple[str, str, str]]:
        table = pd.read_csv(self.data / "quarantine.csv", keep_default_na=False)
        return set(map(tuple, table[["path", "reason", "detail"]].to_numpy()))


@pytest.fixture
def site(tmp_path: Path, params: Params) -> Site:
    return Site(tmp_path, params)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Site:
    from wbc_model.params import read_params

    made = Site(tmp_path_factory.mktemp("clean"), read_params(Path(__file__).parents[2] / "params.yaml"))
    made.ingest()
    return made


@pytest.fixture
def workspace(clean: Site, tmp_path: Path) -> Path:
    """A copy of a clean workspace that a test may spoil."""
    return Path(shutil.copytree(clean.workspace, tmp_path / "w"))


def test_faults_of_rows_are_found_and_taken_out_of_use(site: Site) -> None:
    cells = site.cells
    checks = site.params.checks.model_copy(update={"max_quarantined_share": 0.5})
    site.params = site.params.model_copy(update={"checks": checks})
    site.add("pixels-again.bmp", cells[0], CLASSES[0], "train", "BMP")
    site.add("pixels-leak.bmp", cells[61], CLASSES[1], "train", "BMP")
    site.add("pixels-conflict.bmp", cells[2], CLASSES[4], "train", "BMP")
    site.add("near.jpg", cells[3], CLASSES[3], "train", "JPEG")
    site.add("near-leak.jpg", cells[62], CLASSES[2], "train", "JPEG")
    site.add("near-val.jpg", cells[63], CLASSES[3], "val", "JPEG")
    site.add("near-conflict.jpg", cells[4], CLASSES[0], "train", "JPEG")
    site.add("white.png", Image.new("RGB", (96, 96), (235, 230, 232)), CLASSES[0], "train")
    site.add("also-white.png", Image.new("RGB", (96, 96), (236, 230, 232)), CLASSES[1], "train")
    site.add("black.png", cells[100].point(lambda value: value // 12), CLASSES[0], "train")
    site.add("blurred.png", cells[101].filter(ImageFilter.GaussianBlur(8)), CLASSES[0], "train")
    site.add("bytes-again.png", cells[5], CLASSES[0], "train")
    (site.source / "broken.png").write_bytes(b"no image")
    site.rows.append(("broken.png", CLASSES[0], "train", ""))
    site.ingest()
    report = site.validate()
    pairs = {
        ("pixels-again.bmp", "duplicate", "0.png"),
        ("pixels-leak.bmp", "split_leak", "61.png"),
        ("pixels-conflict.bmp", "label_conflict", "2.png"),
        ("2.png", "label_conflict", "pixels-conflict.bmp"),
        ("near.jpg", "near_duplicate", "3.png"),
        ("near-leak.jpg", "near_duplicate", "62.png"),
        ("near-val.jpg", "near_duplicate", "63.png"),
        ("near-conflict.jpg", "label_conflict", "4.png"),
        ("4.png", "label_conflict", "near-conflict.jpg"),
        ("bytes-again.png", "duplicate", "5.png"),
    }
    singles = {("white.png", "blank"), ("also-white.png", "blank"), ("black.png", "blank"), ("blurred.png", "blurred")}
    found = site.quarantine()
    assert {entry for entry in found if entry[1] not in ("blank", "blurred", "undecodable")} == pairs
    assert {entry[:2] for entry in found} - {entry[:2] for entry in pairs} == singles | {("broken.png", "undecodable")}
    pools = Pools.read(site.data / "pools")
    left = pools.without(quarantined(site.data))
    assert {name: len(frame) for name, frame in left.frames.items()} == report.usable
    assert "5.png" in set(left.table()["path"]), "the row that a refused copy repeats stays in use"
    assert len(report.found) == 13
    front = (site.data / "docs" / "index.html").read_text()
    assert "near-conflict.jpg" in front
    first = (site.data / "quarantine.csv").read_bytes()
    site.ingest()
    assert (site.data / "quarantine.csv").read_bytes() == first, "an ingest keeps what validate found"


def test_a_clean_set_passes_and_the_documents_are_the_same_each_time(clean: Site, workspace: Path) -> None:
    report = validate(workspace, clean.params)
    assert report.found == []
    assert report.pools == report.usable
    assert report.to_dict()["quarantined"] == {}

    def documents() -> dict[str, str]:
        files = [path for path in (workspace / "data" / "docs").rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = documents()
    validate(workspace, clean.params)
    assert documents() == before
    (page,) = (workspace / "data" / "docs").rglob("*")
    assert not re.findall(r"https?:|<script|<link", page.read_text()), "it is read without the internet"
    assert len(pd.read_csv(workspace / "reports/checks.csv")) == 1, "the same result is not kept twice"
    assert (workspace / ".wbc/great_expectations/index.html").is_file(), "Great Expectations' own pages stand beside it"


def test_the_page_shows_the_rows_the_classes_and_the_results_before(clean: Site, workspace: Path, tmp_path: Path) -> None:
    """In a browser without a network, as a person sees it."""
    validate(workspace, clean.params)
    checks = clean.params.checks.model_copy(update={"brightness": (160, 250)})
    params = clean.params.model_copy(update={"checks": checks})
    report = validate(workspace, params)
    assert len(report.found) == 5
    with headless_chromium() as browser:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
        page.goto((workspace / "data/docs/index.html").as_uri())
        pictures = page.evaluate("[...document.querySelectorAll('.cells img')].map((image) => image.naturalWidth)")
        text = "[...t.rows].map((r) => [...r.cells].map((c) => c.innerText.trim()))"
        tables = page.evaluate(f"[...document.querySelectorAll('table')].map((t) => {text})")
    assert set(asked) <= {"file", "data"}
    assert len(pictures) == len(report.found)
    assert min(pictures) > 0
    counts, checked, results = tables
    assert [row[:3] for row in counts[1:]] == [[name, str(report.pools[name]), str(report.usable[name])] for name in POOLS]
    assert ["the mean grey value is 160 to 250", "90", str(len(report.found)), "the row is out of use"] in checked
    assert [row[5] for row in results[1:]] == [f"{len(report.found)} blank", "none"], "this result, then the one before"


def edit(workspace: Path, pool: str, change: object) -> None:
    path = workspace / "data" / "pools" / f"{pool}.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(frame).to_csv(path, index=False)  # type: ignore[operator]


def test_critical_findings_stop_with_the_rows_and_documents_are_written(
    clean: Site, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = workspace / "data" / "pools" / "test.csv"
    names = pd.read_csv(test)["path"]
    edit(workspace, "test", lambda frame: frame.assign(label=["Blast", *frame["label"][1:]], group=["g", *frame["group"][1:]]))
    edit(workspace, "validation", lambda frame: frame.assign(group=["g", *frame["group"][1:]]))
    extra = pd.read_csv(test, dtype=str, keep_default_na=False).iloc[[3]]
    edit(workspace, "labelled", lambda frame: pd.concat([frame, extra.assign(label="Monocyte")]))
    ghost = extra.assign(path="ghost.png", sha256="0" * 64)
    edit(workspace, "validation", lambda frame: pd.concat([frame, ghost]))
    many = clean.params.checks.model_copy(update={"min_test_cells_per_class": 1000})
    params = clean.params.model_copy(update={"checks": many})
    with pytest.raises(ChecksStopped) as stopped:
        validate(workspace, params)
    says = str(stopped.value)
    lacks = [line.text for line in stopped.value.critical if line.lacks]
    assert len(lacks) == 2 * len(CLASSES)
    assert all("and needs 1000" in text for text in lacks)
    assert f"test: {names[0]} has an unknown, missing or stray label" in says
    assert f"test: {names[0]} is of a group that is split" in says
    assert f"labelled: {names[3]} is in the pools more than once" in says
    assert "validation: ghost.png has no image in the store" in says
    assert (workspace / "data" / "quarantine.csv").is_file()
    page = (workspace / "data" / "docs" / "index.html").read_text()
    assert "ghost.png" in page
    monkeypatch.setattr(checks, "CHECKED_AT_A_TIME", 50)
    with pytest.raises(WbcError) as again:
        validate(workspace, params)
    assert str(again.value) == says
    assert (workspace / "data" / "docs" / "index.html").read_text() == page


def test_damaged_images_stop(clean: Site, workspace: Path) -> None:
    validate(workspace, clean.params)
    (shard,) = ImageStore(workspace / "data" / "images").shards()
    victim = (clean.source / "77.png").read_bytes()
    content = shard.read_bytes()
    place = content.index(victim) + 300
    shard.write_bytes(content[:place] + b"\0\0\0\0\0\0" + content[place + 6 :])
    with pytest.raises(WbcError, match=r"77\.png has a damaged image"):
        validate(workspace, clean.params)


def test_a_group_that_an_earlier_version_kept_under_two_names_is_a_warning(clean: Site, workspace: Path) -> None:
    pools = Pools.read(workspace / "data/pools")
    pools.frames["labelled"].loc[[0, 1], "group"] = ["7.0", "8.0"]
    pools.frames["unlabelled"].loc[0, "group"] = "8"
    pools.frames["test"].loc[0, "group"] = "7"
    pools.write(workspace / "data/pools")
    [line] = [line for line in validate(workspace, clean.params).warnings if "groups" in line]
    assert line.startswith("the groups '7' and '7.0' seem to be one, and have cells on several sides")


def test_too_little_to_train_or_test_on_stops(clean: Site, workspace: Path) -> None:
    edit(workspace, "test", lambda frame: frame[frame["label"] != "Eosinophil"])
    edit(workspace, "labelled", lambda frame: frame.head(0))
    with pytest.raises(WbcError) as stopped:
        validate(workspace, clean.params)
    assert "test: has 0 cells of Eosinophil in use, and needs 1" in str(stopped.value)
    assert "labelled: has labels of 0 classes, and 2 are the least that a model can learn" in str(stopped.value)


def test_too_much_quarantine_stops_and_lists_twenty(site: Site) -> None:
    checks = site.params.checks.model_copy(update={"min_sharpness": 1e9})
    site.params = site.params.model_copy(update={"checks": checks})
    site.ingest()
    with pytest.raises(WbcError) as stopped:
        site.validate()
    assert re.search(
        r"labelled and unlabelled: (\d+) of \1 cells \(100%\) are in quarantine, more than 15%: ", str(stopped.value)
    )
    assert len(str(stopped.value).splitlines()) <= 22
    assert len(quarantined(site.data)) == 90


def test_a_path_that_two_cells_have_shows_neither() -> None:
    cells = pd.DataFrame({"path": ["1.png", "2.png", "1.png"], "sha256": ["a", "b", "c"]})
    assert data_docs._by_path(cells, {"1.png", "2.png", "3.png"}) == {"2.png": "b"}


def test_the_first_ten_labels_have_no_share_of_their_own(params: Params) -> None:
    """Two of ten would be more than 15 %, of the 60 cells that came together they are not."""

    def stops(labelled: int, unlabelled: int, test: int) -> set[str]:
        counts = {"labelled": (10, labelled), "unlabelled": (50, unlabelled), "validation": (5, 1), "test": (10, test)}
        rows = [(name, CLASSES[at % 5], at < out) for name, (size, out) in counts.items() for at in range(size)]
        table = checks._pool_table(pd.DataFrame(rows, columns=["pool", "label", "quarantined"]), params.checks)
        return set(table.loc[table["quarantined_share"] > params.checks.max_quarantined_share, "pool"])

    assert stops(2, 0, 0) == set()
    assert stops(2, 8, 2) == {"labelled and unlabelled", "test"}


@pytest.mark.slow
def test_the_known_faults_of_the_real_set(tmp_path: Path, real_data: Path, params: Params) -> None:
    """Every faulty row of pbc.csv, among a tenth of the others."""
    manifest = pd.read_csv(real_data / "pbc.csv", dtype=str)
    stems = manifest["path"].map(lambda path: Path(path).stem)
    faulty = stems.isin({name for entry in PBC_FAULTS for name in entry[1:]} | PBC_NEIGHBOURS)
    chosen = manifest[faulty | (manifest.index % 10 == 0)]
    rows = [
        (str((real_data / path).resolve()), label, split) for path, label, split in chosen[["path", "label", "split"]].to_numpy()
    ]
    data = tmp_path / "w" / "data"
    ingest(write_manifest(tmp_path, rows, ("path", "label", "split")), data, params)
    validate(tmp_path / "w", params)
    table = pd.read_csv(data / "quarantine.csv", keep_default_na=False)
    found = {
        (reason, Path(path).stem, Path(detail).stem) for path, reason, detail in table[["path", "reason", "detail"]].to_numpy()
    }
    assert found == PBC_FAULTS


PBC_NEIGHBOURS = {"EO_621854", "MO_418203", "BNE_375120", "MO_499693"}  # one field, centred on two cells: no fault
PBC_FAULTS = {
    ("duplicate", "BA_685720", "BA_546746"),
    ("duplicate", "BA_809918", "BA_20201"),
    ("duplicate", "BA_988506", "BA_251042"),
    ("duplicate", "EO_433229", "EO_220125"),
    ("duplicate", "EO_728356", "EO_621854"),
    ("duplicate", "EO_738445", "EO_284748"),
    ("duplicate", "EO_873756", "EO_65638"),
    ("split_leak", "BA_225540", "BA_786369"),
    ("split_leak", "BA_381452", "BA_80990"),
    ("split_leak", "MO_997225", "MO_145357"),
    ("split_leak", "BA_435917", "BA_858229"),
    ("near_duplicate", "EO_179046", "EO_15074093"),
    ("near_duplicate", "EO_330760", "EO_309740"),
    ("near_duplicate", "EO_400135", "EO_354514"),
    ("near_duplicate", "EO_409717", "EO_246684"),
    ("near_duplicate", "EO_439200", "EO_335540"),
    ("near_duplicate", "EO_466655", "EO_43692"),
    ("near_duplicate", "EO_548865", "EO_217076"),
    ("near_duplicate", "EO_711529", "EO_680435"),
    ("near_duplicate", "EO_800344", "EO_464387"),
    ("near_duplicate", "EO_825350", "EO_724789"),
    ("near_duplicate", "EO_828135", "EO_457864"),
    ("near_duplicate", "EO_837323", "EO_680435"),
    ("near_duplicate", "EO_924136", "EO_398276"),
    ("near_duplicate", "EO_956671", "EO_926339"),
    ("near_duplicate", "EO_98753", "EO_823567"),
    ("near_duplicate", "MO_255233", "MO_25276"),
    ("near_duplicate", "MO_415531", "MO_231316"),
    ("near_duplicate", "BNE_253038", "BNE_489079"),
    ("near_duplicate", "BNE_986197", "BNE_441101"),
    ("near_duplicate", "SNE_691743", "SNE_94859"),
    ("near_duplicate", "SNE_699973", "SNE_574534"),
    ("near_duplicate", "SNE_973513", "SNE_487530"),
    ("near_duplicate", "EO_642190", "EO_549577"),
}
