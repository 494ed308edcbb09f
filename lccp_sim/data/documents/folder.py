"""The contents of a folder: text files, data sets written by `save_to_disk`, and other files with the reason."""

from collections.abc import Iterator
from pathlib import Path

from lccp_sim.data.documents.document import LeftOut

FILE_KINDS = ("jsonl", "ndjson", "json", "parquet", "txt", "md")
PACKED = ("gz", "zst")
LICENCES = ("license", "licence", "copying", "notice", "citation")
ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def kind_of(path: Path) -> tuple[str, str]:
    """The kind of a file and its compression, from its suffix; "" if the kind is not supported."""
    parts = path.name.lower().split(".")
    packed = parts.pop() if len(parts) > 2 and parts[-1] in PACKED else ""
    return (parts[-1] if len(parts) > 1 and parts[-1] in FILE_KINDS else ""), packed


def is_saved(path: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote this folder."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def walk(folder: Path, top: bool = True) -> Iterator[Path | LeftOut]:
    """The files and saved data sets below a folder in the order of their names, and the left-out items."""
    for path in [folder] if is_saved(folder) else sorted(folder.iterdir()):
        hidden = path.name.startswith((".", "__")) and path != folder
        if hidden and path.is_dir():
            yield from (LeftOut("hidden", str(each)) for each in sorted(path.rglob("*")) if each.is_file())
        elif is_saved(path):
            yield path
        elif path.is_dir():
            yield from walk(path, top=False)
        elif path.is_file():
            why = "hidden" if hidden else reason(path, top)
            yield LeftOut(why, str(path)) if why else path
        else:
            yield LeftOut("broken link" if path.is_symlink() else "no file", str(path))


def reason(path: Path, top: bool) -> str:
    """The reason for leaving out a file that was not named directly, or "". `top`: it is in the named folder itself."""
    kind, _ = kind_of(path)
    stem = path.name.lower().split(".")[0]
    if stem in LICENCES and kind in ("", "txt", "md"):
        return "licence"
    if stem == "readme" and kind in ("", "txt", "md") and (top or _is_card(path)):
        return "data card"
    if path.name in ABOUT:
        return "about the data set"
    return "" if kind else "kind not read"


def _is_card(path: Path) -> bool:
    """Whether a page begins like a data set card."""
    with open(path, "rb") as file:
        return file.read(8).removeprefix(b"\xef\xbb\xbf").startswith(b"---")
