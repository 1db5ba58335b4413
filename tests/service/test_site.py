"""A site's settings: the defaults, what a file replaces, and what is wrong in one clear line."""

from pathlib import Path

import pytest

from serving.site import DEFAULT, read_site, site_from_environment
from wbc_model.classes import CLASSES
from wbc_model.errors import WbcError


def test_the_defaults_are_those_of_the_contract() -> None:
    site = read_site()
    assert site.minimum_cells == 100
    assert [site.loinc.percent[name] for name in CLASSES] == ["30180-4", "26450-7", "26478-8", "26485-3", "26511-6"]
    assert [site.loinc.absolute[name] for name in CLASSES] == ["26444-0", "26449-9", "26474-7", "26484-6", "26499-4"]
    assert site.reference.source
    assert site.critical.source
    assert site.hl7 is None
    assert not site.keep_images
    assert site_from_environment({}) == site == site_from_environment({"WBC_SITE_FILE": " "})


def test_a_file_replaces_whole_blocks(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("name: ward 3\nminimum_cells: 200\nhl7: {host: lis.example, port: 2575}\n")
    site = site_from_environment({"WBC_SITE_FILE": str(file)})
    assert (site.name, site.minimum_cells) == ("ward 3", 200)
    assert site.hl7 is not None
    assert (site.hl7.host, site.hl7.port, site.hl7.timeout_seconds, site.hl7.retries) == ("lis.example", 2575, 10, 10)
    assert site.reference == read_site().reference


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("minimum_cells: many", "minimum_cells: "),
        ("minimum_cells: 0", "minimum_cells: "),
        ("min_cells: 5", "min_cells: "),
        ("keep_images: 'yes'", "keep_images: "),
        ("name: ''", "name: "),
        ('name: "a\\nb"', "name: "),
        ("hl7: {host: x, port: 70000}", "hl7.port: "),
        ("reference: {source: us, percent: {}, absolute: {}}", "reference.percent: Basophil is missing"),
        ("- a list", "must be a YAML mapping"),
        ("name: [", "is no YAML file"),
        ("name: !!python/object/apply:os.system [true]", "is no YAML file"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, mentions: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(WbcError) as caught:
        read_site(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert mentions in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "mentions"),
    [
        ("26511-6", "26511-7", "loinc.percent: '26511-7' is no LOINC code: its check digit"),
        ("69738-3", "69378-3", "loinc.panel: "),
        ("26511-6", "neutrophils", "loinc.percent: 'neutrophils' is no LOINC code"),
        ("{low: 40, high: 80}", "{low: 80, high: 40}", "reference.percent.Neutrophil: low 80 is above high 40"),
        ("{low: 40, high: 80}", "{low: 40, high: 101}", "reference.percent: Neutrophil: high 101 is above 100"),
        ("{low: 40, high: 80}", "{low: 40, high: .inf}", "reference.percent.Neutrophil.high: "),
        ("Neutrophil: {low: 0.5", "Blast: {low: 0.5", "critical.absolute: 'Blast' is no class"),
    ],
)
def test_a_mistake_in_the_tables_is_found(tmp_path: Path, old: str, new: str, mentions: str) -> None:
    file = tmp_path / "site.yaml"
    text = DEFAULT.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    with pytest.raises(WbcError) as caught:
        read_site(file)
    assert mentions in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WbcError, match="cannot be read"):
        site_from_environment({"WBC_SITE_FILE": str(tmp_path / "none.yaml")})
