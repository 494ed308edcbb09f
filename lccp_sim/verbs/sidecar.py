"""`lccp watch FOLDER`: a sidecar that measures the checkpoints of another job as they appear, without changing them.

A checkpoint is measured once it is complete: nothing is missing, and nothing was written between two polls. The
checkpoints that exist at the start are measured in step order. If several later ones are waiting, the newest comes
first; those before it are reported and left out, because records are in step order. Checkpoints that are deleted,
damaged, of another shape, or too late are left out, too. A checkpoint that stays incomplete is reported at once, and
later ones wait for it for two minutes. The end of the training is marked if it is known. The state that must survive a
kill is in `watched.json`, next to the records, so a restarted sidecar continues and writes what an uninterrupted one
would.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from lccp_sim.analysis.report.run_page import write_report
from lccp_sim.analysis.run import MEASURED
from lccp_sim.config import Config, short_hash
from lccp_sim.configure.load import load_config, plain_config
from lccp_sim.data.beyond import check_ids, check_pair
from lccp_sim.data.documents.synthetic import plain_tokens
from lccp_sim.data.tokenizer import read_tokenizer, same_tokens
from lccp_sim.errors import ConfigError, UserError
from lccp_sim.files import write_atomic
from lccp_sim.models.foreign import hf
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.values import Moment
from lccp_sim.progress import Tell, clock, shown_on
from lccp_sim.train.loop.precision import set_threads
from lccp_sim.train.saved.followed import Saved, Signature, saved_in
from lccp_sim.train.saved.foreign import Vocabulary, read_vocabulary
from lccp_sim.train.saved.journal import RECORDS, REFERENCE, Journal
from lccp_sim.train.saved.run_directory import DONE, claim, write_done
from lccp_sim.train.series import architecture_of, device_of_config
from lccp_sim.train.window.estimate import expected_seconds, kinds, timed
from lccp_sim.train.window.measured import corpus_for, write_measured
from lccp_sim.train.window.own_loop import ALL_STEPS, BEFORE
from lccp_sim.train.window.suite import HeadHistory, MonitorSuite
from lccp_sim.train.window.window_files import WindowFiles

GLANCE = 10.0  # seconds between two polls of the folder
PATIENCE = 1800.0  # seconds without a change after which an incomplete checkpoint is given up
YIELDING = 120.0  # the same if a later checkpoint is complete
ITEM_SHARES = (1.0, 0.5, 0.25, 0.125)  # shares of each monitor's items, tried in this order for a budget
FEWEST = 2  # items of a monitor
WATCHED = "watched.json"


@dataclass(frozen=True)
class Followed:
    """The folder to follow and the settings, all fixed at the start.

    `model`: a folder with config.json and tokenizer.json for checkpoints that have none. `minutes`: the longest that a
    checkpoint may take, estimated at the first one. `once`: end when nothing is left to measure. `until`: the last step
    of the training: end after it.
    """

    folder: Path
    config: Config
    tokens_per_step: int | None = None
    model: Path | None = None
    minutes: float | None = None
    once: bool = False
    until: int | None = None

    def settings(self) -> dict[str, Any]:
        """The settings that a restarted sidecar must repeat."""
        asked = short_hash(plain_config(self.config))
        given = {"tokens_per_step": self.tokens_per_step, "minutes": self.minutes, "config": asked}
        return {"folder": str(self.folder.resolve()), **given}


class Sidecar:
    """A running sidecar; each `glance` measures at most one checkpoint."""

    def __init__(self, followed: Followed, out: Path, console: Console, now: Callable[[], float] = time.monotonic):
        self.followed, self.out, self.console, self.now = followed, out, console, now
        self.facts = self._read_facts()
        records = Journal(out).keep(ALL_STEPS.stop)
        self.measured = {record.step: "another folder" for record in records}  # names of checkpoints by step
        self.last = Moment(records[-1].step, records[-1].tokens) if records else BEFORE
        self.left_out = {row["checkpoint"]: row for row in self.facts["left_out"]}
        there = saved_in(followed.folder)
        for each in reversed(there):  # of one step, the first was measured if a kill left no name
            if each.step in self.measured:
                self.measured[each.step] = each.name
        self.measured |= {int(step): name for step, name in self.facts.get("measured", {}).items()}
        self._write_facts()
        self.history = HeadHistory(records, ALL_STEPS)
        self.files = WindowFiles(out, followed.config.run.tensorboard_axis, self.last)
        self.suite: MonitorSuite | None = None
        self.known: dict[Path, tuple[Signature, float]] = {}  # at the last poll, and since when
        self.reported: set[Path] = set()  # as incomplete
        self.backlog = max((each.step for each in there), default=-1)

    def _read_facts(self) -> dict[str, Any]:
        """The facts of an earlier sidecar. Raises ConfigError if its settings differ, or something else wrote there."""
        path, settings = self.out / WATCHED, self.followed.settings()
        if not path.exists() and (self.out / RECORDS).exists():
            raise ConfigError(f"--out {self.out}: holds other records; name another directory")
        if not Journal(self.out).records():
            return settings | {"left_out": []}
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            differ = [key for key, value in settings.items() if facts[key] != value]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path}: damaged; move {self.out} aside to start over") from None
        if differ:
            raise ConfigError(
                f"--out {self.out}: was begun with another {differ[0]} ({facts[differ[0]]} there, "
                f"{settings[differ[0]]} now); give the same, or name another directory"
            )
        return facts

    @property
    def ended(self) -> bool:
        """Whether the checkpoint of the last step was measured or left out."""
        until, seen = self.followed.until, [*self.measured, *(row["step"] for row in self.left_out.values())]
        return until is not None and any(step >= until for step in seen)

    def glance(self) -> bool:
        """Inspect the folder, and measure what is due; return False if no checkpoint remains to be measured."""
        waiting = self._waiting()
        lacking = {each: each.lacks() for each in waiting if self._is_steady(each)}
        whole = [each for each, lacks in lacking.items() if lacks is None]
        for each, lacks in lacking.items():
            if lacks is not None and self._is_given_up(each, lacks, whole):
                waiting.remove(each)
        in_order = bool(waiting) and (waiting[0].step <= self.backlog or len(whole) < 2)
        if in_order and waiting[0] in whole:
            self._measure(waiting[0])
        elif in_order and whole:  # an earlier one is still being written, and must be measured first
            self.backlog = whole[-1].step
        elif whole:
            newest = next(each for each in whole if each.step == whole[-1].step)
            for each in whole[: whole.index(newest)]:
                self._leave_out(each, f"skipped, because {newest.name} is newer and waits, too")
            self._measure(newest)
        return any(map(self._is_open, waiting))

    def _is_given_up(self, saved: Saved, lacks: str, whole: list[Saved]) -> bool:
        """Whether an incomplete checkpoint is left out now; the first time that it is incomplete, report it."""
        later = any(each.step > saved.step for each in whole)
        if self.followed.once or self.now() - self.known[saved.path][1] > (YIELDING if later else PATIENCE):
            self._leave_out(saved, f"never became complete ({lacks})")
            return True
        if saved.path not in self.reported:
            self.reported.add(saved.path)
            how_long = f"{clock(PATIENCE)}, or {clock(YIELDING)} once a later one is complete"
            self.console.print(
                f"{saved.name}: cannot be read yet ({lacks}); tried again while it changes, and for {how_long}",
                style="yellow", markup=False,
            )  # fmt: skip
        return False

    def _waiting(self) -> list[Saved]:
        """The checkpoints that may still be measured, in step order; the others are left out."""
        there = saved_in(self.followed.folder, self.followed.model)
        for path in sorted(self.known.keys() - {each.path for each in there}):
            del self.known[path]
            if self._is_open(gone := Saved(path)):
                self._leave_out(gone, "deleted before it was measured")
        there = [each for each in there if self._is_open(each)]
        for each in there:
            each.check()
            if each.step in self.measured:
                self._leave_out(each, f"step {each.step} is measured already, from {self.measured[each.step]}")
            elif each.step < self.last.step:
                self._leave_out(each, f"too late, step {self.last.step} is measured already")
        return [each for each in there if each.step > self.last.step]

    def _is_open(self, saved: Saved) -> bool:
        return self.measured.get(saved.step) != saved.name and saved.name not in self.left_out

    def _is_steady(self, saved: Saved) -> bool:
        """Whether nothing was written to a checkpoint for GLANCE seconds; with `once`, by the times of its files."""
        signature = saved.signature()
        before = self.known.get(saved.path)
        if before is None or before[0] != signature:
            quiet = saved.quiet_seconds() if self.followed.once else 0.0
            self.known[saved.path] = before = signature, self.now() - quiet
        return self.now() - before[1] >= GLANCE

    def _leave_out(self, saved: Saved, why: str) -> None:
        self.left_out[saved.name] = {"checkpoint": saved.name, "step": saved.step, "why": why}
        self.console.print(f"{saved.name}: left out: {why}", style="yellow", markup=False)
        self._write_facts()

    def _write_facts(self) -> None:
        self.facts |= {"left_out": list(self.left_out.values()), "measured": self.measured}
        write_atomic(self.out / WATCHED, json.dumps(self.facts, indent=1, ensure_ascii=False) + "\n")

    def _measure(self, saved: Saved) -> None:
        """Measure a checkpoint, write the results and print the verdict so far; or leave it out, and print why."""
        signature, config = self.known[saved.path][0], self.followed.config
        dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
        with shown_on(self.console) as tell:
            tell(f"loading {saved.name}", 0.0)
            try:
                moment = Moment(saved.step, saved.tokens(self.followed.tokens_per_step))
                model = saved.loaded(lambda path: hf.load_checkpoint(path, dtype, device_of_config(config)))
                if not set(saved.signature()) <= set(signature):
                    return  # it has been written to meanwhile
                suite = self._prepare(saved, model, tell) if self.suite is None else self.suite
                self._check(saved, model, moment)
                seen = suite.measure(model, moment, self.history, tell, f"{saved.name}, ")
            except (UserError, OSError) as error:
                if saved.signature() != signature:
                    return  # deleted or written to: the next poll handles it
                if self.last == BEFORE:
                    raise
                self._leave_out(saved, str(error))
                return
        (self.out / DONE).unlink(missing_ok=True)
        self.console.print(self.files.write(seen, moment))
        self.last = moment
        self.measured[moment.step] = saved.name
        self._write_facts()
        if saved.is_last:
            self.mark_end()
        try:
            write_report(self.out, tell=lambda text: self.console.print(text.partition("\n")[0], markup=False))
        except UserError as error:
            self.console.print(f"warning: no report yet: {error}", style="yellow", markup=False)
        self._waiting()  # leaves out others of the same step now, because this may be the end

    def mark_end(self) -> None:
        """Mark the last window as the end of training, which `lccp gate` requires."""
        write_done(self.out, self.last.tokens)

    def _check(self, saved: Saved, model: LanguageModel, moment: Moment) -> None:
        """Raise ConfigError if a model's shape differs from the first one's, or its tokens or tokenizer do not fit."""
        if moment.tokens <= self.last.tokens:
            raise ConfigError(f"{saved.path}: has {moment.tokens:,} tokens, no more than step {self.last.step}")
        shape = architecture_of(model)
        if self.facts.setdefault("shape", shape) != shape:
            first = self.facts["shape"]
            raise ConfigError(f"{saved.path}: has another architecture ({shape}) than the first ({first})")
        tokenizer = self.corpus.tokenizer
        check_pair(tokenizer, model.vocab_size, tokenizer.id_to_token(self.corpus.bos), str(saved.path))
        check_ids(self.corpus.largest, model.vocab_size)
        own = saved.path / "tokenizer.json"
        if own.exists() and not same_tokens(read_tokenizer(own), tokenizer):
            raise ConfigError(f"{saved.path}: has another tokenizer than the first; measure it with `lccp measure`")

    def _prepare(self, saved: Saved, model: LanguageModel, tell: Tell) -> MonitorSuite:
        """The monitors with their items: those of existing records, or chosen for the first checkpoint."""
        config, text = self.followed.config, self.out / "tokenizer.json"
        if "bos" in self.facts and (self.out / MEASURED).exists():
            config = load_config(yaml.safe_load((self.out / MEASURED).read_text(encoding="utf-8")))
            self.corpus = corpus_for(config, text, self.facts["bos"], tell)
        else:
            vocabulary = self._vocabulary(saved)
            self.corpus = corpus_for(config, vocabulary.text, vocabulary.bos, tell)
            config = self._within_budget(config, model)
            self.facts["bos"] = vocabulary.bos
            write_measured(self.out, config, self.corpus)
            self._write_facts()
        store, bf16 = self.out / REFERENCE, config.watched_in_bf16
        self.suite = MonitorSuite(config.monitors.watch, self.corpus, [], store, bf16=bf16, tell=tell)
        if self.last != BEFORE:
            self.suite.recall(store)
        for note in self.suite.notes:
            self.console.print(f"warning: {note}", style="yellow", markup=False)
        return self.suite

    def _vocabulary(self, saved: Saved) -> Vocabulary:
        home = self.followed.model or saved.path
        try:
            return read_vocabulary(home)
        except ConfigError:
            raise ConfigError(
                f"{home}: holds no readable tokenizer; name a folder with a tokenizer.json: --model FOLDER"
            ) from None

    def _within_budget(self, config: Config, model: LanguageModel) -> Config:
        """The config with the number of items that --minutes allows, from forwards timed on this machine."""
        minutes = self.followed.minutes
        if minutes is None:
            return config
        wanted = {kind for of in kinds(config.monitors.watch).values() for kind in of}
        seconds = timed(model, wanted, plain_tokens(self.corpus.tokenizer), config.watched_in_bf16)
        for share in ITEM_SHARES:
            fewer = with_items(config, share)
            expected = sum(expected_seconds(fewer.monitors.watch, seconds).values())
            if expected <= 60 * minutes:
                self.console.print(f"budget: {share:.3g} of the items, about {clock(expected)} a checkpoint")
                return fewer
        raise ConfigError(
            f"--minutes={minutes:g}: {ITEM_SHARES[-1]:g} of the items take about {clock(expected)} a checkpoint here; "
            "give more, or shorten the monitors' lengths"
        )


def with_items(config: Config, share: float) -> Config:
    """The config with a share of each monitor's items, rounded up to what its rules allow, at least FEWEST."""
    watch = {name: _fewer(monitor, share) for name, monitor in config.monitors.watch.items()}
    return replace(config, monitors=replace(config.monitors, watch=watch))


