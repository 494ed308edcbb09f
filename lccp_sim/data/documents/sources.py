"""Documents from the Python installation: code and prose. See also files.py and archives.py.

No source imports the files that it reads, and none runs foreign code. A document of code is a (sub-)package, because
the new context needs long documents, and single files are mostly shorter.
"""

import ast
import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lccp_sim.configure.parse import parse_kind
from lccp_sim.data.documents.archives import PackageArchive
from lccp_sim.data.documents.document import Document, TextSource, join_files, text_hash
from lccp_sim.data.documents.files import Hub, TextFiles, stat, strings_of
from lccp_sim.data.documents.synthetic import Synthetic
from lccp_sim.errors import ConfigError, nearest, refuse

PACKAGES = ("aiohttp", "datasets", "fsspec", "huggingface_hub", "jinja2", "lightning", "mpmath", "networkx", "numpy")
# Tests repeat the code that they test, vendored copies would leak held-out packages, encoding tables are not text, and
# pydoc_data is prose that `package_text` reads.
SKIPPED = {"test", "tests", "testing", "idle_test", "turtledemo", "site-packages", "lib-dynload", "__pycache__"}
SKIPPED |= {"_vendor", "vendor", "vendored", "externals", "encodings", "pydoc_data", "lccp_sim"}


@dataclass(frozen=True, kw_only=True)
class PythonCode(TextSource):
    """Python code of the standard library and of installed packages. A document is the files of one directory."""

    kind: str = "python_code"
    packages: tuple[str, ...] = PACKAGES
    stdlib: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "packages", strings_of("packages", self.packages))
        for name in self.packages:
            bad = not name.isidentifier() or name == "lccp_sim"
            refuse(bad, "packages", name, "must be the name of a top-level package, and not lccp_sim; take it out")
        empty = not self.stdlib and not any(map(_roots, self.packages))
        refuse(empty, "packages", list(self.packages), "none is installed here; name others, or set stdlib to true")

    def notes(self) -> list[str]:
        missing = [name for name in self.packages if not _roots(name)]
        return [f"packages not installed here, skipped: {', '.join(missing)}"] if missing else []

    def _files(self) -> Iterator[tuple[str, str, Path]]:
        """Document, group and path of each file, in order."""
        roots = [(path.stem, path) for path in _stdlib_roots()] if self.stdlib else []
        roots += [(name, path) for name in sorted(set(self.packages)) for path in _roots(name)]
        for group, root in roots:
            if root.is_file():
                yield group, group, root
                continue
            for directory, inner, files in os.walk(root):
                inner[:] = sorted(name for name in inner if name not in SKIPPED)
                document = "/".join((group, *Path(directory).relative_to(root).parts))
                for file in sorted(files):
                    if file.endswith(".py"):
                        yield document, group, Path(directory, file)

    def fingerprint(self) -> list[str]:
        return [stat(path) for _, _, path in self._files()]

    def documents(self) -> Iterator[Document]:
        return join_files(self._texts())

    def _texts(self) -> Iterator[tuple[str, str, str, str]]:
        """Document, group, module and text of each file."""
        for document, group, path in self._files():
            try:
                text = path.read_bytes().decode("utf-8-sig")
            except UnicodeDecodeError:
                continue  # a few old files declare another encoding; nobody asked for them by name
            module = document.replace("/", ".") + ("" if path.stem in ("__init__", document) else f".{path.stem}")
            yield document, group, module, text


def _stdlib_roots() -> list[Path]:
    """Packages and single modules of the standard library, in path order."""
    roots = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).iterdir()):
        usable = path.suffix == ".py" or (path / "__init__.py").is_file()
        if usable and path.stem not in SKIPPED and not path.stem.startswith("_sysconfigdata"):
            roots.append(path)
    return roots


def _roots(package: str) -> list[Path]:
    """The directories, or the file, of an installed top-level package; empty if it is not installed."""
    spec = find_spec(package)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(location) for location in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


@dataclass(frozen=True, kw_only=True)
class PackageText(TextSource):
    """Prose found in every installation: package descriptions and the topic pages of pydoc."""

    kind: str = "package_text"

    def fingerprint(self) -> list[str]:
        # The names of these directories hold name and version; parsing every METADATA would take half a second.
        return [sys.version, *sorted({path.name for entry in sys.path for path in Path(entry).glob("*.dist-info")})]

    def documents(self) -> Iterator[Document]:
        metadata = {each.name: each.metadata for each in importlib.metadata.distributions()}
        described = {name: each["Description"] for name, each in metadata.items() if "Description" in each}
        texts = [(f"description/{name}", described[name]) for name in sorted(described) if name != "lccp-sim"]
        topics = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
        if topics.is_file():
            for node in ast.parse(topics.read_text(encoding="utf-8")).body:
                value = getattr(node, "value", None)
                if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(value, ast.Dict):
                    pages = ast.literal_eval(value)
                    texts += [(f"topic/{name}", pages[name]) for name in sorted(pages)]
        seen: set[str] = set()
        for name, text in texts:
            if text_hash(text) not in seen:
                seen.add(text_hash(text))
                yield Document(text, name, text_hash(text))


SOURCES: dict[str, type] = {
    "python_code": PythonCode,
    "package_text": PackageText,
    "package_archive": PackageArchive,
    "text_files": TextFiles,
    "hub": Hub,
    "synthetic": Synthetic,
}


def parse_sources(data: Mapping[str, Any]) -> dict[str, Any]:
    """Build the sources of plain `data`, by name. A source without a kind is most likely a mistyped name.

    Raises ConfigError with one line per wrong key or value.
    """
    sources = data.get("sources", {})
    refuse(not isinstance(sources, Mapping), "data.sources", sources, "must be a group of keys")
    problems: list[str] = []
    found: dict[str, Any] = {}
    for name, settings in sources.items():
        others = [other for other in sources if other != name]
        try:
            found[name] = parse_kind(SOURCES, settings, f"data.sources.{name}")
        except ConfigError as error:
            kindless = isinstance(settings, Mapping) and "kind" not in settings
            *first, last = error.problems
            problems += [*first, last + (nearest(str(name), others) if kindless else "")]
    if problems:
        raise ConfigError(*problems)
    return found
