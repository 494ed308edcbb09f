"""The probe's questions: drawn again they are the same, they fit, and a plain reader of the text finds each answer."""

import re
import time
from collections import Counter

import numpy as np
import pytest
import tokenizers

from lccp_sim.data.documents import facts
from lccp_sim.data.spans import encode_after
from lccp_sim.data.tasks import (
    KEYED,
    REAL_TEXT,
    TASKS,
    Half,
    Question,
    completion,
    counting,
    draw_lesson,
    names,
    needles,
    score_text,
    words,
)
from lccp_sim.data.tasks.phrases import ATTRIBUTES, HEADINGS, MENTOR_ASKED, MENTORS, MULTI_ASKED
from lccp_sim.data.tasks.question import Draft, half
from lccp_sim.data.tasks.question import lesson as build_lesson
from lccp_sim.data.tokenizer import bos_id, encode, train_tokenizer
from lccp_sim.errors import ConfigError
from tests.monitors.worlds import WORDS

LIMITS = (320, 700, 4500)  # a task's small form twice, and its full one
LISTS = {"FIRST": 200, "LAST": 200, "CITIES": 200, "UNIVERSITIES": 200, "BIRTHDAYS": 200, "HOBBIES": 60, "MAJORS": 60}
LISTS |= {"ADJECTIVES": 100, "NOUNS": 100, "COUNTED_WORDS": 200, "VERB_WORDS": 10, "FORMS": 10}


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    pools = [pool for module in (names, words) for key, pool in vars(module).items() if key in LISTS]
    text = " ".join(word for pool in pools for word in pool)
    return train_tokenizer(1500, iter([text, " ".join(WORDS), "\nQuestion: What is the\nAnswer: 1234\n"] * 3))


