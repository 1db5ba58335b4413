"""Directories are replaced whole or not at all."""

from pathlib import Path

import pytest

from wbc_model.files import building


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
