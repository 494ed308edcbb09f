"""How often 95 % intervals hold the planted truth, the planted law is chosen, and the rule calls a curve saturated.

    python -m bench.coverage [--repetitions 500] [--resamples 300] [--schedules]

writes bench/results/coverage.json and prints the tables that docs/analysis.md shows of it; `--tables` only prints them.
With `--schedules` the same for learning rates that are not constant, for turning lengths and for the replay term, in
bench/results/coverage_schedules.json; there each repetition of the last two takes seconds.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.simulate import HIT, NLL, World, domains, plan, simulate
from lccp_sim.analysis.stats.cpt_law import CptLaw, law_turning, replay, turning
from lccp_sim.analysis.stats.curve import Curve, Estimate
from lccp_sim.analysis.stats.laws import FREE_PARAMETERS, LAWS, Fit, gain_per_doubling, laws_of, solve
from lccp_sim.analysis.stats.rule import EPS, Look, kneedle, looks
from lccp_sim.analysis.stats.saturation import FRACS, lag, progress
from lccp_sim.files import write_atomic

ROOT = Path(__file__).parents[1]
FIRST = 31_250.0  # the first window after step 0 of a World of 14 windows


def law(name: str, **parameters: float) -> Fit:
    """A planted law."""
    return Fit(name, parameters, 0.0)


LOG = law("log", A=-0.5, B=4 + 0.5 * float(np.log(5e4)), N0=5e4)
POWER = law("power", E=0.3, A=3.5 * FIRST**0.9, a=0.9, N0=FIRST)
CPT = law("cpt", c=4.0, B=-3.6, E=1 / 2e5, beta=1.5)
STICK = law("broken_stick", A=-0.6, B=4 + 0.6 * float(np.log(FIRST)), C=0.6, N0=FIRST, Nb=2.5e5)
WORLDS = {  # answer NLL in nats at 0, and at the end: 4 to 2.1, 3.8 to 0.38, 4 to 0.5
    "log": World(LOG, threshold=2.0),
    "power": World(POWER),
    "cpt": World(CPT),
}
OVER_SEEDS = {  # seeds learn at speeds that differ by a factor of exp(0.3), one standard deviation
    f"cpt, {seeds} seeds": World(CPT, seeds=seeds, seed_spread=0.3) for seeds in (2, 3, 5)
}
LAW_ONLY = {
    "constant": World(law("constant", c=2.0), threshold=2.0),
    "broken_stick": World(STICK, threshold=2.0),
    "broken_stick, noise halved": World(STICK, noise=0.1, wobble=0.005, threshold=2.0),
    "power, slow (a = 0.3)": World(law("power", E=0.3, A=3.5 * FIRST**0.3, a=0.3, N0=FIRST)),
}
LAW_AND_RULE = {
    "power, just above the bound (a = 0.4)": World(law("power", E=0.3, A=3.5 * FIRST**0.4, a=0.4, N0=FIRST)),
    "log, 22 windows": World(LOG, windows=22, threshold=2.0),
    "log, wobble times 4": World(LOG, wobble=0.04, threshold=2.0),
    "cpt, a run four times as long": World(CPT, run_tokens=8_000_000, windows=18),
    "power, noise times 4": World(POWER, noise=0.8, wobble=0.04),
}
ANNEALED = law("cpt", c=4.0, B=-2.4, E=1 / 2e5, beta=1.5, C2=4e-7)
FLAT = law("cpt", c=4.0, B=-2.4, E=1 / 2e4, beta=1.5, C2=4e-7)
SCHEDULES = {
    "wsd": World(ANNEALED, schedule="wsd", threshold=2.0),
    "cosine": World(ANNEALED, schedule="cosine", threshold=2.0),
    "cosine, levelled": World(FLAT, schedule="cosine", threshold=2.0),
}
OLD = CptLaw(2.6, 1.2, 0.35, 3e-7, 2e6, 1 / 1e5, 0.6)  # rises by 0.12 nats, and comes back
NEW = CptLaw(3.2, 0.8, -0.9, 4e-7, 2e6, 1 / 2e4, 0.3)
TURNS = {
    "comes back, constant": (OLD, "constant"),
    "comes back, wsd": (OLD, "wsd"),
    "comes back, cosine": (OLD, "cosine"),
    "never, constant": (replace(OLD, A=0.2), "constant"),
    "never above, constant": (replace(OLD, B=-0.1), "constant"),
}
KAPPA, SHARES = 2.0, (0.0, 0.25, 0.5, 0.75)
SHORT, LONG = "short_nll_nats", "nll_nats"


def measure(
    world: World, repetitions: int, resamples: int, rule: tuple[str, ...] = (), whole: bool = False
) -> dict[str, Any]:
    """Shares over the repetitions: laws chosen, what the rule says of the metrics `rule`, coverage where `whole`."""
    covered: dict[str, list[bool]] = {}
    chosen: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for seed in range(repetitions):
        both = simulate(world, seed, resamples)
        chosen[laws_of(both[NLL])[0].law] += 1
        for metric in rule:
            calls.update(called(both[metric], metric))
        for name, estimate, truth in intervals(world, both) if whole else ():
            if estimate is not None and estimate.low is not None and estimate.high is not None:
                covered.setdefault(name, []).append(estimate.low <= truth <= estimate.high)
    shares = {name: {"covered": float(np.mean(held)), "n": len(held)} for name, held in covered.items()}
    so_far = float(world.truth(NLL, 0.0) - world.truth(NLL, world.run_tokens))
    return {
        "world": asdict(replace(world)) | {"tokens_W": world.tokens_W.tolist()},
        "repetitions": repetitions,
        "resamples": resamples,
        "coverage": shares,
        "laws": {name: chosen[name] / repetitions for name in LAWS},
        "identifiability": identifiability(world),
        "true_gain_of_next_doubling_over_gain_so_far": world.truth_gain(NLL) / so_far if so_far else None,
        "rule": {name: count / repetitions for name, count in sorted(calls.items())},
    }


def intervals(world: World, both: dict[str, Curve]) -> list[tuple[str, Estimate | None, float]]:
    """(name, estimate, planted truth) of every interval that is claimed."""
    found: list[tuple[str, Estimate | None, float]] = []
    for name, metric in (("hit", HIT), ("nll", NLL)):
        row = progress(both[metric])
        for frac, estimate in zip(FRACS, (row.t50, row.t90, row.t95), strict=True):
            found.append((f"{name} t{100 * frac:.0f}", estimate, world.truth_tokens(metric, frac)))
        found.append((f"{name} gain of the next doubling", gain_per_doubling(both[metric]), world.truth_gain(metric)))
    if world.rate is not None:
        plain = gain_per_doubling(replace(both[NLL], rate=None))
        found.append(("nll gain of the next doubling, by laws in tokens", plain, world.truth_gain(NLL)))
        return found
    gap, early = lag(both[HIT], both[NLL]), world.truth_tokens(HIT, FRACS[-1])
    if gap is not None:
        factor = float(world.truth(NLL, early) / world.truth(NLL, world.run_tokens))
        found.append(("lag factor", gap.factor, factor))
        found.append(("lag index", gap.index, world.truth_tokens(NLL, FRACS[-1]) / early))
    return found


def called(curve: Curve, name: str) -> list[str]:
    """What the rule says, at the end and at any window on the way, and whether kneedle finds a knee."""

    def twice(seen: list[Look]) -> bool:
        return len(seen) >= 2 and all(look.holds(EPS) for look in seen[-2:])

    seen = looks(curve)
    said = [f"{name} saturated at the end"] * twice(seen)
    said += [f"{name} saturated at some window"] * any(twice(seen[:end]) for end in range(2, len(seen) + 1))
    return said + [f"{name} has a knee by kneedle"] * (kneedle(curve) is not None)


def identifiability(world: World) -> float | None:
    """RMS by which the nearest rival of no more parameters misses the planted NLL, in units of a window's noise.

    None for a constant, which every law can be.
    """
    value_W, seen = world.mean(world.tokens_W), world.areas(world.tokens_W)
    rivals = [
        name for name in LAWS if name != world.law.law and FREE_PARAMETERS[name] <= FREE_PARAMETERS[world.law.law]
    ]
    if not rivals:
        return None
    root_W = 1 / (value_W * np.sqrt(world.noise**2 / world.items + world.wobble**2))
    return float(np.sqrt(min(solve(name, seen, value_W, root_W).rss for name in rivals) / len(root_W)))


def schedules(repetitions: int, resamples: int, turns: int) -> dict[str, Any]:
    """Worlds whose rate is not constant; how often a turning length, and the replay term, lie in their intervals."""
    worlds = {name: measure(world, repetitions, resamples, (NLL,), True) for name, world in SCHEDULES.items()}
    found = {}
    for name, (old, schedule) in TURNS.items():
        rows = []
        for seed in range(turns):
            [both] = domains({SHORT: old, LONG: NEW}, schedule, seed=seed)
            turned, truth = turning(both[SHORT], both[LONG]), law_turning(old, both[SHORT])
            assert turned is not None
            rows.append((turned.tokens.value, turned.tokens.low, turned.tokens.high, truth))
        found[name] = _held(rows)
    rows, arms = [], []
    for seed in range(max(2, turns // 2)):
        sweep = domains({SHORT: replace(OLD, kappa=KAPPA)}, shares=SHARES, seed=seed)
        fitted = replay([(share, both[SHORT]) for share, both in zip(SHARES, sweep, strict=True)])
        assert fitted is not None
        rows.append((fitted.kappa.value, fitted.kappa.low, fitted.kappa.high, KAPPA))
        for share, both, each in zip(SHARES, sweep, fitted.tokens, strict=True):
            arms.append((each.value, each.low, each.high, law_turning(replace(OLD, kappa=KAPPA), both[SHORT], share)))
    return {"worlds": worlds, "turning": found, "replay": {"kappa": _held(rows), "turning of the arms": _held(arms)}}


def _held(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Coverage, the truth, and the middle of what was found; inf (never) is written as null."""
    held = float(np.mean([low <= truth <= high for _, low, high, truth in rows]))
    known = [[None if np.isinf(value) else round(float(value), 3) for value in row] for row in rows]
    return {"covered": held, "n": len(rows), "truth": known[0][3], "median": known_median(rows), "rows": known}


