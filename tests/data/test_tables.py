"""The project's CSV files as columns: the bytes of the `csv` module, and what comes back from them."""

import csv
import hashlib
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wbc_model.cells import tables
from wbc_model.cells.tables import (
    all_differ,
    among,
    are_names,
    csv_blocks,
    digests,
    first_places,
    in_order,
    names_of,
    places_in,
    read_table,
    slices_in_order,
    to_csv,
    whole_numbers,
)
from wbc_model.core.errors import WbcError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6) | st.sampled_from(
    ["", ",", '"', 'a"b', "x\ny", "NA"]
)
ROWS = st.lists(st.tuples(TEXT, TEXT, st.none() | st.integers(0, 99)), max_size=8)


def table(rows: list[tuple[str, str, int | None]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["path", "label", "cycle"])
    return frame.astype({"path": "str", "label": "str", "cycle": "Int64"})


def by_pandas(frame: pd.DataFrame, **options: int) -> str:
    text = io.StringIO()
    frame.to_csv(text, index=False, lineterminator="\n", **options)
    return text.getvalue()


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (["0a" * 32], True),
        ([], True),
        (["0A" * 32], False),
        (["0a" * 31], False),
        (["0a" * 32, "é" * 64], False),
        (["a", "b" * 127], False),
    ],
)
def test_names_of_cells_are_told_from_other_texts(names: list[str], right: bool) -> None:
    assert are_names(pd.Series(names, dtype=str)) is right


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_a_table_has_the_bytes_that_pandas_writes_and_comes_back(rows: list[tuple[str, str, int | None]]) -> None:
    frame = table(rows)
    plain = by_pandas(frame)
    assert to_csv(frame) == (by_pandas(frame, quoting=csv.QUOTE_ALL) if "\r" in plain else plain)


@given(ROWS)
@settings(max_examples=30, deadline=None)
def test_what_was_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int | None]]
) -> None:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    frame = table(rows)
    path.write_bytes(to_csv(frame).encode())
    assert (
        read_table(path, list(frame)).to_numpy().tolist()
        == frame.astype({"cycle": "object"}).fillna("").astype(str).to_numpy().tolist()
    )


def test_many_blocks_are_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table([(f"{number},", "x", number) for number in range(100)])
    whole = to_csv(frame)
    monkeypatch.setattr(tables, "_ROWS", 7)
    assert len(list(csv_blocks(frame))) == 1 + 15
    assert to_csv(frame) == whole == by_pandas(frame)
    assert to_csv(frame.iloc[30:]) == by_pandas(frame.iloc[30:])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged"),
        (b"path,label\n1\n", "damaged"),
        (b"path,label\n\xff,1\n", "no UTF-8 text at byte 11"),
        (b"path,label\n\0,1\n", "zero bytes"),
        (b"path,lable\n1,2\n", "its columns are path, lable; expected path, label"),
    ],
)
def test_a_file_that_is_no_such_table_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(WbcError, match=says) as raised:
        read_table(tmp_path / "table.csv", ["path", "label"])
    assert "table.csv" in str(raised.value)


def test_a_file_saved_in_an_editor_is_read(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "table.csv").write_bytes("path,label\r\nä,\r\n".encode(encoding))
        assert read_table(tmp_path / "table.csv", ["path", "label"]).to_numpy().tolist() == [["ä", ""]]


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_rows_are_ordered_as_pandas_orders_them(rows: list[tuple[str, str, int | None]]) -> None:
    frame = table(rows)
    expected = frame.sort_values(["cycle", "path"], na_position="last", kind="stable")
    pd.testing.assert_frame_equal(in_order(frame, ["cycle", "path"]), expected)


@given(ROWS)
@settings(max_examples=30, deadline=None)
def test_slices_in_order_are_the_table_in_order(rows: list[tuple[str, str, int | None]]) -> None:
    frame = pd.DataFrame(rows, columns=["a", "b", "n"]).astype({"a": str, "b": str, "n": "Int64"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_TAKEN", 3)
        slices = list(slices_in_order(frame, ["b", "a"]))
    pd.testing.assert_frame_equal(pd.concat(slices), in_order(frame, ["b", "a"]))
    assert len(slices) == max(1, -(-len(frame) // 3))


def test_names_of_cells_as_bytes() -> None:
    names = pd.Series([hashlib.sha256(bytes([number])).hexdigest() for number in range(50)])
    assert digests(names).tobytes() == bytes.fromhex("".join(names))
    assert len(digests([])) == 0
    assert all_differ([names, names[:0]])
    assert not all_differ([names, names[30:31]])
    assert not all_differ([names, pd.Series(["", "no name"])])
    with pytest.raises(ValueError, match="sha256"):
        digests(["ab" * 31, "ab" * 33])
    assert (names_of(pd.Series(["ab" * 32, "no name"])) == digests(["ab" * 32, "00" * 32])).all()


@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(0, 9), max_size=30))
@settings(max_examples=30, deadline=None)
def test_names_are_found_where_they_first_stand(wanted: list[int], there: list[int]) -> None:
    """Some of them begin alike, which hashes seldom do."""
    names = digests([f"{number // 5:032x}{number:032x}" for number in range(10)])
    expected = [there.index(number) if number in there else -1 for number in wanted]
    assert places_in(names[wanted], names[there]).tolist() == expected
    assert first_places(names[wanted]).tolist() == [wanted.index(number) for number in wanted]


@given(st.lists(st.sampled_from(["", "ab" * 32, "AB" * 32, "cd" * 32, "no name"]), max_size=8), st.booleans(), st.data())
@settings(max_examples=50, deadline=None)
def test_cells_are_among_others_as_isin_says(names: list[str], as_column: bool, data: st.DataObject) -> None:
    """Whatever stands where a sha256 belongs, and however often."""
    column = pd.Series([*names, *names], dtype="str", index=range(7, 7 + 2 * len(names)))
    wanted = data.draw(st.lists(st.sampled_from([*names, "ef" * 32]), max_size=8))
    found = among(column, pd.Series(wanted, dtype="str") if as_column else wanted)
    assert found.tolist() == column.isin(wanted).tolist()


def test_texts_are_whole_numbers_or_missing() -> None:
    numbers = whole_numbers(pd.Series(["3", "", "0"], index=[4, 5, 6]))
    pd.testing.assert_series_equal(numbers, pd.Series([3, None, 0], index=[4, 5, 6], dtype="Int64"))
    assert whole_numbers(pd.Series([], dtype=str)).dtype == "Int64"
