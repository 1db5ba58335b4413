"""Files that people write."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wbc_model.core.errors import WbcError
from wbc_model.core.written import decode_written, parse_yaml, read_written, read_yaml

FILE = Path("some.yaml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_an_editors_encoding_is_known_by_its_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes("a: ä\r\n".encode(encoding))
    assert read_written(path) == "a: ä\r\n"
    assert read_yaml(path) == {"a": "ä"}


@pytest.mark.parametrize("data", ["ä".encode("latin-1"), "ab".encode("utf-16-le"), b"\xff\xfea"])
def test_what_is_no_utf_8_is_refused_by_one_line(data: bytes) -> None:
    with pytest.raises(WbcError, match=r"some\.yaml.*save it as UTF-8") as refused:
        decode_written(data, FILE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [b"PK\x03\x04\x14\x00\x06", b"\xd0\xcf\x11\xe0\xa1\xb1"])
def test_a_workbook_is_called_one(data: bytes) -> None:
    with pytest.raises(WbcError, match=r"some\.yaml: is no text but a workbook .* save its sheet as CSV"):
        decode_written(data, FILE)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(WbcError, match=r"absent.*cannot be read"):
        read_written(tmp_path / "absent")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_is_read_as_python_writes_it(value: float) -> None:
    assert parse_yaml(f"a: {value!r}", FILE) == {"a": value}


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("1E3", 1000.0), ("-2e5", -2e5), ("1.e2", 100.0)])
def test_powers_of_ten_are_numbers(text: str, value: float) -> None:
    found = parse_yaml(f"a: {text}", FILE)["a"]
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize("text", ["a1e3", "1e", "e3", "1e3b", "'1e3'"])
def test_what_only_looks_like_one_stays_text(text: str) -> None:
    assert parse_yaml(f"a: {text}", FILE)["a"] == text.strip("'")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hl7: {port: 1}\nb: 2\nhl7: null\n", "some.yaml line 3: 'hl7' stands twice, in line 1 too"),
        ("a:\n  b: 1\n  b: 2\n", "some.yaml line 3: 'b' stands twice"),
        ("a: .inf", "some.yaml line 1: .inf is no finite number"),
        ("a: [1, .nan]", "is no finite number"),
        ("a: 1e999", "is no finite number"),
        ("- 1", "must be a YAML mapping"),
        ("a: [", "some.yaml line 1"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_a_trap_is_one_line(text: str, says: str) -> None:
    with pytest.raises(WbcError) as refused:
        parse_yaml(text, FILE)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_file_is_an_empty_mapping() -> None:
    assert parse_yaml("# nothing\n", FILE) == {}


@pytest.mark.parametrize(
    "text",
    [
        "1e-3",
        "1E3",
        ".5",
        "5.",
        "010",
        "0o17",
        "0x1F",
        "+5",
        "-0",
        "-7",
        "1.5e+3",
        "True",
        "false",
        "null",
        "~",
        "",
        "yes",
        "on",
        "1:30",
        "NO",
        "a",
        "0.0",
        "-.5e1",
        ".5e1",
        "'1'",
    ],
)
def test_dvc_reads_a_scalar_as_we_do(text: str) -> None:
    from dvc.utils.serialize import parse_yaml as read_by_dvc

    ours, theirs = parse_yaml(f"a: {text}", FILE)["a"], read_by_dvc(f"a: {text}", "some.yaml")["a"]
    assert (ours, type(ours)) == (theirs, type(theirs))


@pytest.mark.parametrize("text", ["1_000", "2024-01-01", "0b11"])
def test_what_dvc_takes_for_more_than_text_is_text_here(text: str) -> None:
    assert parse_yaml(f"a: {text}", FILE)["a"] == text
