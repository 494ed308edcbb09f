"""The objectives of a run by name, each one file and one line."""

from lccp_sim.train.objectives.head_contrast import HeadContrast
from lccp_sim.train.objectives.head_score import HeadScore
from lccp_sim.train.objectives.lm import LanguageModelling
from lccp_sim.train.objectives.objective import Objective
from lccp_sim.train.objectives.rl import Reinforcement
from lccp_sim.train.objectives.sft import Finetuning

OBJECTIVES: dict[str, type[Objective]] = {
    "lm": LanguageModelling,
    "sft": Finetuning,
    "rl": Reinforcement,
    "head_contrast": HeadContrast,
    "head_score": HeadScore,
}
