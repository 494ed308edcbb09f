"""The run directory: its name, who may write to it, and whether it holds the same run.

The name ends in a hash of what changes the numbers, so another seed or learning rate is another directory, and the same
command finds its own unfinished or finished run.
"""

from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from lccp_sim.config import Config, ConfigError, flatten, short_hash
from lccp_sim.records import write_atomic
from lccp_sim.train.load import plain_config

CONFIG, DONE = "config.yaml", "DONE"
# Where a run lies and how it is shown; `tokens` may grow. None of it changes a number that is already written.
FREE = {"run.root", "run.accelerator", "run.threads", "run.loggers", "run.micro_batch_tokens", "run.tokens", "run.checkpoint_every_steps"}
FREE |= {"run.init_from", "data.cache"}


def run_directory(config: Config, init_hash: str | None) -> Path:
    """`<root>/<name>-s<seed>-<8 hex>`."""
    plain = plain_config(config)
    batch = {key: plain["run"][key] for key in ("context_tokens", "batch_tokens", "precision")}
    free = config.optim.schedule == "constant"
    length = None if free else config.run.tokens
    data = {key: value for key, value in plain["data"].items() if key != "cache"}
    parts = [plain["seed"], plain["model"], data, plain["optim"], batch, init_hash, length]
    return Path(config.run.root).expanduser() / f"{config.run.name}-s{config.seed}-{short_hash(parts)}"


def claim(directory: Path) -> FileLock:
    """A held lock on the directory; release it at the end. Raises ConfigError where a live process holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{directory}: in use by a live process; wait for it, or change run.name") from None
    return lock


def check_same(directory: Path, config: Config) -> None:
    """None, or ConfigError naming the keys in which an existing directory's config differs."""
    path = directory / CONFIG
    if not path.exists():
        return
    old, new = flatten(yaml.safe_load(path.read_text())), flatten(plain_config(config))
    differ = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and not _free(key))
    if differ:
        shown = ", ".join(f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)" for key in differ[:5])
        raise ConfigError(f"{directory}: holds a run with other settings: {shown}; change run.name or run.root")


def write_config(directory: Path, config: Config, tokens_before: int) -> None:
    """None, once config.yaml holds the resolved config and the training tokens of the runs before."""
    plain = plain_config(config)
    plain["run"]["tokens_before"] = tokens_before
    write_atomic(directory / CONFIG, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def _free(key: str) -> bool:
    return key == "run.tokens_before" or any(key == free or key.startswith(free + ".") for free in FREE)
