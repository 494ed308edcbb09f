"""What TensorBoard shows of a run beside scalars and images: a layout by tier, what was run, and how it ended.

All of it is written at the first and the last window, before the checkpoint of that window, so that a resumed run
neither loses nor repeats it. What a reader would question: HPARAMS is written once, at the end, and names the final
scalars as its metrics (a session without metrics is an empty row there); TensorBoard keeps the first config it reads,
so what may change when a run is extended, run.tokens above all, is not among the keys, and `tokens` is a metric.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lccp_sim.analysis.findings import examine
from lccp_sim.analysis.report.verdict import Verdict, verdict
from lccp_sim.analysis.run import load_run
from lccp_sim.config import FREE, Config, flatten, is_one_of
from lccp_sim.configure.load import config_keys, plain_config
from lccp_sim.data.pools import Corpus
from lccp_sim.monitors.values import Moment
from lccp_sim.records import TIERS, Record, overall_name
from lccp_sim.train.window.callback import MonitorCallback
from lccp_sim.train.window.logs import overall_values

ORDER = (*TIERS[1:], TIERS[0])  # what is measured first, then the training
TRAIN = tuple(("training", "train", metric) for metric in ("loss_nats", "lr", "grad_norm", "aux_loss"))
Charts = dict[str, dict[str, list[Any]]]


class Board:
    """Writes to TensorBoard after the first and the last window of `monitors`; without one among the loggers, nothing.

    `texts` go to the TEXT tab at the first window, by name, in Markdown. `keys` are the hyperparameters, and `train`
    the (tier, monitor, metric) of scalars that only later windows record.
    """

    def __init__(
        self,
        monitors: MonitorCallback,
        texts: Mapping[str, str],
        keys: Mapping[str, Any],
        train: Iterable[tuple[str, str, str]] = (),
    ):
        self.monitors, self.texts, self.keys, self.train = monitors, texts, keys, tuple(train)

    def look(self, trainer: L.Trainer, moment: Moment) -> list[Record]:
        """No records; what there is to show at this window is written."""
        windows, boards = self.monitors.suite.windows, boards_of(trainer.loggers)
        if not boards or moment.step not in (windows[0], windows[-1]):
            return []
        records = self.monitors.journal.records()
        if moment.step == windows[0]:
            for board in boards:
                log_charts(board, records, self.train)
                for name, text in self.texts.items():
                    board.experiment.add_text(name, text, moment.step)
        if moment.step == windows[-1]:
            said = self._verdict()
            metrics = {"tokens": float(moment.tokens), **overall_values(records)}
            for board in boards:
                board.experiment.add_text("verdict", said, moment.step)
                for summary in hparams(dict(self.keys), metrics):
                    board.experiment._get_file_writer().add_summary(summary, moment.step)
        return []

    def _verdict(self) -> str:
        """What the run shows so far. A fault in judging it must not cost the run its last checkpoint, so it is said."""
        try:
            run = load_run(self.monitors.journal.directory)
            return in_markdown(verdict(examine(dataclasses.replace(run, finished=True))))
        except Exception as error:  # noqa: BLE001
            self.monitors.say(f"warning: no verdict for TensorBoard ({error}); `lccp report` says more")
            return f"No verdict: {error}"


def boards_of(loggers: Sequence[Logger]) -> list[TensorBoardLogger]:
    """Those of TensorBoard."""
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]


def log_charts(board: TensorBoardLogger, records: Iterable[Record], more: Iterable[tuple[str, str, str]] = ()) -> None:
    """None; the scalars of `records`, and `more` (tier, monitor, metric), become charts of the Custom Scalars tab."""
    named = ((r, name.partition("/")) for r in records if (name := overall_name(r)) is not None)
    scalars = [(r.tier, monitor, metric) for r, (monitor, _, metric) in named]
    board.experiment.add_custom_scalars(charts([*scalars, *more]))


def charts(scalars: Iterable[tuple[str, str, str]]) -> Charts:
    """{tier: {title: ["Multiline", [tags]]}} of (tier, monitor, metric): one chart for a monitor's metrics of one unit.

    TensorBoard takes a tag for the beginning of a regular expression, hence the anchors.
    """
    found: Charts = {tier: {} for tier in ORDER}
    charts: dict[tuple[str, str, str], list[str]] = {}
    for tier, monitor, metric in dict.fromkeys(scalars):
        charts.setdefault((tier, monitor, metric.rpartition("_")[2]), []).append(f"{monitor}/{metric}")
    for (tier, monitor, unit), tags in charts.items():
        title = tags[0] if len(tags) == 1 else f"{monitor}, {unit}"
        found[tier][title] = ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]
    return {tier: group for tier, group in found.items() if group}


def texts_of(config: Config, corpus: Corpus) -> dict[str, str]:
    """The resolved config and the table of the corpus, in Markdown."""
    plain = yaml.safe_dump(plain_config(config), sort_keys=False, allow_unicode=True)
    notes = [f"- warning: {warning}" for warning in corpus.warnings]
    return {"config": f"```yaml\n{plain}```", "corpus": "\n".join([*markdown_table(corpus.table), "", *notes])}


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a Markdown table: the plain keys of the first row, then a line a row."""
    names = [name for name, value in rows[0].items() if isinstance(value, str | int | float)] if rows else []
    cells = [[f"{row[n]:,.4g}" if isinstance(row[n], float) else str(row[n]) for n in names] for row in rows]
    lines = [names, ["---"] * len(names), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def keys_of(config: Config) -> dict[str, Any]:
    """The keys of a run that change its training, flat: numbers and words; what is neither is written as JSON."""
    flat = flatten({name: group for name, group in plain_config(config).items() if name != "monitors"})
    free = config_keys(*FREE)
    kept = {key: value for key, value in flat.items() if not is_one_of(key, free)}
    plain = {key for key, value in kept.items() if isinstance(value, str | int | float) and not isinstance(value, bool)}
    return {key: value if key in plain else json.dumps(value) for key, value in kept.items()}


def in_markdown(said: Verdict) -> str:
    """The verdict's sentences: summary, caution, statements, and what the run does not show."""
    parts = [*said.summary, *([said.caution] if said.caution else [])]
    parts += [f"**{topic}.** {text}" for topic, text in said.statements]
    missing = "\n".join(f"- {line}" for line in said.not_shown)
    return "\n\n".join([*parts, *([f"**Not shown:**\n\n{missing}"] if missing else [])])
