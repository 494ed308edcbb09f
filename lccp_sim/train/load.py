"""From plain dictionaries to a checked Config: the place that knows every table of variants."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lccp_sim.config import Config, ConfigError, ModelConfig, OptimConfig, RunConfig, parse, parse_kind, refuse
from lccp_sim.data.pools import DataConfig
from lccp_sim.data.sources import SOURCES
from lccp_sim.models.experts import EXPERTS
from lccp_sim.models.positions import POSITIONS
from lccp_sim.monitors import MONITORS, Monitor
from lccp_sim.train.windows import window_steps


@dataclasses.dataclass(frozen=True)
class MonitorsConfig:
    """Which monitors watch a run, by name, and the first window in tokens (null: only step 0 and the end)."""

    first_window_tokens: int | None
    watch: dict[str, Monitor]


def load_config(plain: Mapping[str, Any]) -> Config:
    """The checked config. Raises ConfigError: one line for each key or value that is wrong."""
    problems: list[str] = []

    def attempt(build: Any, *args: Any) -> Any:
        try:
            return build(*args)
        except ConfigError as error:
            problems.extend(str(error).split("\n"))
            return None

    sections = {field.name for field in dataclasses.fields(Config)}
    wrong = sorted(set(plain) - sections)
    missing = sorted(sections - set(plain))
    if wrong or missing:
        notes = [f"{key}: no such group of keys" for key in wrong] + [f"{key}: missing" for key in missing]
        raise ConfigError("\n".join(notes))
    model, data = dict(plain["model"]), dict(plain["data"])
    model["rope"] = attempt(parse_kind, POSITIONS, model.get("rope"), "model.rope")
    sources = data.get("sources") or {}
    data["sources"] = {name: attempt(parse_kind, SOURCES, s, f"data.sources.{name}") for name, s in sources.items()}
    config = Config(
        seed=plain["seed"],
        run=attempt(parse, RunConfig, plain["run"], "run"),
        model=attempt(parse, ModelConfig, model, "model"),
        optim=attempt(parse, OptimConfig, plain["optim"], "optim"),
        data=attempt(parse, DataConfig, data, "data") if None not in data["sources"].values() else None,
        monitors=attempt(_monitors, plain["monitors"]),
    )
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    refuse(not isinstance(config.seed, int) or config.seed < 0, "seed", config.seed, "must be an integer >= 0")
    known = ("auto", *EXPERTS)
    refuse(config.model.experts not in known, "model.experts", config.model.experts, f"one of {', '.join(known)}")
    return config


def _monitors(plain: Mapping[str, Any]) -> MonitorsConfig:
    first = plain.get("first_window_tokens")
    refuse(first is not None and (not isinstance(first, int) or first < 1), "monitors.first_window_tokens", first, "> 0 or null")
    watch = {}
    for name, settings in plain.items():
        if name != "first_window_tokens" and settings is not None:
            watch[name] = parse_kind(MONITORS, {"kind": name} | dict(settings), f"monitors.{name}")
    return MonitorsConfig(first, watch)


def plain_config(config: Config) -> dict[str, Any]:
    """The resolved config as it is written to config.yaml, in the layout that `load_config` reads."""
    plain = config.plain()
    watch = plain["monitors"].pop("watch")
    return plain | {"monitors": plain["monitors"] | watch}


def windows_of(config: Config) -> list[int]:
    """The steps of the run's windows."""
    return window_steps(config.monitors.first_window_tokens, config.run.batch_tokens, config.run.steps)
