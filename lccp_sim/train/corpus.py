"""The printed view of a corpus: a line for each pool before any training, then the warnings."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lccp_sim.analysis.format import tokens
from lccp_sim.config import Config
from lccp_sim.data.pools import Corpus
from lccp_sim.data.usage import Usage, repetition, usage

CUTS = ("split", "split tokens", "pad")  # the first of documents


def usage_of(corpus: Corpus, config: Config) -> list[Usage]:
    """What the run takes from each pool in total; empty if its objective makes its own rows."""
    if not config.objective.reads_pools:
        return []
    return usage(corpus, config.run.steps * config.run.batch_tokens // config.run.context_tokens)


def print_corpus(console: Console, corpus: Corpus, config: Config) -> None:
    """Print the corpus, a line for each pool, then the held-out shares and the warnings."""
    used, run = usage_of(corpus, config), config.run
    title = f"corpus {corpus.hash[:12]}: {run.tokens:,} tokens in rows of {run.context_tokens:,}, {config.data.packing}"
    changes = ["at end"] if config.data.schedule else []
    table = _table(title, "docs", "tokens", "share", *changes, "rows", "epochs", *CUTS)
    for each in used:
        ends = [f"{each.share_end:.1%}"] if changes else []
        table.add_row(
            each.source, each.bucket, f"{each.packed.documents:,}", tokens(each.packed.tokens),
            f"{each.share_start:.1%}", *ends, f"{each.size:,}", f"{each.epochs:.2f}", *_cuts(each),
        )  # fmt: skip
    console.print(table)
    held = ", ".join(f"{line['source']} {line['held_out_frac']:.1%}" for line in corpus.table)
    console.print(f"held out: {held}", markup=False)
    for line in corpus.table:
        if line["left_out"]:
            counts = ", ".join(f"{count} {reason}" for reason, count in line["left_out"].items())
            console.print(f"left out of {line['source']}: {counts} (--left-out names them)", markup=False)
    for warning in [*corpus.warnings, *repetition(used)]:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def print_left_out(console: Console, corpus: Corpus) -> None:
    """Print a line for each file and row that is not a document."""
    for name, left_out in corpus.left_out.items():
        for each in left_out:
            console.print(f"left out of {name}: {each.name} ({each.reason})", markup=False, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    """A table of pools without lines between columns, so that eleven columns fit into 100 characters."""
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("source", "bucket", *columns):
        table.add_column(column, justify="left" if column in ("source", "bucket", "packing") else "right")
    return table


def _cuts(each: Usage) -> tuple[str, str, str]:
    return f"{each.cut_documents_frac:.1%}", f"{each.cut_tokens_frac:.1%}", f"{each.padding_frac:.1%}"


def print_packings(console: Console, used: dict[str, list[Usage]]) -> None:
    """Print a line for each pool and packing."""
    table = _table("the same documents under each packing", "packing", "rows", *CUTS)
    found = {(each.source, each.bucket, packing): each for packing, pools in used.items() for each in pools}
    for source, bucket, packing in sorted(found, key=lambda key: key[:2]):
        each = found[source, bucket, packing]
        table.add_row(source, bucket, packing, f"{each.size:,}", *_cuts(each))
    console.print(table)
