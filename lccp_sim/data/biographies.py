"""Short biographies and questions about them: the texts of the fine-tuning probe.

After LongBio (arXiv 2506.02921): people with attributes, one question per attribute. People, values and phrasings of
the evaluation are never seen in fine-tuning. All inventories are our own.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from lccp_sim.data.tokenizer import encode

FIRST = (
    "Ada Alma Anton Arno Basil Beata Bela Boris Carla Cora Dario Della Edgar Elena Elmar Emil Enzo Erna Fabio Felix "
    "Flora Frida Gerda Greta Gustav Hanna Helga Hugo Ida Igor Ines Irma Ivan Jana Jasper Jonas Judith Karin Kaspar "
    "Klara Lars Leona Liam Livia Lorenz Luca Magda Marco Marta Milan Mira Nadia Nils Nora Olaf Olga Oscar Otto Paula "
    "Petra Pablo Quentin Rafael Rita Robin Rosa Ruben Samuel Selma Simon Sofia Stella"
).split()
LAST = (
    "Abel Arndt Bacher Balint Becker Berg Bianchi Blom Brandt Braun Calder Carver Colmar Conti Dahl Decker Dorn Dumont "
    "Eckert Egger Falk Farkas Ferrer Fink Gallo Garde Glaser Graf Haas Hagen Hartley Heller Holm Huber Jansen Jost "
    "Kaiser Keller Kemp Koller Kovac Kraus Lambert Lang Lindner Lorca Lund Mason Mercer Meyer Molnar Moser Nagel Novak "
    "Olsen Palmer Pavel Perez Pohl Quast Rader Reiter Ricci Roth Sandor Sauer Seidel Sommer Steiner Stone Thaler Tomas "
    "Urban Varga Vogel Wagner Weber Winkler Wolf Zander Zeller"
).split()
VALUES = {
    "hobby": (
        "archery baking canoeing chess climbing cycling dancing diving fencing fishing gardening hiking juggling "
        "knitting painting pottery reading rowing running sailing sewing singing skating skiing surfing swimming "
        "tennis walking weaving writing"
    ).split(),
    "city": (
        "Aarhus Basel Bergen Bilbao Bologna Bremen Bruges Cork Dresden Galway Geneva Genoa Ghent Graz Krakow Leeds "
        "Leipzig Lille Linz Lyon Malmo Murcia Nantes Oslo Porto Prague Riga Seville Tartu Turin Turku Utrecht Verona "
        "Vilnius York Zagreb"
    ).split(),
    "major": (
        "algebra anatomy botany chemistry design drama ecology economics ethics geology geometry history law "
        "linguistics literature logic medicine music nursing optics physics poetry rhetoric robotics statistics "
        "surgery theology zoology"
    ).split(),
}
STATEMENTS = {
    "hobby": ("The hobby of {x} is {v}.", "{x} likes {v} most.", "In free time {x} does {v}."),
    "city": ("The city of {x} is {v}.", "{x} works in {v}.", "The office of {x} stands in {v}."),
    "major": ("The major of {x} was {v}.", "{x} studied {v}.", "The degree of {x} is in {v}."),
}
QUESTIONS = {attribute: f"What is the {attribute} of {{x}}?" for attribute in VALUES}
HELD_OUT_EVERY = 3


class Question(NamedTuple):
    """Tokens of context, question and answer (with its stop), and where the answer begins."""

    tokens: np.ndarray
    answer_start: int
    task: str


def draw_question(rng: np.random.Generator, tokenizer: Tokenizer, bos: int, length: int, evaluation: bool) -> Question:
    """A text that asks one attribute of one person: as many biographies as `length` tokens hold, but at least the one.

    Tasks: `standard` states the attribute as in fine-tuning, `paraphrase` (evaluation only) in a phrasing that
    fine-tuning never shows. The answer is the value, ended by a newline; it is tokenized apart from the question.
    """
    names = _names(rng, evaluation)
    task = "paraphrase" if evaluation and rng.random() < 0.5 else "standard"
    who, attribute = next(names), list(VALUES)[int(rng.integers(3))]
    bio, value = _biography(rng, who, attribute, evaluation, task)
    question = encode(tokenizer, f"\nQuestion: {QUESTIONS[attribute].format(x=who)}\nAnswer:")
    answer = encode(tokenizer, f" {value}") + encode(tokenizer, "\n")
    pieces = [encode(tokenizer, bio)]
    used = 1 + len(question) + len(answer) + len(pieces[0])
    for name in names:
        other, _ = _biography(rng, name, attribute, evaluation, task)
        ids = encode(tokenizer, other)
        if used + len(ids) > length:
            break
        pieces.append(ids)
        used += len(ids)
    order = rng.permutation(len(pieces))
    tokens = [bos, *(token for i in order for token in pieces[i]), *question, *answer]
    return Question(np.array(tokens), len(tokens) - len(answer), task)


def _names(rng: np.random.Generator, evaluation: bool) -> Iterator[str]:
    """All names in random order; evaluation has first names of its own."""
    firsts = [name for i, name in enumerate(FIRST) if (i % HELD_OUT_EVERY == 0) == evaluation]
    for which in rng.permutation(len(firsts) * len(LAST)):
        yield f"{firsts[which // len(LAST)]} {LAST[which % len(LAST)]}"


def _biography(rng: np.random.Generator, who: str, asked: str, evaluation: bool, task: str) -> tuple[str, str]:
    """A biography of one line, and the value of the asked attribute."""
    sentences, answer = [], ""
    for attribute in rng.permutation(list(VALUES)):
        pool = [v for i, v in enumerate(VALUES[attribute]) if (i % HELD_OUT_EVERY == 0) == evaluation]
        value = pool[int(rng.integers(len(pool)))]
        phrasing = STATEMENTS[attribute][2 if task == "paraphrase" else int(rng.integers(2))]
        sentences.append(phrasing.format(x=who, v=value))
        if attribute == asked:
            answer = value
    return "\n" + " ".join(sentences), answer
