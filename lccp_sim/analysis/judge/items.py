"""Whether two runs measured the same items, so that their metrics may be compared item by item.

Design note: an item's id is its place in the grid of a monitor, not its text. So equal ids are not enough: the settings
that make the items, their held-out text and the tokenizer are also compared, if both runs have them. Records alone
still distinguish tokenizers, by the number of answer tokens.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lccp_sim.analysis.run import RunData, matching, tokenizer_rules
from lccp_sim.records import Tag

# Settings of a monitor that do not affect its items, or only their number, which ids show.
NEUTRAL = {"kind", "every", "tokens_per_forward", "heads", "decoded", "variants", "controls"}
CELL = ["length", "depth", "variant", "source", "task", "samples"]
MADE_BY = {"heads": ("needle", "heads", "induction")}  # monitors whose texts a monitor's records use


def unlike_items(
    a: RunData, b: RunData, monitor: str, metric: str, tags: Mapping[str, Tag] | None = None
) -> str | None:
    """Describe in one clause how the items of a metric differ between two runs; None if no difference is known.

    `tags`: of the compared records; other items do not matter. LongPPL averages key tokens, which two runs may have
    selected differently on the same texts.
    """
    return next(_differences(a, b, monitor, metric, tags or {}), None)


def _differences(a: RunData, b: RunData, monitor: str, metric: str, tags: Mapping[str, Tag]) -> Iterator[str]:
    if a.span(monitor) != b.span(monitor):
        yield f"span is {a.span(monitor)} in {a.name} and {b.span(monitor)} in {b.name}"
    for each in MADE_BY.get(monitor, (monitor,)):
        mine, theirs = a.setting(f"monitors.{each}"), b.setting(f"monitors.{each}")
        if isinstance(mine, dict) and isinstance(theirs, dict):
            for key in sorted({*mine, *theirs} - NEUTRAL):
                if mine.get(key) != theirs.get(key):
                    values = f"{mine.get(key)!r} in {a.name} and {theirs.get(key)!r} in {b.name}"
                    yield f"monitors.{each}.{key} is {values}"
            for source in _sources(mine):
                held = [_held_out(run, source) for run in (a, b)]
                if None not in held and held[0] != held[1]:
                    yield f"source {source} holds out {held[0]} tokens in {a.name} and {held[1]} in {b.name}"
    files = [run.path / "tokenizer.json" for run in (a, b)]
    if all(file.is_file() for file in files):
        texts = [file.read_text(encoding="utf-8") for file in files]
        if texts[0] != texts[1] and tokenizer_rules(texts[0]) != tokenizer_rules(texts[1]):
            yield f"the tokenizers of {a.name} and {b.name} differ"
    counts = [run.select("heads", "answer_tokens_count").value for run in (a, b)]
    if all(map(len, counts)) and not np.isclose(counts[0].iloc[-1], counts[1].iloc[-1]):
        yield f"answers have {counts[0].iloc[-1]:g} tokens in {a.name} and {counts[1].iloc[-1]:g} in {b.name}"
    ids = [_ids(run, monitor, metric, tags) for run in (a, b)]
    if all(ids) and ids[0] != ids[1]:
        alone = len(ids[0] ^ ids[1])
        yield f"{alone} of {len(ids[0] | ids[1])} items are in only one of {a.name} and {b.name}"
    if metric.startswith("longppl"):
        keys = [_keys(run) for run in (a, b)]
        if all(keys) and keys[0] != keys[1]:
            yield f"{a.name} and {b.name} have different key tokens (monitors.perplexity.longppl.keys_from)"


def _sources(settings: dict[str, Any]) -> list[str]:
    """Return the sources of text that a monitor's settings name."""
    named = [settings.get(key) for key in ("haystack", "sources", "source")]
    return [str(name) for each in named if each for name in ([each] if isinstance(each, str) else each)]


def _held_out(run: RunData, source: str) -> int | None:
    if not {"source", "held_out_tokens"} <= set(run.corpus):
        return None
    rows = run.corpus[run.corpus.source == source].held_out_tokens.dropna()
    return None if rows.empty else int(rows.iloc[0])


def _ids(run: RunData, monitor: str, metric: str, tags: Mapping[str, Tag]) -> set[tuple[str, str]]:
    rows = matching(run.items(monitor, metric), run.counted(monitor) | dict(tags))
    if rows.empty and monitor == "heads":  # summaries of heads use the texts on which heads are scored
        rows = run.items(monitor, "copy_hard_frac")
    cells = {tags: _cell(json.loads(tags)) for tags in rows.tags.unique()}
    return set(zip(rows.item_id, rows.tags.map(cells), strict=True))


def _cell(tags: dict[str, Any]) -> str:
    """Return an item's place in the grid of its monitor, independent of model and arm."""
    return json.dumps({name: tags[name] for name in CELL if name in tags})


def _keys(run: RunData) -> dict[str, float]:
    """Return the number of key tokens of each stretch."""
    rows = run.items("perplexity", "key_tokens_count")
    return dict(zip(rows.item_id, rows.value, strict=True))
