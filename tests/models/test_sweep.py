"""Every causal LM of transformers is measured or refused in one line: some in each run of the tests, all on demand."""

import json
from pathlib import Path

import pytest
import transformers

from bench.transformers_sweep import MODEL_TYPES, OUTCOMES, RESULT, Texts, outcome, texts

ROOT = Path(__file__).parents[2]
FOUND = json.loads(RESULT.read_text())
KINDS = {  # model type -> why it is among these
    "bert": "a head of several layers",
    "blenderbot": "a decoder of other layers than its encoder",
    "blt": "no number of layers",
    "cpmant": "looks ahead",
    "ctrl": "a table of positions that is no embedding",
    "deepseek_v32": "chooses keys where it knows its attention by name",
    "deepseek_v4": "compressed keys",
    "diffllama": "attends twice",
    "doge": "a mask that is a bias",
    "gemma4_assistant": "cannot be built alone",
    "gptj": "positions by gather",
    "granite_swa": "sinks that its own rows leave out",
    "inkling_text": "a bias by position",
    "jamba": "a hybrid",
    "llama4_text": "a base model that is the whole",
    "mpt": "ALiBi that ends",
    "opt": "positions from 2",
    "prophetnet": "several streams",
    "xlstm": "no attention",
}


@pytest.fixture(scope="module")
def given() -> Texts:
    transformers.logging.set_verbosity_error()
    return texts()


def check(model_type: str, given: Texts) -> None:
    """None; the outcome is one of those that may be, and as in the results where versions are the same."""
    found = outcome(model_type, given)
    assert found.what in OUTCOMES, found.detail
    if transformers.__version__ == FOUND["transformers"]:
        known = FOUND["models"][model_type]
        assert found == (known["outcome"], known["detail"])


@pytest.mark.parametrize("model_type", KINDS)
def test_each_kind_is_measured_or_refused_in_one_line(model_type: str, given: Texts) -> None:
    check(model_type, given)


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("model_type", sorted(set(MODEL_TYPES) - set(KINDS)))
def test_every_class_is_measured_or_refused_in_one_line(model_type: str, given: Texts) -> None:
    check(model_type, given)


def test_the_documents_count_what_was_found() -> None:
    outcomes = [each["outcome"] for each in FOUND["models"].values()]
    counts = {what: outcomes.count(what) for what in OUTCOMES}
    assert sum(counts.values()) == len(outcomes) and counts == FOUND["counts"]
    compared = sum(each["detail"] == "attention compared" for each in FOUND["models"].values())
    assert compared == counts["measured"]
    line = (
        f"Of the {len(outcomes)} causal LMs of transformers {FOUND['transformers']}, built tiny, "
        f"{counts['measured']} are measured, {counts['measured without heads']} measured without head scores, "
        f"{counts['refused']} refused in one line, and {counts['not built']} could not be built; none ends in a "
        "traceback."
    )
    assert line in (ROOT / "docs" / "huggingface.md").read_text().replace("`", "")
