"""Views of a window: scalars and images for Lightning's loggers, one line for the user.

Loggers show the few records that summarise a monitor; cells and heads go to records and images, never to scalars.
TensorBoard, which draws a chart of each scalar, does not get mere sample counts.
"""

from collections.abc import Mapping, Sequence

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lccp_sim.analysis.metrics import metric_of
from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record, overall_name
from lccp_sim.train.window.images import window_images


def log_scalars(loggers: Sequence[Logger], records: list[Record], moment: Moment, axis: str | None = None) -> None:
    """Log overall records to every logger under their overall names. `axis` is TensorBoard's, see `axis_position`.

    Other loggers get the tokens as an additional number.
    """
    scalars = overall_values(records)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(charted(scalars), step=axis_position(moment, axis))
        else:
            logger.log_metrics(scalars | {"tokens": float(moment.tokens)}, step=moment.step)


def log_images(loggers: Sequence[Logger], records: list[Record], moment: Moment, axis: str | None = None) -> None:
    """Log the maps of a window to TensorBoard."""
    boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    for name, image in (window_images(records) if boards else {}).items():
        for board in boards:
            board.experiment.add_image(name, image, axis_position(moment, axis), dataformats="HWC")


def axis_position(moment: Moment, axis: str | None) -> int:
    """The position of a moment on TensorBoard's axis (`run.tensorboard_axis`): its tokens, or its optimizer step."""
    return moment.tokens if axis == "tokens" else moment.step


def charted(scalars: Mapping[str, float]) -> dict[str, float]:
    """The scalars that have a chart: all except tallies."""
    return {name: value for name, value in scalars.items() if not metric_of(*name.split("/", 1)).tallies}


def overall_values(records: list[Record]) -> dict[str, float]:
    """The values that loggers show, those of records that summarise a monitor, by their names."""
    return {name: r.value for r in records if (name := overall_name(r)) is not None}


def window_line(moment: Moment, records: list[Record], seconds: float) -> str:
    """One line about a window for the user."""
    value = overall_values(records)
    parts = [f"step {moment.step:>6}", f"{moment.tokens:>11,} tokens"]
    shown = (
        ("needle/hit_frac", "hit {:.2f}"),
        ("needle/sentence_hit_frac", "sentence {:.2f}"),
        ("needle/answer_nll_nats", "answer NLL {:.3f}"),
        ("heads/retrieval_heads_count", "heads {:.0f}"),
        ("heads/initial_heads_mean_frac", "initial heads {:.2f}"),
        ("induction/second_copy_nll_nats", "2nd copy {:.2f}"),
        ("perplexity/nll_nats", "NLL {:.3f}"),
        ("perplexity/short_nll_nats", "short {:.3f}"),
        ("probe/exact_match_frac", "probe {:.2f}"),
    )
    parts += [text.format(value[name]) for name, text in shown if name in value]
    return " | ".join([*parts, f"{seconds:.1f} s"])
