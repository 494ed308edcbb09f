"""Monitors: a model and a probe set give values. Three tiers: behavioural, probabilistic, mechanistic."""

from lccp_sim.monitors.induction import Induction
from lccp_sim.monitors.intervention import Intervention
from lccp_sim.monitors.longbio import LongBioHeads
from lccp_sim.monitors.monitor import Monitor
from lccp_sim.monitors.needle import Needle
from lccp_sim.monitors.perplexity import Perplexity
from lccp_sim.monitors.probe import Probe
from lccp_sim.monitors.routing import Routing
from lccp_sim.monitors.sampled.answers import Answers

MONITORS: dict[str, type[Monitor]] = {
    "needle": Needle,
    "heads": LongBioHeads,
    "perplexity": Perplexity,
    "induction": Induction,
    "intervention": Intervention,
    "routing": Routing,
    "probe": Probe,
    "answers": Answers,
}
