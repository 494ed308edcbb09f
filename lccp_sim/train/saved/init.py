"""The start of a run: fresh weights, or a checkpoint of lccp-sim or Hugging Face that `init_from` names."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lccp_sim.config import Config, Effect, ModelConfig, flatten, keys_with
from lccp_sim.configure.load import load_model
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tokenizer import parse_tokenizer, tokenizer_hash
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.foreign import hf
from lccp_sim.models.foreign.architectures import function_of
from lccp_sim.models.transformer import Transformer
from lccp_sim.progress import Tell, silent
from lccp_sim.train.saved.checkpoint import read_checkpoint, resolve, weights_hash
from lccp_sim.train.saved.foreign import read_foreign
from lccp_sim.train.saved.sharded import Tensors, unsharded
from lccp_sim.train.saved.weights_file import PREFIX, SUFFIX, read_weights_file


@dataclass(frozen=True)
class Start:
    """A checkpoint's path, content, hash of the weights, and tokens that they were trained on; or none of these."""

    path: Path | None = None
    content: dict[str, Any] | None = None
    hash: str | None = None
    tokens: int = 0

    @staticmethod
    def of(config: Config, tell: Tell = silent) -> "Start":
        """The start of a run. Raises ConfigError if `init_from` names nothing usable, or another model.

        `tell` gets the progress of reading.
        """
        if config.run.init_from is None:
            return Start()
        path = resolve(config.run.init_from)
        if hf.is_checkpoint(path):
            content = read_foreign(path, torch.float32, lambda base, n: _check_same(base, n, config.model, path), tell)
        else:
            tell(f"reading {path.name}", 0.0)
            content = read_weights_file(path) if path.suffix == SUFFIX else read_checkpoint(path)
            _check_same(load_model(content["lccp"]["config"]), content["lccp"]["vocab_size"], config.model, path)
        facts = content["lccp"]
        tell(f"hashing the weights of {path.name}", 0.0)
        return Start(path, content, weights_hash(content), facts["tokens"] + facts["tokens_before"])

    @property
    def model(self) -> ModelConfig:
        """The model config of the checkpoint, RoPE included."""
        assert self.content is not None
        return load_model(self.content["lccp"]["config"])

    @property
    def rows(self) -> int | None:
        """Rows of the embedding; None for fresh weights. The tokenizer may have more, which no text uses."""
        return self.content["lccp"]["vocab_size"] if self.content else None

    @property
    def context_tokens(self) -> int | None:
        """The row length with which the checkpoint was trained; None for fresh weights, or if it is not stated."""
        return self.content["lccp"]["config"].get("run", {}).get("context_tokens") if self.content else None

    @property
    def notes(self) -> list[str]:
        """Notes for the user about a checkpoint of Hugging Face, one line each."""
        return self.content.get("notes", []) if self.content else []

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that a run's checkpoints inherit from its start: the other contents of an imported model."""
        source = self.content["lccp"].get("source") if self.content else None
        return {"source": source} if source else {}

    def moments(self, config: Config) -> dict[int, Any] | None:
        """The optimizer's state of each weight, in the order of its groups; None if the run begins with a fresh one.

        Raises ConfigError if the state shall be carried over, but there is none or the weights are sharded.
        """
        if config.run.init_optimizer == "fresh":
            return None
        refuse(self.content is None, "run.init_optimizer", "carried", "needs run.init_from; name a run, or use fresh")
        assert self.content is not None
        refuse(config.run.shard, "run.init_optimizer", "carried", "needs run.shard=false; use fresh, or one device")
        states = self.content.get("optimizer_states")
        rule = f"{self.path} holds no optimizer state; use fresh, or name a checkpoint that an lccp-sim run wrote"
        if not states:
            raise ConfigError(f"run.init_optimizer='carried': {rule}")
        return unsharded(states[0]["state"])

    def complete(self, config: Config) -> Config:
        """The config with the base's token that begins a document, if only the base names one."""
        tokenizer = config.data.tokenizer
        base = self.content["lccp"]["config"]["data"]["tokenizer"].get("bos_token") if self.content else None
        if base is None or tokenizer.bos_token or tokenizer.kind == "file":
            return config
        tokenizer = dataclasses.replace(tokenizer, bos_token=base)
        return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer))

    def check_tokenizer(self, corpus: Corpus) -> None:
        """Raise ConfigError if the tokenizers of the corpus and the checkpoint differ."""
        if self.content is not None and self.content["lccp"]["tokenizer"] != tokenizer_hash(corpus.tokenizer):
            raise ConfigError(
                f"data.tokenizer: is not the tokenizer of {self.path} ({self.content['lccp']['vocab_size']} tokens "
                f"there, {corpus.vocab_size} here); remove data.tokenizer.path, or name that run's tokenizer.json"
            )


