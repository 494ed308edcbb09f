"""What is written is there whole or not at all, and nothing is left beside it."""

import os
from pathlib import Path

import pytest

from lccp_sim.files import atomic_directory, atomic_file, write_atomic


def test_a_write_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.json"
    write_atomic(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_atomic(path, "new, but never complete")
    assert path.read_text() == "old"
    write_atomic(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_a_file_that_fails_half_way_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("disk full")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path, left = tmp_path / "new" / "model", tmp_path / "new" / ".model.tmp"
    left.mkdir(parents=True)
    (left / "half").write_text("of a writer that was killed")
    with pytest.raises(KeyError), atomic_directory(path) as folder:
        (folder / "a").write_text("half")
        raise KeyError
    assert list(path.parent.iterdir()) == []
    with atomic_directory(path) as folder:
        (folder / "b").mkdir()
        (folder / "b" / "a").write_text("whole")
        assert not path.exists()
    assert list(path.parent.iterdir()) == [path] and [each.name for each in path.rglob("*")] == ["b", "a"]
