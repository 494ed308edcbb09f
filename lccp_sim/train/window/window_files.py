"""The files of a window in another trainer's loop: records, samples, times, and TensorBoard's views."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from lccp_sim.monitors.values import Moment
from lccp_sim.train.saved.journal import Journal
from lccp_sim.train.window.logs import axis_position, log_images, log_scalars, window_line
from lccp_sim.train.window.suite import WindowResult
from lccp_sim.train.window.tensorboard import log_charts


class WindowFiles:
    """A writer of windows to `directory`. TensorBoard drops everything after `last`, the last window that is kept.

    `axis`: see `run.tensorboard_axis`.
    """

    def __init__(self, directory: Path, axis: str | None, last: Moment | None = None):
        self.journal, self.axis = Journal(directory), axis
        purge = axis_position(last, axis) + 1 if last else 0
        self.board = TensorBoardLogger(directory, name="tensorboard", version="", purge_step=purge)
        self.charted = False

    def write(self, seen: WindowResult, moment: Moment) -> str:
        """Write a window, and return a line for the user."""
        self.journal.write_window(moment.step, seen.records, seen.values, seen.timing)
        self.journal.seal()
        if not self.charted:
            log_charts(self.board, seen.records)
            self.charted = True
        log_scalars([self.board], seen.records, moment, self.axis)
        log_images([self.board], seen.records, moment, self.axis)
        self.board.experiment.flush()
        return window_line(moment, seen.records, sum(row["seconds"] for row in seen.timing))

    def close(self) -> None:
        """Close TensorBoard's file."""
        self.board.finalize("success")