def _fewer(monitor: Any, share: float) -> Any:
    """The monitor with the fewest items from `share` of its items on that it accepts (a multiple of its depths)."""
    items = getattr(monitor, "items", 0)
    for fewer in range(max(min(FEWEST, items), ceil(items * share)), items):
        try:
            return replace(monitor, items=fewer)
        except ConfigError:
            continue
    return monitor


def watch(
    followed: Followed,
    out: Path | None,
    console: Console,
    wait: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """Follow a folder until interrupted, or with `once` or `until` until done; return 1 if these left out a checkpoint.

    Records, TensorBoard, report and `watched.json` go to `out`, by default `<root>/<FOLDER>-watched`. Raises
    ConfigError if the folder does not exist, the first checkpoint cannot be measured, `out` holds other records, or
    with `once` there is no checkpoint.
    """
    folder = followed.folder
    saved_in(folder)
    out = out or Path(followed.config.run.root).expanduser() / f"{folder.resolve().name}-watched"
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"--out {out}: is inside {folder}, which is never written to; name a directory elsewhere")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; name a directory")
    if followed.model is not None and not followed.model.is_dir():
        raise ConfigError(f"--model {followed.model}: no such folder; name one with config.json and tokenizer.json")
    if followed.once and not saved_in(folder) and not (out / RECORDS).exists():
        raise ConfigError(
            f"{folder}: holds no checkpoint yet (a subfolder with a number in its name that holds weights or a "
            "config.json); leave out --once to wait for one"
        )
    set_threads(followed.config)
    with claim(out):
        sidecar = Sidecar(followed, out, console, now)
        console.print(f"{folder}: following its checkpoints; records in {out}", markup=False)
        for name, row in sidecar.left_out.items() if followed.once or sidecar.ended else ():
            console.print(f"{name}: left out before: {row['why']}", markup=False)
        try:
            while not sidecar.ended:
                before = sidecar.last
                remains = sidecar.glance()
                if followed.once and not remains:
                    break
                if sidecar.last == before and not sidecar.ended:
                    wait(GLANCE)
            if sidecar.ended and sidecar.last.step >= (followed.until or 0):
                sidecar.mark_end()
        except KeyboardInterrupt:
            console.print("stopped; the same command continues from here")
        finally:
            sidecar.files.close()
    return int((followed.once or sidecar.ended) and bool(sidecar.left_out))
