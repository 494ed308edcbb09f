"""From plain dictionaries to a checked Config, with all tables of variants."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from lccp_sim.config import (
    Config,
    Effect,
    ModelConfig,
    MonitorsConfig,
    OptimConfig,
    RunConfig,
    StoppingConfig,
    is_one_of,
    keys_with,
)
from lccp_sim.configure.parse import parse, parse_kind
from lccp_sim.data.documents.sources import parse_sources
from lccp_sim.data.pools import DataConfig
from lccp_sim.errors import ConfigError, nearest, refuse
from lccp_sim.models.attention_kinds import with_attention
from lccp_sim.models.experts import EXPERTS
from lccp_sim.models.positions import POSITIONS
from lccp_sim.monitors import MONITORS, Monitor
from lccp_sim.train.objectives import OBJECTIVES


def window_steps(first_tokens: int | None, batch_tokens: int, steps: int) -> list[int]:
    """The steps of the windows: 0, first_tokens * 2^(j/2) for j = 0, 1, ..., and the last; None: only 0 and the last.

    The grid is fixed in tokens, so runs of different length or batch share it.
    """
    windows = {0, steps}
    if first_tokens is not None:
        j, step = 0, 0
        while step < steps:
            step = max(1, round(first_tokens * 2 ** (j / 2) / batch_tokens))
            j += 1
            if step < steps:
                windows.add(step)
    return sorted(windows)


SECTIONS = {"run": RunConfig, "model": ModelConfig, "optim": OptimConfig, "data": DataConfig}


def config_keys(*effects: Effect) -> set[str]:
    """The dotted keys of a config that have one of these effects."""
    return set().union(*(keys_with(cls, f"{section}.", *effects) for section, cls in SECTIONS.items()))


def unequal(old: Mapping[str, Any], new: Mapping[str, Any], but: Collection[str]) -> list[str]:
    """The keys in which two flat configs differ, except those in `but` and keys inside them."""
    keys = sorted(old.keys() | new.keys())
    return [key for key in keys if old.get(key) != new.get(key) and not is_one_of(key, but)]


def load_config(plain: Mapping[str, Any]) -> Config:
    """The checked config. Raises ConfigError: one line for each key or value that is wrong."""
    problems: list[str] = []

    def attempt(build: Any, *args: Any) -> Any:
        try:
            return build(*args)
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    sections = [field.name for field in dataclasses.fields(Config)]
    notes = [f"{key}: no such group of keys{nearest(str(key), sections)}" for key in plain if key not in sections]
    notes += [f"{key}: missing" for key in sections if key not in plain and key != "objective"]
    if notes:
        raise ConfigError(*notes)
    run, model, data, optim, monitors = (_mapping(plain, key) for key in ("run", "model", "data", "optim", "monitors"))
    model = attempt(with_attention, model) or {key: value for key, value in model.items() if key != "attention"}
    model["rope"] = attempt(parse_kind, POSITIONS, model.get("rope"), "model.rope")
    sources = attempt(parse_sources, data)
    config = Config(
        seed=plain["seed"],
        run=attempt(parse, RunConfig, run, "run"),
        model=attempt(parse, ModelConfig, model, "model"),
        optim=attempt(parse, OptimConfig, optim, "optim"),
        data=attempt(parse, DataConfig, data | {"sources": sources}, "data") if sources is not None else None,
        monitors=attempt(_monitors, monitors, sources),
        objective=attempt(parse_kind, OBJECTIVES, plain.get("objective") or {"kind": "lm"}, "objective"),
    )
    attempt(_check_decay, config.run, config.optim)
    attempt(_check_attention, config.run, config.model)
    attempt(_check_measured_attention, config.monitors, config.model)
    attempt(_check_stopping, config.run and config.run.stopping, config.optim, config.monitors)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    bad = isinstance(config.seed, bool) or not isinstance(config.seed, int) or config.seed < 0
    refuse(bad, "seed", config.seed, "must be an integer >= 0")
    known = ("auto", *EXPERTS)
    refuse(config.model.experts not in known, "model.experts", config.model.experts, f"one of {', '.join(known)}")
    config.objective.check(config)
    return config


def load_model(plain: Mapping[str, Any]) -> ModelConfig:
    """The model of a config that was checked before. It does not need the data, which may no longer exist."""
    rope = parse_kind(POSITIONS, plain["model"]["rope"], "model.rope")
    return parse(ModelConfig, {**with_attention(plain["model"]), "rope": rope}, "model")


def _mapping(plain: Mapping[str, Any], key: str, where: str = "") -> dict[str, Any]:
    refuse(not isinstance(plain[key], Mapping), f"{where}{key}", plain[key], "must be a group of keys")
    return dict(plain[key])


def _monitors(plain: Mapping[str, Any], sources: Mapping[str, Any] | None) -> MonitorsConfig:
    shared = {field.name for field in dataclasses.fields(MonitorsConfig)} - {"watch"}
    problems, watch = [], {}
    for name in plain:
        if name not in shared and plain[name] is not None:
            try:
                settings = {"kind": name} | _mapping(plain, name, "monitors.")
                watch[name] = parse_kind(MONITORS, settings, f"monitors.{name}")
                _check_sources(name, watch[name], sources)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return parse(MonitorsConfig, {key: plain[key] for key in shared & plain.keys()} | {"watch": watch}, "monitors")


def _check_sources(name: str, monitor: Monitor, sources: Mapping[str, Any] | None) -> None:
    """Raise ConfigError if a monitor reads a source that the run does not have."""
    for key in ("haystack", "source", "sources"):
        value = getattr(monitor, key, ())
        for source in (value,) if isinstance(value, str) else value or ():
            unknown = sources is not None and source not in sources
            rule = f"no such source; data.sources has {', '.join(sources or ())}{nearest(source, sources or ())}"
            refuse(unknown, f"monitors.{name}.{key}", source, rule)


def _check_decay(run: RunConfig | None, optim: OptimConfig | None) -> None:
    """Raise ConfigError if a run is too short for its warm-up and decay."""
    if run is not None and optim is not None and optim.decay_steps is not None:
        rule = f"with optim.warmup_steps={optim.warmup_steps} more than the run's {run.steps} steps; lower it"
        refuse(optim.warmup_steps + optim.decay_steps > run.steps, "optim.decay_steps", optim.decay_steps, rule)


def _check_attention(run: RunConfig | None, model: ModelConfig | None) -> None:
    """Raise ConfigError if this attention cannot train on these rows, or its dense stage starts beyond the run."""
    if run is None or model is None or model.attention is None:
        return
    attention, layers = model.attention, model.num_layers
    outside = [each for each in attention.dense_layers if not -layers <= each < layers]
    rule = f"must be layers of model.num_layers={layers}, counted from 0 or from the end (-1)"
    refuse(outside, "model.attention.dense_layers", list(attention.dense_layers), rule)
    row, widest = run.context_tokens, attention.coarsest
    rule = f"must be a multiple of model.attention's factor^(levels - 1) = {widest}"
    refuse(row % widest, "run.context_tokens", row, rule)
    rule = f"a row of {row} tokens has {row // widest} windows of {widest} that could be opened; lower it"
    refuse(attention.budget > row // widest, "model.attention.budget", attention.budget, rule)
    met = attention.entries(row)
    rule = (
        f"lets {met} windows of a row meet, no fewer than its {row} tokens; lower it, or use model.attention.kind=full"
    )
    refuse(met >= row, "model.attention.budget", attention.budget, rule)
    rule = "does not go with model.attention.kind=lighthouse, which needs unsplit rows; use more rows or processes"
    refuse(run.cp > 1, "run.cp", run.cp, rule)
    dense, last = attention.dense_from_tokens, run.steps * run.batch_tokens
    rule = f"lies beyond the run, which ends at {last} tokens; lower it, or set it to null for a run without that stage"
    refuse(dense is not None and dense >= last, "model.attention.dense_from_tokens", dense, rule)


def _check_measured_attention(monitors: MonitorsConfig | None, model: ModelConfig | None) -> None:
    """Raise ConfigError if monitors are to measure the attention of training, but that is dense anyway."""
    both = monitors is not None and monitors.attention == "both"
    rule = "training is dense, so there is nothing to compare; set model.attention.kind=lighthouse, or leave this out"
    refuse(both and model is not None and model.attention is None, "monitors.attention", "both", rule)


def _check_stopping(stopping: StoppingConfig | None, optim: OptimConfig | None, monitors: Any) -> None:
    """Raise ConfigError if `run.stopping` names an unmeasured metric, or the schedule does not allow its decay."""
    if stopping is None:
        return
    for name in stopping.watch if monitors is not None else ():
        monitor, known = name.partition("/")[0], list(monitors.watch)
        rule = f"no such monitor here; there are {', '.join(known)}{nearest(monitor, known)}"
        refuse(monitor not in known, "run.stopping.watch", name, rule)
    if optim is not None:
        decays = stopping.action == "decay" and optim.schedule != "constant"
        rule = f"needs a learning rate that is constant until then, and optim.schedule is {optim.schedule}; use stop"
        refuse(decays, "run.stopping.action", "decay", rule)


def plain_config(config: Config) -> dict[str, Any]:
    """The resolved config as it is written to config.yaml, in the layout that `load_config` reads."""
    plain = config.plain()
    watch = plain["monitors"].pop("watch")
    # As before there were these keys.
    if plain["model"]["attention"] is None:
        del plain["model"]["attention"]
    if plain["monitors"]["attention"] == "dense":
        del plain["monitors"]["attention"]
    if config.objective == OBJECTIVES["lm"]():
        del plain["objective"]
    if plain["run"]["tensorboard_axis"] is None:
        del plain["run"]["tensorboard_axis"]
    return plain | {"monitors": plain["monitors"] | watch}


def windows_of(config: Config) -> list[int]:
    """The steps of the run's windows."""
    return window_steps(config.monitors.first_window_tokens, config.run.batch_tokens, config.run.steps)
