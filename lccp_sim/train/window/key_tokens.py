"""References: what the first window fixes for all later ones, such as the key tokens. Found once, kept, and reused.

A reference is in the run directory, `reference/<monitor>.npz`, not in the checkpoints: each would repeat it, and
another trainer's checkpoints have no place for it. It is written before the checkpoint of the first window, so a
resumed run finds it, and a run that starts over overwrites it.
"""

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lccp_sim.analysis.run import tokenizer_rules
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tokenizer import tokenizer_hash
from lccp_sim.errors import ConfigError
from lccp_sim.files import write_atomic
from lccp_sim.models.foreign.hf import is_checkpoint, load_checkpoint
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.monitor import FIRST_WINDOW, Monitor
from lccp_sim.monitors.observing import evaluating
from lccp_sim.train.parallel.ranks import ALONE, Ranks
from lccp_sim.train.saved.checkpoint import read_checkpoint, resolve
from lccp_sim.train.saved.foreign import read_vocabulary
from lccp_sim.train.saved.init import load_transformer


def read_reference(store: Path, name: str, monitor: Monitor, items: Any) -> Any | None:
    """The monitor's items with their reference in `store`; None if there is none, or it belongs to other items.

    Raises ConfigError if the file is damaged.
    """
    path = store / f"{name}.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            kept = dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path}: damaged ({error}); restore it, or move the run directory away to start over"
        ) from None
    return monitor.refer(items, kept)


def find_reference(
    store: Path | None,
    name: str,
    monitor: Monitor,
    items: Any,
    model: LanguageModel,
    corpus: Corpus,
    ranks: Ranks = ALONE,
) -> Any:
    """Find a monitor's reference by `model` or the checkpoint `reference_from`, keep it, and return the items with it.

    Only rank 0 reads and runs the checkpoint. Raises ConfigError if there is none, or its tokenizer is not that of the
    corpus.
    """
    key, source = _source(name, monitor)
    weight = next(model.parameters())

    def of_another() -> dict[str, np.ndarray]:
        other = load_language_model(source, corpus, key, weight.dtype, weight.device)
        with evaluating(other, torch.is_autocast_enabled(model.device.type)):
            return monitor.reference(other, items)

    if source == FIRST_WINDOW:
        kept = monitor.reference(model, items)
    else:
        kept = ranks.gather(lambda: {} if ranks.rank else of_another())[0]
    if store is not None and ranks.rank == 0:
        write_atomic(store / f"{name}.npz", _packed(kept))
    return monitor.refer(items, kept)


def check_sources(monitors: Mapping[str, Monitor], names: Iterable[str]) -> None:
    """Raise ConfigError if a reference of these monitors shall come from a checkpoint that does not exist."""
    for name in names:
        key, source = _source(name, monitors[name])
        if source != FIRST_WINDOW:
            _locate(source, key)


def _source(name: str, monitor: Monitor) -> tuple[str, str]:
    """The dotted key of `reference_from`, and its value."""
    assert monitor.reference_from is not None
    key, source = monitor.reference_from
    return f"monitors.{name}.{key}", source


def _locate(name: str, key: str) -> Path:
    """The path of a checkpoint: a folder or file of `transformers`, or anything that `run.init_from` may name."""
    path = Path(name).expanduser()
    return path if is_checkpoint(path) else resolve(name, key)


def load_language_model(name: str, corpus: Corpus, key: str, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    """The model of an lccp-sim checkpoint (named as in `run.init_from`) or of `transformers`.

    Raises ConfigError, naming `key`, if there is none, or its tokenizer is not that of the corpus.
    """
    path = _locate(name, key)
    if is_checkpoint(path):
        _check(path, key, tokenizer_rules(read_vocabulary(path).text) == tokenizer_rules(corpus.tokenizer.to_str()))
        return load_checkpoint(path, dtype, str(device))
    content = read_checkpoint(path)
    _check(path, key, content["lccp"]["tokenizer"] == tokenizer_hash(corpus.tokenizer))
    return load_transformer(path, content).to(device, dtype)


def _check(path: Path, key: str, same: bool) -> None:
    if not same:
        raise ConfigError(
            f"{key}: {path} has another tokenizer than the corpus, so its tokens differ; name another one"
        )


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An npz file; the same arrays give the same bytes."""
    file = io.BytesIO()
    np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # mypy fears that a name could be `allow_pickle`
    return file.getvalue()
