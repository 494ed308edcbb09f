"""What a run starts from: fresh weights, or a checkpoint that `init_from` names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lccp_sim.config import Config, ConfigError, ModelConfig
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tokenizer import tokenizer_hash
from lccp_sim.models.transformer import Transformer
from lccp_sim.train.checkpoint import read_checkpoint, resolve, weights_hash
from lccp_sim.train.load import load_model


@dataclass(frozen=True)
class Start:
    """A checkpoint's path and content, the hash of its weights, the tokens that they have seen; or nothing of it."""

    path: Path | None = None
    content: dict[str, Any] | None = None
    hash: str | None = None
    tokens: int = 0

    @staticmethod
    def of(config: Config) -> "Start":
        """The start of a run. Raises ConfigError where `init_from` names nothing usable or another shape."""
        if config.run.init_from is None:
            return Start()
        path = resolve(config.run.init_from)
        content = read_checkpoint(path)
        facts = content["lccp"]
        _check_shapes(load_model(facts["config"]), config.model, path)
        return Start(path, content, weights_hash(content), facts["tokens"] + facts["tokens_before"])

    @property
    def model(self) -> ModelConfig:
        """The model config of the checkpoint, RoPE included."""
        assert self.content is not None
        return load_model(self.content["lccp"]["config"])

    def check_tokenizer(self, corpus: Corpus) -> None:
        """None, or ConfigError where the corpus is tokenized otherwise than the checkpoint was trained."""
        if self.content is not None and self.content["lccp"]["tokenizer"] != tokenizer_hash(corpus.tokenizer):
            raise ConfigError(
                f"data.tokenizer: is not the tokenizer of {self.path} ({self.content['lccp']['vocab_size']} tokens "
                f"there, {corpus.vocab_size} here); remove data.tokenizer.path, or name that run's tokenizer.json"
            )


def _check_shapes(base: ModelConfig, new: ModelConfig, path: Path) -> None:
    old, now = base.shapes(), new.shapes()
    differ = [f"model.{key} ({old[key]!r} there, {now[key]!r} here)" for key in old if old[key] != now[key]]
    if differ:
        raise ConfigError(f"run.init_from: {path} has another shape: {', '.join(differ)}")


def tokenizer_for(config: Config, start: Start, directory: Path | None) -> Path | None:
    """The tokenizer.json to use instead of training one: the run's own, or its base's."""
    if directory is not None and (own := directory / "tokenizer.json").exists():
        return own
    if start.path is None or config.data.tokenizer.kind == "file":
        return None
    base = start.path.parent.parent / "tokenizer.json"
    if not base.exists():
        raise ConfigError(
            f"{base}: missing; a chained run needs its base's tokenizer (or set data.tokenizer.kind=file)"
        )
    return base


def load_transformer(path: Path, content: dict[str, Any]) -> Transformer:
    """The model of a checkpoint of ours, by its own config, RoPE included."""
    model = Transformer(load_model(content["lccp"]["config"]), content["lccp"]["vocab_size"])
    load_weights(model, Start(path, content))
    return model


def load_weights(model: Transformer, start: Start) -> None:
    """None, once the model holds the weights of the start. ConfigError where they are of another architecture."""
    assert start.content is not None
    prefix = "model."
    state = {k.removeprefix(prefix): v for k, v in start.content["state_dict"].items() if k.startswith(prefix)}
    mine = {key: value.shape for key, value in model.state_dict().items()}
    theirs = {key: value.shape for key, value in state.items()}
    differ = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    if differ:
        shapes = [None if each is None else tuple(each) for each in (theirs.get(differ[0]), mine.get(differ[0]))]
        raise ConfigError(
            f"{start.path}: weights of another architecture: {differ[0]} is {shapes[0]} there and {shapes[1]} here"
            f"{f', and {len(differ) - 1} more differ' if differ[1:] else ''}"
        )
    model.load_state_dict(state)