def _check_same(base: ModelConfig, rows: int, new: ModelConfig, path: Path) -> None:
    """Raise ConfigError, naming the keys, if two models differ in more than RoPE and windows."""
    old, now = function_of(base), flatten(dataclasses.asdict(new)) | function_of(new)
    old["vocab_size"], now["vocab_size"] = rows, new.vocab_size or rows
    may = keys_with(ModelConfig, "", Effect.REACH)
    differ = [key for key in old if old[key] != now[key] and key not in may]
    if differ:
        shown = ", ".join(f"model.{key} ({old[key]!r} there, {now[key]!r} here)" for key in differ)
        values = " ".join(f"model.{key}={'null' if old[key] is None else old[key]}" for key in differ)
        raise ConfigError(f"run.init_from: {path} has another shape: {shown}; set {values}")


def tokenizer_for(config: Config, start: Start, directory: Path | None) -> Any:
    """The tokenizer to use, or its path: the run's own, or its base's. None: train the one of the config."""
    if directory is not None and (own := directory / "tokenizer.json").exists():
        return own
    if start.path is None or start.content is None or config.data.tokenizer.kind == "file":
        return None
    if "tokenizer.json" in start.content:
        return parse_tokenizer(start.content["tokenizer.json"])
    base = start.path.parent.parent / "tokenizer.json"
    if not base.exists():
        raise ConfigError(
            f"{base}: missing; a chained run needs its base's tokenizer (or set data.tokenizer.kind=file)"
        )
    return base


def load_transformer(path: Path, content: dict[str, Any]) -> Transformer:
    """The model of an lccp-sim checkpoint, by its own config, including RoPE."""
    return transformer_of(load_model(content["lccp"]["config"]), Start(path, content))


def transformer_of(config: ModelConfig, start: Start) -> Transformer:
    """A model in fp32 that takes over the weights of the start, so that none is held twice.

    Raises ConfigError if they belong to another architecture.
    """
    model = empty(config, start)
    model.load_state_dict(dict(weights_of(start)), assign=True)
    return model


def weights_of(start: Start) -> Iterator[tuple[str, Tensor]]:
    """Name and full value, in fp32, of each weight of the start, read one at a time from a folder."""
    assert start.content is not None
    state = start.content["state_dict"]
    return ((key.removeprefix(PREFIX), state[key].float()) for key in state if key.startswith(PREFIX))


def empty(config: ModelConfig, start: Start) -> Transformer:
    """A model on the meta device. Raises ConfigError if the weights of the start belong to another architecture."""
    assert start.content is not None
    with torch.device("meta"):
        model = Transformer(config, start.content["lccp"]["vocab_size"])
    state = start.content["state_dict"]
    pieces = state.pieces if isinstance(state, Tensors) else state
    mine = {key: value.shape for key, value in model.state_dict().items()}
    theirs = {key.removeprefix(PREFIX): value.shape for key, value in pieces.items() if key.startswith(PREFIX)}
    differ = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    if differ:
        shapes = [None if each is None else tuple(each) for each in (theirs.get(differ[0]), mine.get(differ[0]))]
        raise ConfigError(
            f"{start.path}: weights of another architecture: {differ[0]} is {shapes[0]} there and {shapes[1]} here"
            f"{f', and {len(differ) - 1} more differ' if differ[1:] else ''}"
        )
    return model
