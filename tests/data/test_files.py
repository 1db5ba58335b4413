"""Directories are replaced whole or not at all."""

from pathlib import Path

import pytest

from wbc_model.core.files import building, write_atomic, write_atomic_by


def test_a_directory_takes_its_place_when_it_is_finished(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "model"
    for content in ("first", "second"):
        with building(final) as folder:
            (folder / "a").write_text(content)
            assert folder.parent == final.parent
            assert not final.exists() or (final / "a").read_text() == "first"
        assert (final / "a").read_text() == content
        assert final.stat().st_mode & 0o777 == 0o755
        assert [path.name for path in final.parent.iterdir()] == ["model"]


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    final = tmp_path / "model"
    with building(final) as folder:
        (folder / "a").write_text("good")

    def half() -> None:
        with building(final) as folder:
            (folder / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert (final / "a").read_text() == "good"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_that_is_streamed_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep/weights"
    write_atomic(path, "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ha")
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic_by(path, half)
    assert path.read_text() == "old"
    write_atomic_by(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["weights"]
