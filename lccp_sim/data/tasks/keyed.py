"""Facts from the tokenizer's own words: one, three of one template, or a full text. The answer is a sentence.

These questions are for models too small to carry a name of several tokens over a long distance: the words are single
tokens, and the answer repeats the key before the value. The rest of the context is real text. Evaluation keys are the
pairs that no training text uses (`is_evaluation_key`).
"""

from collections.abc import Iterator

import numpy as np
import tokenizers

from lccp_sim.data.documents.facts import (
    HELDOUT_TEMPLATES,
    TRAIN_TEMPLATES,
    count_evaluation_keys,
    draw_words,
    enough_words,
)
from lccp_sim.data.tasks.question import Draft, Half


def facts_among(
    tokenizer: tokenizers.Tokenizer, rng: np.random.Generator, limit: int, held_out: Half, facts: int
) -> Draft:
    """`facts_single` (one fact) and `facts_distractor` (`facts` of one template, one of them asked), in real text."""
    return _draft(tokenizer, rng, held_out, facts, full=False)


def facts_multikey(tokenizer: tokenizers.Tokenizer, rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """`facts_multikey`: one fact in a text filled with other facts of its template."""
    return _draft(tokenizer, rng, held_out, 1, full=True)


def _draft(tokenizer: tokenizers.Tokenizer, rng: np.random.Generator, held_out: Half, facts: int, full: bool) -> Draft:
    templates = HELDOUT_TEMPLATES if held_out.phrasings else TRAIN_TEMPLATES
    template = templates[rng.integers(len(templates))]
    drawn = _different(tokenizer, rng, held_out.names)

    def state(key: str, value: str) -> str:
        return f" {template.statement.format(key=key, value=value)}"

    key, value = next(drawn)
    must = [state(key, value), *(state(*next(drawn)) for _ in range(facts - 1))]
    more = ((state(*other),) for other in drawn) if full else None
    mixed = [must[i] for i in rng.permutation(len(must))]
    asked, answer = template.question.format(key=key), must[0].strip()
    return Draft(mixed, more, asked, (value.strip(),), (key,), answer)


def _different(
    tokenizer: tokenizers.Tokenizer, rng: np.random.Generator, evaluation: bool
) -> Iterator[tuple[str, str]]:
    """Keys and values as they appear in a text, no key twice. Ends when all keys of the tokenizer are used."""
    seen: set[str] = set()
    words = len(enough_words(tokenizer)) ** 2
    while len(seen) < (count_evaluation_keys(tokenizer) if evaluation else words - count_evaluation_keys(tokenizer)):
        key, value = draw_words(rng, tokenizer, evaluation)
        if key not in seen:
            seen.add(key)
            yield key, value
