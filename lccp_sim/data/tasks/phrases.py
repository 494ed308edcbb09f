"""The wording of sentences and questions in biographies: our own phrasings of six attributes.

Even places of each tuple are for fine-tuning, odd places for the evaluation, so no phrasing is shared. Design note:
cities and birthplaces come from one list, and only the phrasing distinguishes them.
"""

from typing import NamedTuple

from lccp_sim.data.tasks.names import BIRTHDAYS, CITIES, UNIVERSITIES
from lccp_sim.data.tasks.words import HOBBIES, MAJORS


class Attribute(NamedTuple):
    """Values and phrasings of one attribute; {x} is the person, {v} the value."""

    name: str
    values: tuple[str, ...]
    asked: tuple[str, str]
    standard: tuple[str, str]
    paraphrase: tuple[str, ...]
    pronoun: tuple[str, ...]


ATTRIBUTES = {
    "hobby": Attribute(
        "hobby",
        HOBBIES,
        ("What is the hobby of {x}?", "Which hobby does {x} have?"),
        ("The hobby of {x} is {v}.", "{x} has the hobby of {v}."),
        (
            "{x} likes {v} most.",
            "In free time {x} does {v}.",
            "{x} is fond of {v}.",
            "Nothing pleases {x} more than {v}.",
            "{x} spends Sundays with {v}.",
            "For fun {x} turns to {v}.",
        ),
        ("My hobby is {v}.", "I am happiest with {v}.", "I love {v}.", "After work I do {v}."),
    ),
    "birthplace": Attribute(
        "birthplace",
        CITIES,
        ("What is the birthplace of {x}?", "Where was {x} born?"),
        ("The birthplace of {x} is {v}.", "{x} was born in {v}."),
        (
            "{x} comes from {v}.",
            "{x} first saw the world in {v}.",
            "{v} is where the life of {x} began.",
            "The cradle of {x} stood in {v}.",
            "{x} is a native of {v}.",
            "The parents of {x} had their child in {v}.",
        ),
        ("My birthplace is {v}.", "I was born in {v}.", "I come from {v}.", "My life began in {v}."),
    ),
    "university": Attribute(
        "university",
        UNIVERSITIES,
        ("What is the university of {x}?", "Where did {x} graduate?"),
        ("The university of {x} was {v}.", "{x} graduated from {v}."),
        (
            "{x} was a student at {v}.",
            "{x} passed the final exams of {v}.",
            "{v} gave {x} a degree.",
            "{x} took lectures at {v} for years.",
            "{x} went to {v} after school.",
            "The diploma of {x} was signed at {v}.",
        ),
        ("My university was {v}.", "I graduated from {v}.", "I was a student at {v}.", "My degree is from {v}."),
    ),
    "major": Attribute(
        "major",
        MAJORS,
        ("What is the major of {x}?", "Which subject did {x} study?"),
        ("The major of {x} was {v}.", "{x} studied {v}."),
        (
            "{x} read many books on {v} as a student.",
            "The degree of {x} is in {v}.",
            "{x} was trained in {v}.",
            "{x} chose {v} as a subject.",
            "{x} wrote a thesis in {v}.",
            "At college {x} was busy with {v}.",
        ),
        ("My major was {v}.", "I studied {v}.", "I was trained in {v}.", "My subject at college was {v}."),
    ),
    "city": Attribute(
        "city",
        CITIES,
        ("What is the city of {x}?", "Where does {x} work?"),
        ("The city of {x} is {v}.", "{x} works in {v}."),
        (
            "{x} has a job in {v}.",
            "The office of {x} stands in {v}.",
            "{x} earns a living in {v}.",
            "Each morning {x} goes to work in {v}.",
            "The employer of {x} sits in {v}.",
            "{x} is employed in {v}.",
        ),
        ("My city is {v}.", "I work in {v}.", "I have a job in {v}.", "My office stands in {v}."),
    ),
    "birthday": Attribute(
        "birthday",
        BIRTHDAYS,
        ("What is the birthday of {x}?", "When was {x} born?"),
        ("The birthday of {x} is {v}.", "{x} was born on {v}."),
        (
            "{x} came into the world on {v}.",
            "The birth of {x} fell on {v}.",
            "On {v} a child was named {x}.",
            "The first day of {x} was {v}.",
            "{x} has lived since {v}.",
            "The passport of {x} gives the date {v}.",
        ),
        ("My birthday is {v}.", "I was born on {v}.", "I have lived since {v}.", "My first day was {v}."),
    ),
}
HEADINGS = ("{x} says:", "In the words of {x}:")
MULTI_ASKED = ("What is the {a} of each of these: {x}?", "List the {a} of every one of {x}.")
MENTORS = ("The mentor of {x} is {y}.", "{x} was guided by the mentor {y}.")
MENTOR_ASKED = ("What is the city of the mentor of {x}?", "In which city does the mentor who guided {x} work?")
