"""The means to measure another trainer's checkpoints: its tokenizer, held-out text in its tokens, the config.

measured.yaml and tokenizer.json are stored next to the records, so that later measurements can be checked against them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lccp_sim.analysis.run import MEASURED
from lccp_sim.config import FREE, Config, flatten
from lccp_sim.configure.load import config_keys, plain_config
from lccp_sim.data.pools import Corpus, open_corpus
from lccp_sim.data.tokenizer import parse_tokenizer, read_tokenizer
from lccp_sim.errors import ConfigError
from lccp_sim.files import write_atomic
from lccp_sim.progress import Tell, silent
from lccp_sim.train.saved.foreign import read_vocabulary
from lccp_sim.train.saved.run_directory import differences


def vocabulary_of(tokenizer: Any, bos_token: str | None = None) -> tuple[str, str | None]:
    """The text of a tokenizer.json and the name of its BOS token.

    `tokenizer` is a tokenizer.json, a folder that holds one, or a fast tokenizer of `transformers`. Raises ConfigError
    if it is none of these.
    """
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer)
        if path.is_dir():
            found = read_vocabulary(path)
            return found.text, bos_token or found.bos
        return read_tokenizer(path).to_str(), bos_token
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        what = "none was given" if tokenizer is None else f"a {type(tokenizer).__name__} has no tokenizer.json form"
        raise ConfigError(f"tokenizer: {what}; name a tokenizer.json, or a folder that holds one")
    return backend.to_str(), bos_token or tokenizer.bos_token


def corpus_for(config: Config, text: str | Path, bos: str | None, tell: Tell = silent) -> Corpus:
    """The held-out text of a config in the tokens of a tokenizer.json. Its BOS is used unless the config names one."""
    tokenizer = text if isinstance(text, Path) else parse_tokenizer(text)
    data = config.data
    if bos and not data.tokenizer.bos_token:
        data = replace(data, tokenizer=replace(data.tokenizer, bos_token=bos))
    return open_corpus(data, config.run.context_tokens, config.seed, tokenizer, tell)


def measured_text(config: Config) -> str:
    """The text of measured.yaml."""
    return str(yaml.safe_dump(plain_config(config), sort_keys=False, allow_unicode=True))


def write_measured(directory: Path, config: Config, corpus: Corpus) -> None:
    """Write the settings of the measurement: measured.yaml (the config) and tokenizer.json."""
    write_atomic(directory / MEASURED, measured_text(config))
    write_atomic(directory / "tokenizer.json", corpus.tokenizer.to_str())


def check_measured(directory: Path, config: Config) -> None:
    """Raise ConfigError, naming the keys, if the records in a directory were begun with another config."""
    path = directory / MEASURED
    if not path.exists():
        return
    try:
        old = flatten(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
        raise ConfigError(f"{path}: damaged (no YAML mapping); restore it, or name another directory") from None
    if shown := differences(old, flatten(plain_config(config)), config_keys(*FREE)):
        remedy = "give the same, or name another directory"
        raise ConfigError(f"{directory}: was begun with other settings: {shown}; {remedy}")
