"""The run directory: its name, the lock on it, and the check that it holds the same run.

The name ends in a hash of the keys that change the numbers, so another seed or learning rate is another directory, and
the same command finds its own unfinished or finished run.
"""

import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lccp_sim.config import FREE, Config, Effect, flatten, short_hash
from lccp_sim.configure.load import config_keys, load_config, plain_config, unequal
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.files import write_atomic
from lccp_sim.sums import change_sums, check_sums

CONFIG, CORPUS, DONE, FAILED, LOCK = "config.yaml", "corpus.json", "DONE", "FAILED", ".lock"


def run_directory(config: Config, init_hash: str | None) -> Path:
    """`<root>/<name>-s<seed>-<8 hex>`."""
    plain, unnamed = plain_config(config), config_keys(*FREE, Effect.FIXED)

    def named(section: str) -> dict[str, Any]:
        return {key: value for key, value in plain[section].items() if f"{section}.{key}" not in unnamed}

    data = named("data")
    if data["order_seed"] is None:  # as before this key existed
        del data["order_seed"]
    length = None if config.optim.schedule == "constant" else config.run.tokens
    parts = [plain["seed"], named("model"), data, named("optim"), named("run"), init_hash, length]
    if config.run.stopping is not None and config.run.stopping.action == "decay":
        parts.append(plain["run"]["stopping"])
    if config.run.init_optimizer != "fresh":
        parts.append(config.run.init_optimizer)
    if "objective" in plain:
        parts.append(plain["objective"])
    return Path(config.run.root).expanduser() / f"{config.run.name}-s{config.seed}-{short_hash(parts)}"


@contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Within the context, this process owns the directory. Raises ConfigError if another live process does.

    Partial files of killed writers are removed at the start, and a directory in which nothing was begun at the end.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{directory}: in use by a live process; wait for it, or change run.name") from None
    try:
        for path in sorted(directory.rglob(".*.tmp")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        yield
    finally:
        if all(path.name == LOCK for path in directory.iterdir()):
            (directory / LOCK).unlink(missing_ok=True)
            directory.rmdir()
        lock.release()


def read_config(directory: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a run directory, with changed keys (`monitors.needle.items=100`).

    Raises ConfigError if it is not a run directory, or its config.yaml is damaged or not lccp-sim's.
    """
    plain = _read_plain(directory)
    for override in overrides:
        _set(plain, override)
    if isinstance(plain.get("run"), dict):
        plain["run"].pop("tokens_before", None)
    try:
        config = load_config(plain)
    except ConfigError as error:
        why = "; ".join(error.problems)
        raise ConfigError(f"{directory / CONFIG}: not a config of this version ({why})") from None
    check_sums(directory, CONFIG, "tokenizer.json")
    return config


def _set(plain: dict[str, Any], override: str) -> None:
    """Set a dotted key to a YAML value. Only monitors can be changed: the run itself is fixed."""
    key, equals, value = override.partition("=")
    first, *path = key.split(".")
    if not equals or first != "monitors" or not path:
        raise ConfigError(f"{override!r}: measuring a run can only change monitors.KEY=VALUE")
    branch = plain
    for part in (first, *path[:-1]):
        branch = branch.setdefault(part, {}) if isinstance(branch, dict) else {}
    try:
        branch[path[-1]] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{override!r}: the value cannot be read as YAML") from None


def _read_plain(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.is_file():
        raise ConfigError(f"{directory}: not a run directory (it has no {CONFIG})")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        plain = None
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}: damaged (no YAML mapping); restore it, or move the directory away to start over")
    return plain


def check_same(directory: Path, config: Config) -> None:
    """Raise ConfigError, naming the keys, if an existing directory's config differs."""
    if not (directory / CONFIG).exists():
        return
    old, new = flatten(_read_plain(directory)), flatten(plain_config(config))
    if shown := differences(old, new, config_keys(*FREE) | {"run.tokens_before"}):
        raise ConfigError(f"{directory}: holds a run with other settings: {shown}; change run.name or run.root")
    planned = old.get("run.tokens")
    fewer = finished_tokens(directory) is None and isinstance(planned, int) and config.run.tokens < planned
    refuse(
        fewer,
        "run.tokens",
        config.run.tokens,
        f"fewer than the {planned} that {directory} was begun with; it can only grow",
    )


def differences(old: dict[str, Any], new: dict[str, Any], but: Collection[str]) -> str:
    """The keys in which two flat configs differ, with their values, except `but`; "" if there are none."""
    differ = unequal(old, new, but)
    shown = ", ".join(f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)" for key in differ[:5])
    return shown + (f" and {len(differ) - 5} more" if len(differ) > 5 else "")


def write_facts(directory: Path, config: Config, tokens_before: int, corpus: dict[str, Any], tokenizer: str) -> None:
    """Write config.yaml (with the training tokens of earlier runs), tokenizer.json and corpus.json.

    Raises ConfigError if the run began with other text: a run resumed on it would match neither.
    """
    path = directory / CORPUS
    began = _value(path, "hash") if path.exists() else corpus["hash"]
    if began != corpus["hash"]:
        raise ConfigError(
            f"{directory}: the text of data.sources has changed since the run began (corpus {began[:12]} then, "
            f"{corpus['hash'][:12]} now: other files or package versions?); restore it, or change run.name"
        )
    plain = plain_config(config)
    plain["run"]["tokens_before"] = tokens_before
    facts = {
        CONFIG: yaml.safe_dump(plain, sort_keys=False, allow_unicode=True),
        "tokenizer.json": tokenizer,
        CORPUS: json.dumps(corpus, indent=1, default=float) + "\n",
    }
    change_sums(directory, gone=facts)
    for name, text in facts.items():
        write_atomic(directory / name, text)
    change_sums(directory, known=dict.fromkeys(facts))


def finished_tokens(directory: Path) -> int | None:
    """The tokens of a finished run, or None."""
    path = directory / DONE
    return _value(path, "tokens") if path.exists() else None


def stopped_by(directory: Path) -> str | None:
    """The action of run.stopping that ended a finished run before its planned tokens, or None."""
    path = directory / DONE
    return _value(path, "stopped_by") if path.exists() and '"stopped_by"' in path.read_text() else None


def measured_of(directory: Path) -> str | None:
    """The name of the checkpoint whose records a directory holds in full, or None."""
    path = directory / DONE
    return _value(path, "of") if path.exists() and '"of"' in path.read_text() else None


def write_done(directory: Path, tokens: int, by: str | None = None, of: str | None = None) -> None:
    """Write DONE: the tokens of the finished run, and their hash.

    `by`: the action that ended it early. `of`: what names the checkpoints that were measured.
    """
    said = {"tokens": tokens} | ({} if by is None else {"stopped_by": by}) | ({} if of is None else {"of": of})
    write_atomic(directory / DONE, json.dumps(said | {"check": short_hash(said)}) + "\n")


def _value(path: Path, key: str) -> Any:
    """The value of a key in one of our JSON files, checked against the file's own hash, if any."""
    try:
        content = json.loads(path.read_text())
        told = content.pop("check", None)
        if told not in (None, short_hash(content)):
            raise ValueError
        return content[key]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(f"{path}: damaged (no JSON object with {key!r}); put it back, or remove it") from None
