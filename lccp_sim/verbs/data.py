"""`lccp data`: prepare and show the corpus of a run, without training."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, get_args, get_type_hints

from lccp_sim.configure.compose import check
from lccp_sim.verbs import Verb, add_overrides

if TYPE_CHECKING:
    from rich.console import Console


def _add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("--compare-packings", action="store_true", help="both packings, side by side")
    parser.add_argument("--left-out", action="store_true", help="name each file and row that is not a document")


def _run(arguments: Namespace, console: "Console") -> int:
    config = check(arguments.overrides, arguments.config_dir)  # before torch is imported
    from lccp_sim.data.pools import DataConfig, open_corpus
    from lccp_sim.progress import shown_on
    from lccp_sim.train.corpus import print_corpus, print_left_out, print_packings, usage_of
    from lccp_sim.train.saved.init import Start, tokenizer_for

    with shown_on(console) as tell:
        start = Start.of(config, tell)
    config = start.complete(config)
    corpora = {}
    for packing in get_args(get_type_hints(DataConfig)["packing"]):
        if arguments.compare_packings or packing == config.data.packing:
            data, tokenizer = replace(config.data, packing=packing), tokenizer_for(config, start, None)
            with shown_on(console) as tell:
                corpora[packing] = open_corpus(data, config.run.context_tokens, config.seed, tokenizer, tell)
    corpus = corpora[config.data.packing]
    start.check_tokenizer(corpus)
    print_corpus(console, corpus, config)
    if arguments.left_out:
        print_left_out(console, corpus)
    if arguments.compare_packings:
        print_packings(console, {packing: usage_of(each, config) for packing, each in corpora.items()})
    if config.objective.needs_weights:
        console.print(f"objective {config.objective.kind}: it makes its rows from the weights at each step")
        return 0
    batch = config.objective.rows(corpus, config, None).slice(0, 0, 1, 0, 1)
    console.print(f"documents of batch 0: {', '.join(batch.names)}", markup=False)
    console.print(corpus.tokenizer.decode(batch.tokens_BT[0].tolist())[:600], markup=False)
    return 0


DATA_VERB = Verb("prepare and show the corpus of a run without training: lccp data run=tiny_lccp", _add_arguments, _run)