def known_median(rows: list[tuple[Any, ...]]) -> float | None:
    """The median of what was found; None for never."""
    middle = float(np.median([row[0] for row in rows]))
    return None if not np.isfinite(middle) else middle


def schedule_tables(result: dict[str, Any]) -> str:
    """The tables of docs/analysis.md on schedules, turning lengths and replay."""
    lines = ["| schedule | 95 % interval of | covered | n |", "|---|---|---|---|"]
    for name, world in result["worlds"].items():
        for what, share in world["coverage"].items():
            if "gain" in what or what.endswith("t95"):
                lines.append(
                    f"| {name} | {what.replace('nll', 'NLL')} | {100 * share['covered']:.0f} % | {share['n']} |"
                )
    lines += ["", "| turning length | truth | median found | covered | n |", "|---|---|---|---|---|"]
    rows = result["turning"] | {f"replay: {name}": row for name, row in result["replay"].items()}
    for name, row in rows.items():
        ends = [row["truth"], row["median"]] if name != "replay: turning of the arms" else ["", ""]
        said = ["never" if end is None else f"{end:,.0f}" if end and end > 100 else f"{end}" for end in ends]
        lines.append(f"| {name} | {' | '.join(said)} | {100 * row['covered']:.0f} % | {row['n']} |")
    return "\n".join(lines)


