"""Overrides to a checked config: Hydra composes the groups, and the dataclasses find the errors.

Design note: a key may be set whether or not a YAML names it, as with Hydra's ++, so that overrides have one form. The
dataclasses detect unknown keys.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lccp_sim.errors import ConfigError

if TYPE_CHECKING:
    from lccp_sim.config import Config

LIGHT = r"(run|seed)=|\+*(run|optim|data|model(?!\.rope))\."  # what can be checked without torch in shipped configs
GROUPS = ("model", "data", "optim", "monitors", "run")


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> dict[str, Any]:
    """The config as nested plain dictionaries, interpolations resolved. Raises ConfigError if Hydra refuses."""
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if config_dir and not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such directory")
    search = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir else []
    marked = [*_marked(overrides), *search]
    try:
        with initialize_config_module("lccp_sim.configs", version_base="1.3"):
            composed = hydra_compose("config", overrides=marked)
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from None
    except (yaml.YAMLError, ValueError, TypeError, AssertionError) as error:  # Hydra lets those of its files through
        if config_dir is None:
            raise
        raise ConfigError(f"--config-dir {config_dir}: cannot be read ({' '.join(str(error).split())})") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def refuse_sections(plain: dict[str, Any]) -> None:
    """Raise ConfigError for each key and value of these sections that is wrong."""
    from lccp_sim.config import ModelConfig, OptimConfig, RunConfig
    from lccp_sim.configure.parse import parse

    kinds: dict[str, type] = {"run": RunConfig, "model": ModelConfig, "optim": OptimConfig}
    problems: list[str] = []
    for name, section in plain.items():
        try:
            if name == "data":
                from lccp_sim.data.documents.sources import parse_sources
                from lccp_sim.data.pools import DataConfig

                parse(DataConfig, section | {"sources": parse_sources(section)}, name)
            else:
                parse(kinds[name], section, name)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def _marked(overrides: Sequence[str]) -> Iterator[str]:
    """The overrides, with Hydra's ++ for values (set or add). Raises ConfigError if one is not an override."""
    for override in overrides:
        key = override.partition("=")[0]
        if key == override and not key.startswith("~"):
            raise ConfigError(f"{override!r}: not an override; write key=value")
        if override == f"{key}=null" and key in GROUPS:
            raise ConfigError(f"{override}: a group of keys cannot be left out; name a config")
        if override.endswith("={}") and key not in GROUPS:  # Hydra would merge it into what is there
            yield f"++{key.lstrip('+')}=null"
        yield override if key in GROUPS or key.startswith("~") or "@" in key else f"++{override.lstrip('+')}"


def explain(error: Exception) -> str:
    """Hydra's message in one line, without details about Hydra itself."""
    message = " ".join(str(error).split())
    if override := getattr(error, "override", None):
        why = message.partition(" See https")[0]
        return f"{override.lstrip('+')}: cannot be read ({why}); quote the value as Hydra asks"
    if "You must specify 'run'" in message:
        return "run: name a run, for example run=tiny_lccp"
    found = re.search(r"Could not find '(\w+)/([^']*)' Available options in '\w+': (.*?) Config search path", message)
    return f"{found[1]}={found[2]}: no such config; there are {', '.join(found[3].split())}" if found else message


def check(overrides: Sequence[str], config_dir: Path | None = None) -> "Config":
    """The checked config of some overrides. Raises ConfigError.

    If they only change keys of a shipped config that do not need torch, these are checked first, without it.
    """
    plain = compose(overrides, config_dir)
    if config_dir is None and all(re.match(LIGHT, word) for word in overrides):
        data = ["data"] if any(re.match(r"\+*data\.", word) for word in overrides) else []
        refuse_sections({name: plain[name] for name in ("run", "model", "optim", *data)})
    from lccp_sim.configure.load import load_config

    return load_config(plain)
