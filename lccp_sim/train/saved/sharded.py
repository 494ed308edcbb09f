"""Checkpoints of sharded weights: a torch.distributed.checkpoint folder to which each rank writes its own part.

Everything that is not sharded (counters, the tree itself) is in `rest.pt`, with the name of a piece instead of each
sharded tensor. Design note: the format's index, `.metadata`, is a pickle. It is read by an unpickler that admits only
the format's own classes, so a foreign pickle is refused before any of its code runs.
"""

import dataclasses
import io
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.tensor import DTensor

INDEX, REST, PIECE = ".metadata", "rest.pt", "piece"
OURS = "torch.distributed.checkpoint."
ADMITTED = {("torch", "Size"), ("torch.serialization", "_get_layout"), (f"{OURS}filesystem", "_StorageInfo")}
ADMITTED |= {(f"{OURS}metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")}
ADMITTED |= {(f"{OURS}metadata", name) for name in ("TensorStorageMetadata", "ChunkStorageMetadata")}
ADMITTED |= {(f"{OURS}metadata", "_MEM_FORMAT_ENCODING"), ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")}
ADMITTED |= {(f"{OURS}metadata", "BytesStorageMetadata")}  # of other writers; never read
ADMITTED |= {("torch", name) for name in ("float32", "float64", "bfloat16", "float16", "int64", "int32", "bool")}


@dataclasses.dataclass(frozen=True)
class ShardPiece:
    """A tensor that is stored in a folder as boxes; nothing of it is in memory."""

    path: Path
    index: Metadata
    name: str

    @property
    def shape(self) -> torch.Size:
        """The shape of the full tensor."""
        return self.index.state_dict_metadata[self.name].size  # type: ignore[union-attr]

    def read(self, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """Read the box of these sizes at these offsets from the stored boxes that overlap it."""
        stored: Any = self.index.state_dict_metadata[self.name]
        out = torch.empty(tuple(sizes), dtype=stored.properties.dtype, device="cpu")
        for chunk in stored.chunks:
            low = [max(mine, its) for mine, its in zip(offsets, chunk.offsets, strict=True)]
            ends = zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True)
            high = [min(mine + size, its + length) for mine, size, its, length in ends]
            if any(start >= stop for start, stop in zip(low, high, strict=True)):
                continue
            place = self.index.storage_data[MetadataIndex(self.name, chunk.offsets)]
            with open(self.path / place.relative_path, "rb") as file:
                file.seek(place.offset)
                held = torch.load(io.BytesIO(file.read(place.length)), map_location="cpu", weights_only=True)
            out[_box(low, high, offsets)] = held[_box(low, high, chunk.offsets)]
        return out

    def whole(self) -> Tensor:
        """Read the full tensor."""
        return self.read([0] * len(self.shape), self.shape)


def _box(low: Sequence[int], high: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))


class Tensors(Mapping[str, Tensor]):
    """Full tensors by name. Those in a folder are read on access, and not kept."""

    def __init__(self, pieces: Mapping[str, Tensor | ShardPiece]):
        self.pieces = pieces

    def __getitem__(self, name: str) -> Tensor:
        found = self.pieces[name]
        return found.whole() if isinstance(found, ShardPiece) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


def write_parts(content: Mapping[str, Any], folder: Path, rank: int, group: Any) -> list[str]:
    """Write this rank's files and return their names. Every rank of `group` must call it. OSError is raised on all."""
    cut: dict[str, DTensor] = {}
    rest = _split(content, "", cut)
    try:
        dcp.save(cut, storage_writer=dcp.FileSystemWriter(str(folder)), process_group=group)
    except CheckpointException as error:  # the error of one rank, raised on all; it is not an Exception
        raise OSError("; ".join(str(cause[0]) for cause in error.failures.values())) from error
    if rank == 0:
        with open(folder / REST, "wb") as file:
            torch.save(rest, file)
            file.flush()
            os.fsync(file.fileno())
    own = sorted(path.name for path in folder.glob(f"__{rank}_*.distcp"))
    return [*own, INDEX, REST] if rank == 0 else own


def read_parts(folder: Path, files: set[str]) -> dict[str, Any]:
    """The content of a folder whose `files` were verified, with a ShardPiece instead of each sharded tensor.

    Raises pickle.UnpicklingError, naming the class, if the index holds a class that is not part of the format.
    """
    index = read_index(folder)
    if not {each.relative_path for each in index.storage_data.values()} <= files:
        raise pickle.UnpicklingError(f"{INDEX} is not an index of this folder")
    rest = torch.load(folder / REST, map_location="cpu", weights_only=True)

    def joined(tree: Any) -> Any:
        if isinstance(tree, dict):
            return (
                ShardPiece(folder, index, tree[PIECE])
                if tree.keys() == {PIECE}
                else {k: joined(v) for k, v in tree.items()}
            )
        return [joined(each) for each in tree] if isinstance(tree, list) else tree

    return joined(rest)


def read_index(folder: Path) -> Any:
    """The Metadata of a folder. Raises OSError, or pickle.UnpicklingError for anything else or foreign classes."""
    with open(folder / INDEX, "rb") as file:
        index = _Unpickler(file).load()
    if not isinstance(index, Metadata):
        raise pickle.UnpicklingError(f"{INDEX} is not an index of this folder")
    return index


def pieces_of(folder: Path) -> dict[str, ShardPiece]:
    """Every tensor of a folder in this format, whoever wrote it, by name; none is read yet. Raises as `read_index`.

    Raises OSError if a file that the index names is missing, or shorter than the index says.
    """
    index = read_index(folder)
    for place in index.storage_data.values():
        file = folder / place.relative_path
        if (size := file.stat().st_size) < place.offset + place.length:
            raise OSError(f"{file} has {size} bytes, but {INDEX} names {place.offset + place.length}")
    kept = index.state_dict_metadata.items()
    return {name: ShardPiece(folder, index, name) for name, each in kept if isinstance(each, TensorStorageMetadata)}


def unsharded(tree: Any) -> Any:
    """The same tree with every piece read."""
    if isinstance(tree, Tensors):
        tree = dict(tree.pieces)
    if isinstance(tree, dict):
        return {key: unsharded(each) for key, each in tree.items()}
    if isinstance(tree, list):
        return [unsharded(each) for each in tree]
    return tree.whole() if isinstance(tree, ShardPiece) else tree


def _split(tree: Any, name: str, cut: dict[str, DTensor]) -> Any:
    """The tree with names instead of its sharded tensors, which are added to `cut`."""
    if isinstance(tree, DTensor):
        cut[name] = tree
        return {PIECE: name}
    if isinstance(tree, Mapping):
        return {key: _split(each, f"{name}/{key}" if name else str(key), cut) for key, each in tree.items()}
    if isinstance(tree, list):
        return [_split(each, f"{name}/{index}", cut) for index, each in enumerate(tree)]
    return tree


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"{INDEX} holds {module}.{name}, which no index of a checkpoint needs")
        return super().find_class(module, name)
