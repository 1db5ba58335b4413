"""A site's settings: the defaults, what a file replaces, and what is wrong in one clear line."""

from pathlib import Path

import pytest

from serving.contract.site import DEFAULT, LOINC_TERMS, KeepImages, _checked_loinc, read_site, site_from_environment
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError


def test_the_defaults_are_those_of_the_contract() -> None:
    site = read_site()
    assert site.minimum_cells == 100
    assert [site.loinc.percent[name] for name in CLASSES] == ["30180-4", "26450-7", "26478-8", "26485-3", "26511-6"]
    assert [site.loinc.absolute[name] for name in CLASSES] == ["26444-0", "26449-9", "26474-7", "26484-6", "26499-4"]
    assert site.reference.source
    assert site.critical.source
    assert site.hl7 is None
    assert site.keep_images == KeepImages(days=90, encrypted=False)
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
    ("text", "kept"),
    [
        ("keep_images: true", KeepImages()),  # as files say that were written before there was more to say
        ("keep_images: false", None),
        ("keep_images: {days: 7, encrypted: true}", KeepImages(days=7, encrypted=True)),
        ("keep_images: {days: null}", KeepImages(days=None)),
    ],
)
def test_how_long_images_are_kept(tmp_path: Path, text: str, kept: KeepImages | None) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    assert read_site(file).keep_images == kept


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("minimum_cells: many", "minimum_cells: "),
        ("minimum_cells: 0", "minimum_cells: "),
        ("min_cells: 5", "min_cells: "),
        ("keep_images: 'yes'", "keep_images: "),
        ("keep_images: {days: 0}", "keep_images.days: "),
        ("keep_images: {encrypted: maybe}", "keep_images.encrypted: "),
        ("keep_images: {for: 3}", "keep_images.for: "),
        ("name: ''", "name: "),
        ('name: "a\\nb"', "name: "),
        ("hl7: {host: x, port: 70000}", "hl7.port: "),
        ("reference: {source: us, percent: {}, absolute: {}}", "reference.percent: Basophil is missing"),
        ("- a list", "must be a YAML mapping"),
        ("name: [", " line 1: "),
        ("name: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("hl7: {host: lis, port: 2575}\nname: ward\nhl7: null", "line 3: 'hl7' stands twice, in line 1 too"),
        ("critical: {source: us, percent: {}, absolute: {Neutrophil: {low: 1, low: 0.5}}}", "'low' stands twice"),
        ("1: x", "1: is no setting"),
        ("review_before_signature: marks", "review_before_signature: "),
        ("minimum_cells: 5000", "minimum_cells: "),
        ("hl7: {host: 'a b', port: 2575}", "hl7.host: "),
        ("hl7: {host: a, port: 2575, timeout_seconds: .inf}", "is no finite number"),
        ('name: "\\u00a0"', "name: there is nothing to see in it"),
        (
            "critical: {source: us, percent: {}, absolute: {Neutrophil: {}}}",
            "critical.absolute.Neutrophil: has neither low nor high",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, mentions: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(WbcError) as caught:
        read_site(file)
    assert str(caught.value).startswith(f"{file}")
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
        ("{low: 40, high: 80}", "{low: 40, high: .inf}", ".inf is no finite number"),
        ("Neutrophil: {low: 0.5", "Blast: {low: 0.5", "critical.absolute: 'Blast' is no class"),
        ("26485-3", "26511-6", "loinc: 26511-6 stands twice, at percent.Monocyte and at percent.Neutrophil"),
        ("26485-3", "5905-5", None),  # the same by an automated count
        ("26485-3", "26484-6", "loinc: 26484-6 stands twice, at percent.Monocyte and at absolute.Monocyte"),
        ("26485-3", "742-7", "loinc: percent.Monocyte: 742-7 is LOINC's term for absolute.Monocyte"),
        ("26485-3", "737-7", "loinc: percent.Monocyte: 737-7 is LOINC's term for percent.Lymphocyte"),
        ("69738-3", "26511-6", "loinc: 26511-6 stands twice, at panel and at percent.Neutrophil"),
        ("69738-3", "26505-8", None),
        ("{low: 0.5, high: 50}", "{low: 50, high: 0.5}", "critical.absolute.Neutrophil: low 50 is not below high 0.5"),
        ("{low: 0.5, high: 50}", "{low: 2.5}", "critical.absolute: Neutrophil: low 2.5 is above the lower end of the reference"),
        (
            "{low: 0.5, high: 50}",
            "{high: 6.9}",
            "critical.absolute: Neutrophil: high 6.9 is below the upper end of the reference",
        ),
        ("{low: 0.5, high: 50}", "{high: 5000}", "high 5000 is above 1000, which no value reaches"),
        ("percent: {}", "percent: {Neutrophil: {high: 101}}", "critical.percent: Neutrophil: high 101 is above 100"),
        ("percent: {}", "percent: {Neutrophil: {low: 45}}", "critical.percent: Neutrophil: low 45 is above the lower end"),
        ("{low: 2.0, high: 7.0}", "{low: 2000, high: 7000}", "reference.absolute: Neutrophil: high 7000 is above 100"),
        ("{low: 40, high: 80}", "{low: 2, high: 7}", "no five shares in these ranges make 100 %: they make 25 to 65"),
        ('specimen_system: ""', 'specimen_system: "urn: x"', "identifiers.specimen_system: "),
        ('facility: ""', 'facility: "\\u2003"', "identifiers.facility: there is nothing to see in it"),
    ],
)
def test_a_mistake_in_the_tables_is_found(tmp_path: Path, old: str, new: str, mentions: str | None) -> None:
    file = tmp_path / "site.yaml"
    text = DEFAULT.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    if mentions is None:
        assert read_site(file) is not None
        return
    with pytest.raises(WbcError) as caught:
        read_site(file)
    assert mentions in str(caught.value)


def test_percent_and_count_codes_that_were_swapped_are_found(tmp_path: Path) -> None:
    text, site = DEFAULT.read_text(), read_site()
    for name in CLASSES:
        text = text.replace(site.loinc.percent[name], "code").replace(site.loinc.absolute[name], site.loinc.percent[name])
        text = text.replace("code", site.loinc.absolute[name], 1)
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(WbcError, match=r"loinc: percent\.\w+: \S+ is LOINC's term for absolute"):
        read_site(file)


def test_every_known_term_is_a_code_of_its_own() -> None:
    codes = [code for kind in LOINC_TERMS.values() for terms in kind.values() for code in terms]
    assert len(set(codes)) == len(codes) == 30
    for code in codes:
        assert _checked_loinc(code) == code


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("name: Zürich\n", encoding=encoding)
    assert read_site(file).name == "Zürich"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WbcError, match="cannot be read"):
        site_from_environment({"WBC_SITE_FILE": str(tmp_path / "none.yaml")})