def tables(result: dict[str, Any]) -> str:
    """The tables of docs/analysis.md: coverage, laws and rule, sizes of study."""

    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"

    worlds = result["worlds"]
    names = {HIT: "hit", NLL: "NLL"}
    columns = [*WORLDS, *OVER_SEEDS]
    lines = ["| 95 % interval of | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for what in worlds["power"]["coverage"]:
        shares = [worlds[name]["coverage"][what]["covered"] for name in columns]
        lines.append(f"| {what.replace('nll', 'NLL')} | " + " | ".join(map(percent, shares)) + " |")
    ends = ("nearest rival", "planted law chosen", "next doubling / gain so far")
    heads = [f"{name} saturated, {when}" for name in names.values() for when in ("at the end", "at some window")]
    lines += ["", "| planted | " + " | ".join([*ends, *heads]) + " |", "|---" * (1 + len(ends) + len(heads)) + "|"]
    for name, found in worlds.items():
        miss, share = found["identifiability"], found["true_gain_of_next_doubling_over_gain_so_far"]
        cells = ["" if miss is None else f"{miss:.2f}", percent(found["laws"][found["world"]["law"]["law"]])]
        cells.append(percent(share))
        for metric in names:
            judged = any(key.startswith(metric) for key in found["rule"])
            for when in ("at the end", "at some window"):
                cells.append(percent(found["rule"].get(f"{metric} saturated {when}", 0.0)) if judged else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    sizes = "| windows | items | seeds | hit t95 / truth | NLL t95 / truth | saturated |"
    lines += ["", sizes, "|---|---|---|---|---|---|"]
    for row in result["plan_cpt"]:
        spans = [f"{row[f'{name}_t95_low']:.2f} to {row[f'{name}_t95_high']:.2f}" for name in ("hit", "nll")]
        cells = [f"{row[name]:.0f}" for name in ("windows", "items", "seeds")] + spans + [percent(row["power"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "coverage.json")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--schedules", action="store_true")
    parser.add_argument("--turns", type=int, default=100)
    args = parser.parse_args()
    if args.schedules:
        out = args.out.with_name("coverage_schedules.json")
        began = time.process_time()
        if not args.tables:
            result = schedules(args.repetitions, args.resamples, args.turns)
            result = {"cpu_seconds": round(time.process_time() - began)} | result
            write_atomic(out, json.dumps(result, indent=1) + "\n")
        print(schedule_tables(json.loads(out.read_text())))
        return
    if args.tables:
        print(tables(json.loads(args.out.read_text())))
        return
    began, worlds = time.process_time(), {}
    for name, world in (WORLDS | OVER_SEEDS | LAW_AND_RULE | LAW_ONLY).items():
        rule = (NLL, HIT) if name in WORLDS else (NLL,) if name in LAW_AND_RULE else ()
        whole = name in WORLDS or name in OVER_SEEDS
        worlds[name] = measure(world, args.repetitions, args.resamples, rule, whole)
        shown = {key: worlds[name][key] for key in ("coverage", "laws", "identifiability", "rule")}
        print(name, json.dumps(shown), f"{time.process_time() - began:.0f} s", flush=True)
    sizes = plan(WORLDS["cpt"], repetitions=max(2, args.repetitions // 5)).to_dict("records")
    result = {"eps": EPS, "cpu_seconds": round(time.process_time() - began), "worlds": worlds, "plan_cpt": sizes}
    write_atomic(args.out, json.dumps(result, indent=1) + "\n")
    print(tables(result))


if __name__ == "__main__":
    main()
