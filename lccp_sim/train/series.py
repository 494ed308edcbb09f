"""The same monitors on saved checkpoints: `lccp measure PATH` measures those of lccp-sim or `transformers`.

It writes separate records and samples, into the run directory or into a folder that is named after the series. With
`check` it compares them with a run's own records: they must be equal, value by value.

A series is a run directory, one lccp-sim checkpoint, a checkpoint of `transformers` (folder or GGUF file), or a YAML
file that lists checkpoints with their tokens. Each is loaded only when its turn comes, and all checkpoints of a series
have one architecture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.console import Console

from lccp_sim.analysis.run import MEASURED
from lccp_sim.config import Config, short_hash
from lccp_sim.configure.load import load_config, windows_of
from lccp_sim.data.beyond import check_ids, check_pair, check_rows
from lccp_sim.data.documents.synthetic import plain_tokens
from lccp_sim.data.tokenizer import read_tokenizer, same_tokens
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign import hf
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.values import Moment
from lccp_sim.progress import shown_on
from lccp_sim.records import Record
from lccp_sim.train.loop.precision import set_threads
from lccp_sim.train.saved.checkpoint import checkpoints, read_checkpoint, step_of
from lccp_sim.train.saved.followed import Saved
from lccp_sim.train.saved.foreign import read_vocabulary
from lccp_sim.train.saved.init import load_transformer
from lccp_sim.train.saved.journal import RECORDS, REFERENCE, Journal
from lccp_sim.train.saved.run_directory import CONFIG, DONE, claim, measured_of, read_config, write_done
from lccp_sim.train.window.estimate import estimate
from lccp_sim.train.window.measured import corpus_for, measured_text, write_measured
from lccp_sim.train.window.suite import NO_HEADS, HeadHistory, MonitorSuite
from lccp_sim.train.window.window_files import WindowFiles


class Loaded(NamedTuple):
    """A model, and the windows that were planned when it was saved: a run that was extended had others before.

    `notes`: notes for the user about the checkpoint, one line each.
    """

    model: LanguageModel
    windows: list[int] | None = None
    notes: Sequence[str] = ()


class SavedPoint(NamedTuple):
    """A checkpoint: its path, its moment (optimizer step, training tokens), and how to load it."""

    path: Path
    moment: Moment
    load: Callable[[], Loaded]


@dataclass(frozen=True)
class Series:
    """Points in order of their tokens. `windows`: the steps of the points at which heads are compared.

    `tokenizer`: the path of a tokenizer.json, or its text; `bos`: the name of its BOS token, if a checkpoint states it.
    `foreign`: the checkpoints are those of transformers, not lccp-sim's.
    """

    points: list[SavedPoint]
    windows: list[int]
    tokenizer: Path | str
    bos: str | None = None
    foreign: bool = False


def architecture_of(model: LanguageModel) -> dict[str, Any]:
    """What all checkpoints of one training share: the sizes that monitors use, and the names and shapes of weights."""
    sizes = {name: getattr(model, name) for name in ("num_layers", "num_heads", "vocab_size")}
    shapes = {name: list(weight.shape) for name, weight in model.named_parameters()}
    counted = sum(weight.numel() for weight in model.parameters())
    return sizes | {"parameters": counted, "weights": short_hash(shapes)}


def device_of_config(config: Config) -> str:
    """The device for monitors after the fact: a GPU if there is one, unless the config says cpu."""
    return "cuda" if config.run.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def of_run(run: Path, config: Config) -> Series:
    """All checkpoints that a run kept; of several at one step, the window. Raises ConfigError if there is none."""
    paths = {step_of(path): path for path in reversed(checkpoints(run))}  # a window comes before a periodic one
    if not paths:
        raise ConfigError(f"{run}: no checkpoints in {run / 'checkpoints'}")
    steps = sorted(paths)
    tokens = config.run.batch_tokens
    points = [SavedPoint(paths[step], Moment(step, step * tokens), _ours(paths[step], config)) for step in steps]
    return Series(points, windows_of(config), run / "tokenizer.json")


def of_checkpoint(path: Path, config: Config) -> Series:
    """One checkpoint of a run."""
    facts = read_checkpoint(path)["lccp"]
    point = SavedPoint(path, Moment(facts["step"], facts["tokens"]), _ours(path, config))
    return Series([point], [facts["step"]], path.parent.parent / "tokenizer.json")


def of_transformers(path: Path, config: Config) -> Series:
    """One checkpoint of `transformers`, at step 0."""
    return _series_of([(path, Moment(0, 0))], config)


def of_list(path: Path, config: Config) -> Series:
    """The series that a YAML file lists: `checkpoints: [{path, tokens, step}]`, paths relative to the file.

    `step` defaults to the index in the list. Raises ConfigError if the file is not such a list, or is out of order.
    """
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:200]})") from None
    entries = plain.get("checkpoints") if isinstance(plain, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: has no list `checkpoints` of {{path: ..., tokens: ...}}")
    places: list[tuple[Path, Moment]] = []
    for index, entry in enumerate(entries):
        where = f"{path}: checkpoints[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ConfigError(f"{where} has no path; write {{path: FOLDER, tokens: COUNT}}")
        unknown = sorted(set(entry) - {"path", "tokens", "step"})
        if unknown:
            raise ConfigError(f"{where}: no such key: {', '.join(unknown)}; there are path, tokens, step")
        moment = Moment(
            _count(entry.get("step", index), f"{where}.step"), _count(entry.get("tokens"), f"{where}.tokens")
        )
        if places and not (moment.tokens > places[-1][1].tokens and moment.step > places[-1][1].step):
            before = places[-1][1]
            raise ConfigError(
                f"{where}: out of order: step {moment.step} with {moment.tokens} tokens comes after step {before.step} "
                f"with {before.tokens}; sort the list by tokens, each more than the one before"
            )
        places.append((path.parent / Path(entry["path"]).expanduser(), moment))
    return _series_of(places, config)


def _count(value: Any, where: str) -> int:
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{where}={value!r}: must be an integer >= 0")
    return value


def _series_of(places: list[tuple[Path, Moment]], config: Config) -> Series:
    """A series of checkpoints, all of `transformers` or all of lccp-sim, read with the first one's tokenizer."""
    missing = [str(path) for path, _ in places if not path.exists()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such checkpoint")
    steps = [moment.step for _, moment in places]
    first = places[0][0]
    for path, _ in places:
        _check_tokenizer(path, first)
    if first.suffix == ".ckpt":
        loads = [_ours(path, config) for path, _ in places]
        tokenizer, bos = first.parent.parent / "tokenizer.json", None
        return Series(_same(places, loads), steps, tokenizer, bos)
    for path, _ in places:
        hf.notes_of(path)  # refuse what can be refused before preparing anything
    text, _, bos = read_vocabulary(first)
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
    loads = [_theirs(path, dtype, device_of_config(config)) for path, _ in places]
    return Series(_same(places, loads), steps, text, bos, foreign=True)


def _check_tokenizer(path: Path, first: Path) -> None:
    """Raise ConfigError if both checkpoints have a tokenizer.json, in their folder or their run, that differ."""
    homes = [each.parent.parent if each.suffix == ".ckpt" else each for each in (path, first)]
    own, known = (home / "tokenizer.json" for home in homes)
    if own == known or not (own.exists() and known.exists()):
        return
    if not same_tokens(read_tokenizer(own), read_tokenizer(known)):
        raise ConfigError(f"{path}: has another tokenizer than the first; measure it on its own")


def _same(places: list[tuple[Path, Moment]], loads: list[Callable[[], Loaded]]) -> list[SavedPoint]:
    """Points that refuse a model whose architecture differs from that of the first one loaded."""
    known: dict[str, Any] = {}

    def checked(path: Path, load: Callable[[], Loaded]) -> Callable[[], Loaded]:
        def loaded() -> Loaded:
            found = load()
            shape = architecture_of(found.model)
            if known.setdefault("shape", shape) != shape:
                raise ConfigError(f"{path}: has another architecture ({shape}) than the first ({known['shape']})")
            return Loaded(found.model, notes=found.notes)

        return loaded

    return [SavedPoint(path, moment, checked(path, load)) for (path, moment), load in zip(places, loads, strict=True)]


def _theirs(path: Path, dtype: torch.dtype, device: str) -> Callable[[], Loaded]:
    return lambda: Loaded(hf.load_checkpoint(path, dtype, device), notes=hf.notes_of(path))


def _ours(path: Path, config: Config) -> Callable[[], Loaded]:
    def load() -> Loaded:
        content = read_checkpoint(path)
        model = load_transformer(path, content).to(device_of_config(config)).eval()
        return Loaded(model, windows_of(load_config(content["lccp"]["config"])))

    return load


def measured_places(paths: Sequence[Path], external: Callable[[], Config]) -> list[Path]:
    """The default folder of records for each path. Paths that share a name get their parent's name, too.

    Raises ConfigError if two paths would still share a folder.
    """
    found = [_place(path, external) for path in paths]
    for place in {each for each in found if found.count(each) > 1}:
        for i, path in enumerate(paths):
            if found[i] == place:
                found[i] = place.with_name(f"{path.resolve().parent.name}-{place.name}")
    twice = next((path for i, path in enumerate(paths) if found[i] in found[:i]), None)
    if twice is not None:
        raise ConfigError(f"{twice}: given twice, or named like another path; measure each with its own --out")
    return found


def _place(path: Path, external: Callable[[], Config]) -> Path:
    if path.suffix == ".ckpt":
        return path.parent.parent / f"measured-{path.stem}"
    if _is_run(path):
        return path / "measured"
    name = path.stem if path.is_file() else path.resolve().name
    return Path(external().run.root).expanduser() / f"{name}-measured"


def _is_run(path: Path) -> bool:
    return (path / CONFIG).exists() or (path.is_dir() and not hf.is_checkpoint(path))


def is_single_checkpoint(path: Path) -> bool:
    """Whether a path is one checkpoint, of lccp-sim or of `transformers`."""
    return path.exists() and (path.suffix == ".ckpt" or hf.is_checkpoint(path))


def measure_once(path: Path, out: Path, overrides: list[str], external: Callable[[], Config], console: Console) -> None:
    """Measure a checkpoint into `out`, unless `out` holds its records with the same settings already."""
    _, config = _open(path, overrides, external)
    measured = out / MEASURED
    alike = measured.exists() and measured.read_text(encoding="utf-8") == measured_text(config)
    if alike and measured_of(out) == _identity(path):
        console.print(f"{path}: measured before, in {out}", markup=False)
        return
    measure(path, out, False, overrides, external, console)


def _identity(path: Path) -> str:
    """The identity of a path's contents: its location, and the sizes and times of its files."""
    stat = path.stat()
    return short_hash(
        [str(path.resolve()), path.is_file() and [stat.st_size, stat.st_mtime_ns], Saved(path).signature()]
    )


def measure(
    path: Path, out: Path | None, check: bool, overrides: list[str], external: Callable[[], Config], console: Console
) -> int:
    """Measure, writing `<run>/measured/` or `out` afresh, and return the exit status: 1 if `check` found a difference.

    `overrides` change the monitors of a run. `external()` is the config for checkpoints that do not belong to a run;
    measuring these begins with an estimate of the time. Raises ConfigError if the path is not a checkpoint, or if `out`
    is a run directory.
    """
    if check and (overrides or not (path / CONFIG).exists()):
        why = "it is not a run directory" if not overrides else "with other settings the values differ"
        raise ConfigError(
            f"--check compares with a run's own records, which is not possible: {path}: {why}; leave it out"
        )
    series, config = _open(path, overrides, external)
    out, of = out or _place(path, external), _identity(path) if is_single_checkpoint(path) else None
    if (out / "checkpoints").exists():
        raise ConfigError(f"--out {out}: is a run directory, whose records would be lost; name another one")
    own = Journal(path).records() if check else []
    set_threads(config)
    with shown_on(console) as tell:
        corpus = corpus_for(config, series.tokenizer, series.bos, tell)
        monitors, bf16 = config.monitors.watch, config.watched_in_bf16
        beside = config.model.attention if config.monitors.attention == "both" and not series.foreign else None
        suite = MonitorSuite(monitors, corpus, series.windows, out / REFERENCE, bf16=bf16, tell=tell, beside=beside)
    home = series.tokenizer.parent if isinstance(series.tokenizer, Path) else path  # the run of the (first) checkpoint
    suite.recall(home / REFERENCE)
    for warning in suite.notes:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    history = HeadHistory([], series.windows)
    records: list[Record] = []
    with claim(out), shown_on(console) as tell:
        files = WindowFiles(out, config.run.tensorboard_axis)
        # Training wrote records at windows only.
        points = [point for point in series.points if not check or point.path.name.startswith("window")]
        for number, point in enumerate(points):
            whole = number / len(points), (number + 1) / len(points)
            place = f"checkpoint {number + 1} of {len(points)}, " if points[1:] else ""
            tell(f"{place}loading {point.path.name}", whole[0])
            loaded = point.load()
            rows, bos = loaded.model.vocab_size, corpus.tokenizer.id_to_token(corpus.bos)
            fits = check_pair if hf.is_checkpoint(point.path) else check_rows
            note = fits(corpus.tokenizer, rows, bos, str(point.path))
            check_ids(corpus.largest, rows)
            if not number:  # keep earlier measurements until a model to replace them has loaded
                (out / DONE).unlink(missing_ok=True)
                files.journal.truncate({}, -1)
                write_measured(out, config, corpus)
            for line in [*loaded.notes, *([note] if note else [])]:
                console.print(f"note: {line}", markup=False)
            if not number and not loaded.model.num_heads:
                console.print(NO_HEADS, style="yellow", markup=False)
            if not number and series.foreign:
                tell(f"{place}timing a text of each length", 0.0)
                tokens = plain_tokens(corpus.tokenizer)
                said = estimate(loaded.model, suite.monitors, tokens, suite.bf16, len(points))
                console.print(said, markup=False)
            suite.windows = loaded.windows or series.windows
            seen = suite.measure(loaded.model, point.moment, history, tell, place, whole)
            console.print(files.write(seen, point.moment))
            records += seen.records
        files.close()
        write_done(out, points[-1].moment.tokens if points else 0, of=of)
        console.print(f"{len(records):,} records in {out / RECORDS}", markup=False)
    return _compare(own, records, console) if check else 0


def _open(path: Path, overrides: list[str], external: Callable[[], Config]) -> tuple[Series, Config]:
    """The series at a path, and the config to measure it with."""
    if path.suffix == ".ckpt":  # a file or a folder
        config = read_config(path.parent.parent, overrides)
        return of_checkpoint(path, config), config
    if _is_run(path):
        config = read_config(path, overrides)
        return of_run(path, config), config
    config = external()
    if hf.is_checkpoint(path):
        return of_transformers(path, config), config
    if path.suffix in (".yaml", ".yml"):
        return of_list(path, config), config
    raise ConfigError(f"{path}: not a run directory, checkpoint, or series file (YAML); nothing to measure")


def _compare(own: list[Record], measured: list[Record], console: Console) -> int:
    """0 if both hold the same records of what was measured, 1 if a record is missing or a value differs."""
    now = {record.key: record for record in measured}
    looked = {(record.step, record.monitor) for record in measured}
    then = {r.key: r for r in own if (r.step, r.monitor) in looked}
    differ = []
    for key in now | then:
        new, old = now.get(key), then.get(key)
        if new is None or old is None or new.line() != old.line():
            values = [repr(record.value) if record else "missing" for record in (new, old)]
            differ.append(f"{key[1]}/{key[2]} {key[3]} at step {key[0]}: {values[0]} now, {values[1]} in the run")
    for line in differ[:5]:
        console.print(f"differs: {line}", markup=False)
    console.print(f"check: {len(now | then) - len(differ):,} of {len(now | then):,} records equal")
    return 1 if differ else 0
