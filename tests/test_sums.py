"""Hashes of a folder: damage is told, a kill at any moment leaves none that is wrong."""

from pathlib import Path

import pytest

from lccp_sim import sums
from lccp_sim.data.cache import build_once
from lccp_sim.errors import ConfigError
from lccp_sim.sums import SUMS, change_sums, check_sums, read_sums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file that grows and one that does not, both with their hashes."""
    (tmp_path / "records.jsonl").write_bytes(b"1\n2\n")
    (tmp_path / "config.yaml").write_bytes(b"a: 1\n")
    change_sums(tmp_path, known={"records.jsonl": None, "config.yaml": None})
    return tmp_path


def test_a_file_may_grow_and_nothing_else(folder: Path) -> None:
    (folder / "records.jsonl").write_bytes(b"1\n2\n3\n")
    check_sums(folder)
    for name, data, what in (
        ("records.jsonl", b"1\n3\n3\n", "is damaged or was edited"),
        ("records.jsonl", b"1\n2", "is damaged or was edited"),
        ("config.yaml", b"a: 1\nb: 2\n", "is damaged or was edited"),
        ("config.yaml", None, "is missing"),
    ):
        path = folder / name
        before = path.read_bytes()
        path.unlink() if data is None else path.write_bytes(data)
        with pytest.raises(ConfigError, match=f"{name}: {what}, by its hash in {SUMS}; put it back, or remove {SUMS}"):
            check_sums(folder)
        check_sums(folder, "another")
        path.write_bytes(before)
    (folder / SUMS).unlink()
    (folder / "config.yaml").write_bytes(b"anything")
    check_sums(folder)


def test_an_entry_that_goes_is_not_asked_for(folder: Path) -> None:
    change_sums(folder, gone=["config.yaml"], known={"records.jsonl": 2})
    (folder / "config.yaml").unlink()
    (folder / "records.jsonl").write_bytes(b"1\n")
    check_sums(folder)
    assert read_sums(folder)["records.jsonl"][0] == 2


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a": 1}', b"\xff", b'{"a": [1, 2'])
def test_a_damaged_table_is_refused_in_one_line(folder: Path, data: bytes) -> None:
    (folder / SUMS).write_bytes(data)
    with pytest.raises(ConfigError, match=f"{SUMS}: damaged .*put it back, or remove it"):
        check_sums(folder)


def test_what_is_written_while_it_is_read_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sums._sum

    def sum_while_written(path: Path, size: int | None) -> tuple[int, str]:
        if path.name == "config.yaml" and b"2" not in path.read_bytes():
            path.write_bytes(b"a: 2\n")
            monkeypatch.setattr(sums, "_sum", plain)
            change_sums(folder, known={"config.yaml": None})
        return plain(path, size)

    monkeypatch.setattr(sums, "_sum", sum_while_written)
    check_sums(folder)


def test_a_damaged_entry_of_the_cache_is_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = []

    def build(directory: Path) -> None:
        built.append(directory)
        (directory / "ids.npy").write_bytes(b"12345")

    entry = build_once(tmp_path, "rows", build)
    assert build_once(tmp_path, "rows", build) == entry and len(built) == 1
    (entry / "ids.npy").write_bytes(b"12354")
    assert (build_once(tmp_path, "rows", build) / "ids.npy").read_bytes() == b"12345" and len(built) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"{entry}: damaged, by its hashes in {SUMS}; it is built again"
    (entry / SUMS).unlink()
    (entry / "ids.npy").write_bytes(b"of before there were hashes")
    build_once(tmp_path, "rows", build)
    assert len(built) == 2