def fill(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.resize(fill.text[int(rng.integers(20)) :], n)  # type: ignore[attr-defined]


def draw(
    tokenizer: tokenizers.Tokenizer, task: str, seed: int, limit: int, names: bool, phrasings: bool | None = None
) -> Question:
    """A question of the held-out names and phrasings, where true; `phrasings` left out are as the names."""
    fill.text = np.array(encode(tokenizer, " ".join(WORDS)))  # type: ignore[attr-defined]
    chosen = Half(names, names if phrasings is None else phrasings)
    return TASKS[task](np.random.default_rng(seed), tokenizer, bos_id(tokenizer), limit, chosen, fill)


def parts(tokenizer: tokenizers.Tokenizer, question: Question) -> tuple[str, str, str]:
    """Context, the line of the question, and the answer without its space and its stop."""
    text = tokenizer.decode(question.tokens[: question.answer_start].tolist())
    context, asked = text.split("\nQuestion: ")
    answer = tokenizer.decode(question.tokens[question.answer_start :].tolist())
    assert asked.endswith("\nAnswer:") and answer[0] == " " and answer[-1] == "\n"
    return context, asked.removesuffix("\nAnswer:"), answer[1:-1]


def pattern(template: str) -> str:
    """A template as an expression with its fields as named groups, those met again as references."""
    seen: set[str] = set()

    def field(match: re.Match) -> str:
        name = match[1]
        return f"(?P={name})" if name in seen else seen.add(name) or f"(?P<{name}>[^.\n]+?)"

    return re.sub(r"\\{(\w+)\\}", field, re.escape(template))


def match(template: str, text: str) -> dict[str, str]:
    return re.fullmatch(pattern(template), text).groupdict()


def stated(template: str, context: str, **known: str) -> list[dict[str, str]]:
    """What a template says in a text wherever its known fields are these."""
    shown = template
    for name, value in known.items():
        shown = shown.replace("{" + name + "}", value)
    hits = [found.groupdict() for found in re.finditer(pattern(shown), context)]
    return [{name: value.strip() for name, value in hit.items()} for hit in hits]


def solve_biographies(style: str, context: str, asked: str, held_out: bool) -> str:
    for attribute in ATTRIBUTES.values():
        if who := re.fullmatch(pattern(half(attribute.asked, held_out)[0]), asked):
            break
    name = who["x"]
    if style == "pronoun":
        (heading,) = [HEADINGS[held_out].format(x=name)]
        (context,) = [line for line in context.split("\n") if line.startswith(heading)]
    found = {
        hit["v"]
        for template in half(getattr(attribute, style), held_out)
        for hit in stated(template, context, x=name)
        if hit["v"] in attribute.values
    }
    (value,) = found
    return value


def solve_multi(context: str, asked: str, held_out: bool) -> str:
    fields = match(MULTI_ASKED[held_out], asked)
    template = half(ATTRIBUTES[fields["a"]].standard, held_out)[0]
    found = [
        [hit["v"] for hit in stated(template, context, x=who) if hit["v"] in ATTRIBUTES[fields["a"]].values]
        for who in fields["x"].split(", ")
    ]
    return ", ".join(value for (value,) in found)


def solve_two_hop(context: str, asked: str, held_out: bool) -> str:
    ((mentor),) = [hit["y"] for hit in stated(MENTORS[held_out], context, **match(MENTOR_ASKED[held_out], asked))]
    (city,) = [hit["v"] for hit in stated(half(ATTRIBUTES["city"].standard, held_out)[0], context, x=mentor)]
    return city


def solve_needle(template: str, context: str, asked: str, held_out: bool) -> str:
    fields = match(template, asked)
    found = [
        hit["value"]
        for key in fields["key"].split(", ")
        for hit in stated(needles.NEEDLES[held_out], context, key=key)
        if hit["kind"] == fields["kind"]
    ]
    return ", ".join(found)


def solve_variables(context: str, asked: str, held_out: bool) -> str:
    value = match(needles.CHAIN_ASKED[held_out], asked)["v"]
    holds = {value}
    for line in context.split("\n"):
        if hit := re.fullmatch(pattern(needles.CHAIN[held_out][0]), line):
            if hit["v"].split(" ")[-1] in holds:
                holds.add(hit["x"])
    return ", ".join(name for name in dict.fromkeys(re.findall(r"[A-Z]{3,5}", context)) if name in holds)


def solve_common(context: str, asked: str, held_out: bool) -> str:
    n = int(match(counting.COMMON_ASKED[held_out], asked)["n"])
    counts = Counter(context.split("\n")[1:])
    top = {word for word, _ in counts.most_common(n)}
    assert len(set(counts.values())) == 2 and min(counts[word] for word in top) in (6, 30)
    return ", ".join(word for word in counts if word in top)


def solve_frequent(context: str, asked: str, held_out: bool) -> str:
    ranked = Counter(context.split("\n")[1:]).most_common(5)
    assert asked == counting.FREQUENT_ASKED[held_out] and ranked[0][0] == "..."
    assert all(a[1] > b[1] for a, b in zip(ranked, ranked[1:], strict=False))
    return ", ".join(word for word, _ in ranked[1:4])


def solve_coreference(context: str, asked: str, held_out: bool) -> str:
    (nth,) = [nth for nth in counting.NTH[held_out] if f" {nth} " in asked]
    fields = match(counting.ROUND_ASKED[held_out].replace("{nth}", nth), asked)
    request = counting.REQUESTS[held_out].format(form=fields["form"], topic=fields["topic"])
    replies = [each.split("\n")[0] for each in context.split(request)[1:]]
    assert len(replies) in (2, 3)
    return fields["prefix"] + replies[counting.NTH[held_out].index(nth)]


def solve_fact(context: str, asked: str, held_out: bool) -> str:
    """The statement of the asked fact; key and value are runs of words, so both are read by the words around them."""
    templates = facts.HELDOUT_TEMPLATES if held_out else facts.TRAIN_TEMPLATES
    asking = {
        each: re.fullmatch(re.escape(each.question).replace(r"\{key\}", "(?P<key>.+)"), asked) for each in templates
    }
    ((template, hit),) = [(each, hit) for each, hit in asking.items() if hit]
    before, after = template.statement.format(key=hit["key"], value="|").split("|")
    (value,) = {value for value in re.findall(f" {re.escape(before)}(.+?){re.escape(after)}", context)}
    return f"{before}{value}{after}"


SOLVERS = {
    **{f"longbio_{style}": (solve_biographies, style) for style in ("standard", "paraphrase", "pronoun")},
    "longbio_multi": (solve_multi,),
    "two_hop": (solve_two_hop,),
    **{f"niah_{task}": (solve_needle, needles.ASKED) for task in ("single_1", "single_3", "multikey_2")},
    "niah_multivalue": (solve_needle, needles.ASKED_ALL),
    "niah_multiquery": (solve_needle, needles.ASKED_EACH),
    **{f"variable_tracking_{hops}": (solve_variables,) for hops in (1, 2, 3, 4)},
    "common_words": (solve_common,),
    "frequent_words": (solve_frequent,),
    "coreference": (solve_coreference,),
    **dict.fromkeys(KEYED, (solve_fact,)),
}


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_a_plain_reader_of_the_text_finds_the_answer(task: str, held_out: bool, tokenizer) -> None:
    solver, *extra = SOLVERS[task]
    extra = [each if isinstance(each, str) else each[held_out] for each in extra]
    for limit in LIMITS:
        for seed in range(8):
            question = draw(tokenizer, task, seed, limit, held_out)
            context, asked, answer = parts(tokenizer, question)
            assert solver(*extra, context, asked, held_out) == answer
            assert question.task == task and question.tokens[0] == bos_id(tokenizer)
            assert all(reference in answer for reference in question.references)
            assert score_text(question, f" {answer}\n") == dict.fromkeys(score_text(question, ""), 1.0)
            assert answer.startswith(question.prefix) and bool(question.prefix) == (task == "coreference")


WHOLE = {"common_words", "frequent_words", "coreference"}


@pytest.mark.parametrize("task", TASKS)
def test_a_plain_reader_answers_every_question_of_a_text_to_learn_from(task: str, tokenizer) -> None:
    fill.text = np.array(encode(tokenizer, " ".join(WORDS)))  # type: ignore[attr-defined]
    solver, *extra = SOLVERS[task]
    extra = [each if isinstance(each, str) else each[False] for each in extra]
    decode, counts = tokenizer.decode, []
    for seed in range(12):
        seen = (np.random.default_rng(seed), tokenizer, bos_id(tokenizer), 700, Half(False, False), fill, 4)
        lesson = draw_lesson(task, *seen)
        asked_at, done, facts = [], 0, set()
        for start, stop in lesson.answers:
            asked_at.append(decode(lesson.tokens[done:start].tolist()))
            done = stop
        context = asked_at[0].split("\nQuestion: ")[0]
        for text, (start, stop) in zip(asked_at, lesson.answers, strict=True):
            asked = text.split("\nQuestion: ")[1].removesuffix("\nAnswer:")
            assert f"{solver(*extra, context, asked, False)}" == decode(lesson.tokens[start:stop].tolist())[1:-1]
            facts.add(asked)
        assert len(facts) == len(lesson.answers) and done == len(lesson.tokens) <= 700
        counts.append(len(lesson.answers))
    assert set(counts) == {1} if task in WHOLE else max(counts) == 4 and sum(counts) > 30


def test_facts_that_would_contradict_each_other_do_not_share_a_text(tokenizer) -> None:
    def draft(key: str, value: str, *others: str) -> Draft:
        return Draft([f"\n{key} is {value}."], iter((f"\n{other}",) for other in others), f"{key}?", (value,), (key,))

    def text(*drafts: Draft, limit: int = 300) -> str:
        rng = np.random.default_rng(0)
        made = build_lesson("planted", drafts, rng, tokenizer, bos_id(tokenizer), limit, None)
        return tokenizer.decode(made.tokens.tolist())

    kept = text(draft("oak", "1", "elm is 3.", "ash is 4."), draft("elm", "2"), draft("oak", "5"))
    assert kept.count("Question") == 2 and "is 3" not in kept and "is 5" not in kept and "ash is 4." in kept
    mentions = Draft(["\nfir is 6, unlike oak."], iter(()), "fir?", ("6",), ("fir",))
    assert text(draft("oak", "1"), mentions).count("Question") == 1
    assert text(draft("oak", "1"), draft("elm", "2"), limit=40).count("Question") == 1, "as many as fit"


@pytest.mark.parametrize("task", TASKS)
def test_held_out_names_are_asked_in_the_phrasings_of_fine_tuning(task: str, tokenizer) -> None:
    solver, *extra = SOLVERS[task]
    extra = [each if isinstance(each, str) else each[False] for each in extra]
    for seed in range(4):
        context, asked, answer = parts(tokenizer, draw(tokenizer, task, seed, 1024, True, False))
        assert solver(*extra, context, asked, False) == answer  # reads the phrasings of fine-tuning alone
        if task not in KEYED:  # whose answers are sentences
            assert answer == parts(tokenizer, draw(tokenizer, task, seed, 1024, True, True))[2] or "," in answer
        assert answer != parts(tokenizer, draw(tokenizer, task, seed, 1024, False, False))[2]


@pytest.mark.parametrize("task", TASKS)
def test_questions_fill_their_limit_and_are_drawn_again_alike(task: str, tokenizer) -> None:
    for limit in (*LIMITS, 1024):
        sizes = []
        for seed in range(6):
            question, again = (draw(tokenizer, task, seed, limit, True) for _ in range(2))
            assert question.tokens.tolist() == again.tokens.tolist() and question[1:] == again[1:]
            assert question.tokens.dtype == np.int64 and question.answer_start < len(question.tokens) <= limit
            sizes.append(len(question.tokens))
        assert max(sizes) > limit - 130 - (limit > 4000) * 200, "a unit more would have fitted"
    others = [draw(tokenizer, task, seed, 1024, True).tokens.tolist() for seed in range(6)]
    assert all(others[0] != other for other in others[1:])


@pytest.mark.parametrize("task", TASKS)
def test_what_does_not_fit_is_refused_with_the_least_that_does(task: str, tokenizer) -> None:
    with pytest.raises(ConfigError, match=rf"^task {task}: its shortest text has \d+ tokens; allow at least as many$"):
        draw(tokenizer, task, 0, 20, True)


def test_real_text_needs_its_source(tokenizer) -> None:
    assert REAL_TEXT == {"niah_single_3", "facts_single", "facts_distractor"}
    with pytest.raises(ConfigError, match="its text is real text, and no source of it is given; name one"):
        TASKS["niah_single_3"](np.random.default_rng(0), tokenizer, bos_id(tokenizer), 300, Half(True, True))


def entities(text: str) -> set[str]:
    """Names, places, keys, numbers and made-up strings of a text."""
    known = {*names.FIRST, *names.LAST, *names.CITIES}
    spans = re.findall(r"[\w-]+", text)
    found = {span for span in spans if span in known or re.search(r"[0-9a-f]{8}|\d{4}|[A-Z]{3}", span)}
    pairs = zip(spans, spans[1:], strict=False)
    found |= {f"{a} {b}" for a, b in pairs if a in words.ADJECTIVES and b in words.NOUNS}
    return {each for each in found if not re.fullmatch(r"(19|20)\d\d|VAR|LET", each)}  # a year is part of a date


def keys(asked: str) -> set[str]:
    """The key that is asked for; values of facts are words of the tokenizer, and are drawn for both halves alike."""
    forms = [re.escape(each.question) for each in (*facts.TRAIN_TEMPLATES, *facts.HELDOUT_TEMPLATES)]
    return {hit[1] for form in forms if (hit := re.fullmatch(form.replace(r"\{key\}", "(.+)"), asked))}


@pytest.mark.parametrize("task", TASKS)
def test_fine_tuning_and_evaluation_share_no_entity_and_no_question(task: str, tokenizer) -> None:
    drawn = {held_out: [draw(tokenizer, task, seed, 700, held_out) for seed in range(40)] for held_out in (False, True)}
    seen, questions = [], []
    for each in drawn.values():
        texts = [parts(tokenizer, question) for question in each]
        found = [keys(text[1]) if task in KEYED else entities(" ".join(text)) for text in texts]
        seen.append(set().union(*found, *(() if task in KEYED else question.references for question in each)))
        questions.append({re.sub("|".join(map(re.escape, sorted(own))) or "$", "#", text[1])
                          for text, own in zip(texts, found, strict=True)})  # fmt: skip
    assert seen[0] & seen[1] == set() == questions[0] & questions[1]
    assert len(seen[0]) > 20 and len(seen[1]) > 20


def test_lists_are_long_enough_and_their_halves_do_not_meet() -> None:
    pools = {key: pool for module in (names, words) for key, pool in vars(module).items() if key in LISTS}
    for key, least in LISTS.items():
        assert len(pools[key]) >= least and len({word.lower() for word in pools[key]}) == len(pools[key]), key
        assert not set(half(pools[key], False)) & set(half(pools[key], True))
    for attribute in ATTRIBUTES.values():
        told = attribute.standard + attribute.paraphrase
        assert len(set(told + attribute.pronoun)) == len(told) + len(attribute.pronoun) and len(told) >= 6
        for style in (attribute.standard, attribute.paraphrase, attribute.pronoun):
            assert half(style, False) and half(style, True)


def test_scores_of_planted_answers(tokenizer) -> None:
    many = Question(np.zeros(3, np.int64), 1, "niah_multivalue", ("1234", "55Ab", "x"), "")
    assert score_text(many, " 1234, 55aB") == {"recall_frac": pytest.approx(2 / 3)}
    reply = Question(np.zeros(3, np.int64), 1, "coreference", ("the red fox",), "QXZ")
    assert score_text(reply, " QXZ the red fox\n") == {"recall_frac": 1.0, "similarity_frac": 1.0}
    assert score_text(reply, " QXZ the fox")["similarity_frac"] == pytest.approx(2 * 7 / (11 + 7))
    assert score_text(reply, " the red fox") == {"recall_frac": 1.0, "similarity_frac": 0.0}


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("length", [160, 512, 5000])
def test_a_completion_repeats_its_needle_at_its_depth(length: int, depth: float, tokenizer) -> None:
    for seed in range(5):
        one, again = (
            completion(np.random.default_rng(seed), tokenizer, bos_id(tokenizer), length, depth) for _ in range(2)
        )
        assert len(one.tokens) == length and one.tokens.tolist() == again.tokens.tolist()
        needle, answer = one.tokens[slice(*one.needle)], one.tokens[slice(*one.answer)]
        assert needle.tolist() == answer.tolist() and one.answer[1] == length and len(one.value_mask) == len(answer)
        context, asked = tokenizer.decode(one.tokens[: one.answer[0]].tolist()).split("\nQuestion: ")
        sentence, value = tokenizer.decode(answer.tolist()), tokenizer.decode(answer[one.value_mask].tolist())
        assert context.count(sentence) == 1 and sentence.endswith(f"{value}.") and sentence[0] == value[0] == " "
        assert solve_biographies("standard", context, asked.removesuffix("\nAnswer:"), True) == value[1:]
        asked_ids = encode_after(tokenizer, ("\nQuestion: " + asked,))[0]
        room = one.answer[0] - len(asked_ids)
        assert abs(one.needle[0] - depth * room) < (400 if length > 4000 else 140)
        assert tokenizer.decode(one.tokens[: one.needle[0]].tolist())[:1] == "\n" or depth >= 0.5


def test_a_completion_that_does_not_fit_is_refused(tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"^completion: the shortest text has \d+ tokens; allow at least as many$"):
        completion(np.random.default_rng(0), tokenizer, bos_id(tokenizer), 40, 0.5)


def test_texts_of_a_thousand_tokens_take_milliseconds(tokenizer) -> None:
    for task in TASKS:
        draw(tokenizer, task, 0, 1024, True)
    start = time.process_time()
    for task in TASKS:
        for seed in range(5):
            draw(tokenizer, task, seed, 1024, True)
    assert (time.process_time() - start) / (5 * len(TASKS)) < 0.02
