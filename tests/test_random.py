"""Random configs and records: accepted and usable, or refused in one line for each problem; never a traceback.

`LCCP_EXAMPLES=10000 pytest tests/test_random.py` tries so many of each.
"""

import copy
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lccp_sim.config import flatten
from lccp_sim.configure.load import load_config
from lccp_sim.errors import ConfigError, DamagedRecords
from lccp_sim.models.loss import cross_entropy
from lccp_sim.models.transformer import Transformer, initialise
from lccp_sim.records import TIERS, Record, read_records
from tests import home
from tests.train.tiny import plain

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

EXAMPLES = int(os.environ.get("LCCP_EXAMPLES", 60))
many = hypothesis.settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
SHARED = tempfile.TemporaryDirectory(prefix="lccp-random-")  # a config whose texts are not there is refused
TREE = plain(Path("runs"), home.build(Path(SHARED.name) / "home"))
MORE = [
    "model.qk_norm", "model.window_tokens", "model.full_attention_every", "model.num_shared_experts", "model.experts",
    "model.num_dense_layers", "model.d_dense", "model.tie_embeddings", "model.qkv_bias", "model.previous_token_heads",
    "model.router.scores", "model.router.num_groups", "model.router.num_groups_kept", "model.router.scale",
    "model.attention", "model.num_experts_per_token", "run.micro_batch_tokens", "run.recompute_every", "run.shard",
    "run.ep", "run.cp", "run.checkpoints", "run.stopping", "run.precision", "run.loggers", "optim.schedule",
    "optim.decay_steps", "optim.clip_norm", "data.packing", "data.order_seed", "monitors.precision", "nothing.of.ours",
]  # fmt: skip
KEYS = sorted({*flatten(TREE), *MORE})
WORDS = ["", "auto", "none", "full", "window", "base", "yarn", "sigmoid", "softmax", "after_rope", "full_width"]
WORDS += [
    "cosine",
    "wsd",
    "background",
    "bf16",
    "file",
    "prose",
    "../up",
    "\u0000",
    "a\nb",
    "${run.name}",
    "!!python/name:os",
]
NUMBERS = st.integers(-3, 80) | st.sampled_from([2**31, 2**63, 10**30]) | st.floats(allow_nan=True, allow_infinity=True)
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from(WORDS)
VALUES = (
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.sampled_from(["kind", *WORDS]), SCALARS, max_size=3)
)


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The tiny run's plain values with dotted keys set."""
    tree = copy.deepcopy(TREE)
    for key, value in changes.items():
        *path, last = key.split(".")
        branch = tree
        for part in path:
            if not isinstance(branch.get(part), dict):
                branch[part] = {}
            branch = branch[part]
        branch[last] = value
    return tree


CHANGES = st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3)


def tried(changes: dict[str, Any]) -> str:
    """What became of the tiny run with these changes: `refused`, `trained` a step, or accepted but too `large` here."""
    try:
        config = load_config(changed(changes))
    except ConfigError as error:
        assert error.problems and all(line.strip() and "\n" not in line for line in error.problems), error.problems
        return "refused"
    json.dumps(config.plain(), allow_nan=True)
    c = config.model
    if (
        max(
            c.d_model,
            c.d_expert,
            c.d_dense or 0,
            c.num_heads * c.d_head,
            c.num_layers,
            c.num_experts,
            c.num_shared_experts,
        )
        > 4096
    ):
        return "large"
    rows = c.vocabulary(400)
    T = min(config.run.context_tokens, 128)
    model = initialise(Transformer(c, rows), config.seed)
    tokens = torch.randint(0, min(rows, 400), (1, T), generator=torch.Generator().manual_seed(0))
    out = model(tokens, bounds=torch.tensor([0, 1, T]) if T > 1 else None, sparse=True)
    loss = cross_entropy(out.hidden_BTD[0], model.head_weight, tokens[0], T) + out.balance_loss + out.z_loss
    loss.backward()
    assert math.isfinite(loss.item())
    torch.optim.AdamW(model.parameters(), lr=config.optim.lr).step()
    return "trained"


def test_the_run_that_is_changed_is_itself_accepted() -> None:
    assert tried({}) == tried({"seed": 5}) == "trained"


@pytest.mark.parametrize("value", [[], {}, {"file": 43}, 1, None])
def test_a_kind_that_is_no_name_is_refused(value: Any) -> None:
    assert tried({"data.sources.prose.kind": value}) == "refused"


@many
@hypothesis.given(CHANGES)
def test_a_random_config_takes_a_step_or_is_refused_line_by_line(changes: dict[str, Any]) -> None:
    tried(changes)


TAGS = st.dictionaries(
    st.text(max_size=8), st.text(max_size=8) | st.integers(-(2**40), 2**40) | st.booleans(), max_size=3
)
RECORDS = st.builds(
    Record,
    step=st.integers(0, 2**40), tokens=st.integers(0, 2**60), tier=st.sampled_from(TIERS), monitor=st.text(max_size=9),
    metric=st.text(max_size=9), value=st.floats(allow_nan=False, allow_infinity=False), n=st.integers(0, 2**40),
    stderr=st.none() | st.floats(allow_nan=False, allow_infinity=False), tags=TAGS,
)  # fmt: skip


def written(path: Path, records: list[Record]) -> None:
    path.write_bytes("".join(record.line() for record in records).encode("utf-8", "surrogatepass"))


def damaged(path: Path, rng: Any) -> str:
    """What became of a file of records with up to three random bytes changed: `refused`, or `read` as records."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    try:
        found, _ = read_records(path)
    except DamagedRecords as error:
        assert "line " in str(error) and "\n" not in str(error)
        return "refused"
    assert all(isinstance(record, Record) for record in found)
    return "read"


@many
@hypothesis.given(st.lists(RECORDS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_records_come_back_and_damaged_ones_are_refused_or_still_records(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], rng: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "records.jsonl"
    written(path, records)
    assert read_records(path) == (records, None)
    damaged(path, rng)
