"""The texts of the needle monitor, in five variants with different surroundings of the needle.

Each has the form [before] needle [after] Question: ... Answer: needle verbatim (arXiv 2604.02650, section 5) and has
exactly the requested length. Pieces of token ids are concatenated, so every span is exact by construction. Design note:
the needle is inserted between two tokens of the haystack at the given depth, not at the end of a sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from lccp_sim.data.documents.facts import (
    HELDOUT_TEMPLATES,
    TRAIN_TEMPLATES,
    Fact,
    Template,
    count_evaluation_keys,
    draw_fact,
)
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.monitors.haystack import Haystack
from lccp_sim.monitors.values import Tags

Variant = Literal["single", "heldout", "distractor", "multikey", "interference"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)  # a variant's index seeds its items: append new ones
LEAST_FILLER = 2  # tokens of haystack, so that depths 0 and 1 differ
LEAST_FACTS = 2  # facts around the needle in a haystack of facts, for the same reason


class NeedleItem(NamedTuple):
    """One text: its tokens, the spans [start, stop) of needle and answer, and which answer tokens are the value.

    `control`: the text without its needle. `alone`: a single needle's text without its haystack.
    """

    id: str
    tags: Tags
    tokens: np.ndarray
    needle: tuple[int, int]
    answer: tuple[int, int]
    value_mask: np.ndarray
    control: np.ndarray | None
    alone: np.ndarray | None = None


@dataclass(frozen=True)
class Texts:
    """The builder of the texts. Source: arXiv 2604.02650, sections 5 and 7.3; arXiv 2404.06654 for `multikey`.

    single: a template that training may show. heldout: a template that training never shows. distractor: `distractors`
    more facts of the same template, with different keys, at random places. multikey: a haystack of such facts, with
    other text only to fill the start. interference: always `interference_tokens` of text between needle and question.
    """

    corpus: Corpus
    haystacks: Sequence[Haystack]
    depths: int
    distractors: int
    interference_tokens: int

    def templates(self, variant: Variant, length: int) -> dict[Template, int]:
        """Return the templates of a variant with the least length that holds each; all its facts have one length.

        Empty if the interference text alone fills the length. Raises ConfigError if `length` does not hold every
        template (with distractors: any template), or if the vocabulary has too few keys.
        """
        if variant == "interference" and length <= self.interference_tokens:
            return {}
        rng, least = np.random.default_rng(0), {}
        for template in HELDOUT_TEMPLATES if variant == "heldout" else TRAIN_TEMPLATES:
            fact = draw_fact(rng, template, self.corpus.tokenizer, evaluation=True)
            n = len(fact.needle_ids)
            around = {
                "distractor": LEAST_FILLER + self.distractors * n,
                "multikey": LEAST_FACTS * n,
                "interference": self.interference_tokens,
            }
            least[template] = 1 + around.get(variant, LEAST_FILLER) + len(fact.question_ids) + 2 * n
        needed = min(least.values()) if variant == "distractor" else max(least.values())
        more = {
            "distractor": f", {self.distractors} distractors",
            "multikey": f", {LEAST_FACTS} other facts",
            "interference": f", {self.interference_tokens} tokens of interference",
        }
        what = f"a needle{more[variant]}, the question" if variant in more else "a needle, its question"
        if length < needed:
            rule = f"{length} tokens do not hold {what} and the answer; use at least {needed}"
            raise ConfigError(f"monitors.needle.lengths ({variant}): {rule}")
        return least

    def haystack(self, i: int) -> Haystack:
        """Return the haystack of a cell's i-th text: they alternate, and each round of depths starts with the next."""
        return self.haystacks[(i % self.depths + i // self.depths) % len(self.haystacks)]

    def item(
        self, rng: np.random.Generator, templates: dict[Template, int], variant: Variant, length: int, i: int
    ) -> NeedleItem:
        """Build the i-th text of a cell, at the (i mod `depths`)-th depth.

        Tags: length, variant, and depth (the share of the haystack before the needle). Interference texts have no
        depth tag, because their length determines it.
        """
        depth = i % self.depths / (self.depths - 1)
        while templates[template := list(templates)[int(rng.integers(len(templates)))]] > length:
            pass
        fact = draw_fact(rng, template, self.corpus.tokenizer, evaluation=True)
        n = len(fact.needle_ids)
        room = length - 1 - len(fact.question_ids) - 2 * n
        others = {"distractor": self.distractors, "multikey": room // n}.get(variant, 0)
        facts = [fact, *_others(rng, fact, template, self.corpus, others)]
        filler = self.haystack(i).take(rng, room - others * n)
        if variant == "multikey":
            needle_place = round(depth * others)
            order = [*facts[1 : 1 + needle_place], fact, *facts[1 + needle_place :]]
            places = [(len(filler), each) for each in order]
        else:
            at = len(filler) - self.interference_tokens if variant == "interference" else round(depth * len(filler))
            drawn = [at, *(int(p) for p in rng.integers(0, len(filler) + 1, others))]
            places = sorted(zip(drawn, facts, strict=True), key=lambda place: place[0])
        pieces, done, start = [np.array([self.corpus.bos])], 0, 0
        for place, each in places:
            pieces += [filler[done:place], each.needle_ids]
            done = place
            if each is fact:
                start = sum(map(len, pieces)) - n
        tokens = np.concatenate([*pieces, filler[done:], fact.question_ids, fact.needle_ids])
        bare = np.concatenate([tokens[:1], fact.needle_ids, fact.question_ids, fact.needle_ids])
        alone = bare if variant == "single" else None
        tags: Tags = {"length": length, "depth": round(depth, 4), "variant": variant}
        if variant == "interference":
            del tags["depth"]
        spans = (start, start + n), (length - n, length)
        return NeedleItem(f"{variant}-{length}-{i}", tags, tokens, *spans, fact.value_mask, None, alone)

    def control(self, rng: np.random.Generator, item: NeedleItem, i: int) -> np.ndarray:
        """Return the tokens of the i-th text with the needle replaced by the same number of haystack tokens."""
        start, stop = item.needle
        control = item.tokens.copy()
        control[start:stop] = self.haystack(i).take(rng, stop - start)
        return control


def _others(rng: np.random.Generator, fact: Fact, template: Template, corpus: Corpus, count: int) -> list[Fact]:
    """Draw `count` facts of one template with distinct keys: two values for a key would make the question ambiguous."""
    keys = count_evaluation_keys(corpus.tokenizer)
    rule = f"there are {keys} keys for the facts of one text; use shorter lengths or a larger vocabulary"
    refuse(count >= keys, "monitors.needle.variants: other facts in a text", count, rule)
    facts = {fact.key_ids.tobytes(): fact}
    while len(facts) <= count:
        drawn = draw_fact(rng, template, corpus.tokenizer, evaluation=True)
        facts.setdefault(drawn.key_ids.tobytes(), drawn)
    return list(facts.values())[1:]
