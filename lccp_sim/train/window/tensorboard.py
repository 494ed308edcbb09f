"""TensorBoard's contents in addition to scalars and images: a layout by tier, the config, and the verdict so far.

All of it is written before the checkpoint of its window, so that a resumed run neither loses nor repeats it. The names
of texts put the verdict first, because TensorBoard sorts them. Design note: HPARAMS is written once, at the end, with
the final scalars as its metrics (a session without metrics is an empty row there). TensorBoard keeps the first config
that it reads, so keys that may change when a run is extended, above all run.tokens, are left out.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lccp_sim.analysis.format import percent, tokens
from lccp_sim.analysis.metrics import METRICS, metric_of
from lccp_sim.analysis.report.verdict import FEW, Verdict, first_screen, verdict_markdown
from lccp_sim.analysis.run import load_run
from lccp_sim.config import FREE, Config, flatten, is_one_of
from lccp_sim.configure.load import config_keys, plain_config
from lccp_sim.data.pools import Corpus
from lccp_sim.monitors.values import Moment
from lccp_sim.records import OF_SENTENCE, TIERS, Record, overall_name
from lccp_sim.train.window.callback import MonitorCallback
from lccp_sim.train.window.logs import axis_position, charted, overall_values

ORDER = (*TIERS[1:], TIERS[0])  # measurements first, then the training
TRAIN = tuple(("training", "train", metric) for metric in ("loss_nats", "lr", "grad_norm", "aux_loss"))
CORPUS_COLUMNS = (
    "source",
    "kind",
    "share",
    "documents",
    "tokens",
    "held_out_tokens",
    "cut_token_frac",
)  # fits the width of the tab
Charts = dict[str, dict[str, list[Any]]]


class Board:
    """A writer to TensorBoard after the windows of `monitors`; does nothing if no logger is TensorBoard's.

    The verdict is written at each window from which the rule can judge a signal, and at the last window.
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

    def draw(self, trainer: L.Trainer, moment: Moment) -> list[Record]:
        """Write this window's contents; return no records."""
        windows, boards = self.monitors.suite.windows, boards_of(trainer.loggers)
        if not boards:
            return []
        records, at = self.monitors.journal.records(), axis_position(moment, self.monitors.axis)
        first, last = moment.step == windows[0], moment.step == windows[-1]
        texts = dict(self.texts) if first else {}
        if said := self._verdict(last):
            texts["verdict"] = said
        for board in boards:
            if first:
                log_charts(board, records, self.train)
            for name, text in texts.items():
                board.experiment.add_text(name, text, at)
            for summary in hparams(dict(self.keys), charted(overall_values(records))) if last else ():
                board.experiment._get_file_writer().add_summary(summary, at)
        return []

    def _verdict(self, last: bool) -> str:
        """The first screen so far in Markdown, or "" if the rule has too few windows for any signal.

        An error in judging must not cost the run a checkpoint, so it is only reported.
        """
        try:
            said: Verdict = first_screen(load_run(self.monitors.journal.directory))
        except Exception as error:  # noqa: BLE001
            self.monitors.say(f"warning: no verdict for TensorBoard ({error}); `lccp report` says more")
            return f"No verdict: {error}"
        judged = last or any(row.status != FEW for row in said.signals)
        return verdict_markdown(said) if judged else ""


def boards_of(loggers: Sequence[Logger]) -> list[TensorBoardLogger]:
    """The loggers that are TensorBoard's."""
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]


def log_charts(board: TensorBoardLogger, records: Iterable[Record], more: Iterable[tuple[str, str, str]] = ()) -> None:
    """Make charts of the Custom Scalars tab from the scalars of `records` and `more` (tier, monitor, metric)."""
    records = list(records)
    tier = {name: r.tier for r in records if (name := overall_name(r)) is not None}
    scalars = [(tier[name], name.split("/", 1)) for name in charted(overall_values(records))]
    named = [(of, monitor, metric) for of, (monitor, metric) in scalars]
    board.experiment.add_custom_scalars(charts([*named, *more]))


def charts(scalars: Iterable[tuple[str, str, str]]) -> Charts:
    """{tier: {title: ["Multiline", [tags]]}} of (tier, monitor, metric): a chart per metric, in the catalogue's order.

    The number of the full answer sentence shares the chart of the value's. TensorBoard matches a tag as a regular
    expression at its beginning, hence the anchors.
    """
    order = {each.key: number for number, each in enumerate(METRICS)}
    rows = {scalar: metric_of(scalar[1], scalar[2].removeprefix(OF_SENTENCE)) for scalar in scalars}
    found: dict[str, dict[str, list[str]]] = {tier: {} for tier in ORDER}
    for (tier, monitor, name), row in sorted(rows.items(), key=lambda each: order.get(each[1].key, len(order))):
        found[tier].setdefault(row.title, []).append(f"^{re.escape(f'{monitor}/{name}')}$")
    return {
        tier: {title: ["Multiline", tags] for title, tags in group.items()} for tier, group in found.items() if group
    }


def texts_of(config: Config, corpus: Corpus) -> dict[str, str]:
    """The resolved config and the table of the corpus, in Markdown."""
    plain = yaml.safe_dump(plain_config(config), sort_keys=False, allow_unicode=True)
    notes = [f"- warning: {warning}" for warning in corpus.warnings]
    table = "\n".join([*corpus_markdown(corpus.table), "", *notes])
    return {"what was run/config": f"```yaml\n{plain}```", "what was run/corpus": table}


def corpus_markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a Markdown table: the columns CORPUS_COLUMNS, one line per source."""
    plain: dict[str, Callable[[Any], str]] = {"share": percent, "cut_token_frac": percent, "source": str, "kind": str}
    cells = [[plain.get(name, tokens)(row[name]) for name in CORPUS_COLUMNS] for row in rows]
    names = [name.replace("token_frac", "tokens").replace("_", " ") for name in CORPUS_COLUMNS]
    return [f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells)]


def keys_of(config: Config) -> dict[str, Any]:
    """The keys of a run that change its training, flat: numbers and text; other values as JSON."""
    flat = flatten({name: group for name, group in plain_config(config).items() if name != "monitors"})
    free = config_keys(*FREE)
    kept = {key: value for key, value in flat.items() if not is_one_of(key, free)}
    plain = {key for key, value in kept.items() if isinstance(value, str | int | float) and not isinstance(value, bool)}
    return {key: value if key in plain else json.dumps(value) for key, value in kept.items()}
