"""What a report has below its first screen: sections of figures and tables, in the order of the paper's levels."""

from dataclasses import dataclass, field

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.report import paper, tables
from lccp_sim.analysis.report.beside_probe import by_task_table, coefficients_table, comparisons_table
from lccp_sim.analysis.report.plots import Drawing
from lccp_sim.analysis.report.tables import Table, corpus_table, costs_table


@dataclass(frozen=True)
class Section:
    """A heading with its figures and tables; `folded`: closed until a reader opens it."""

    title: str
    drawings: list[Drawing] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: bool = False

    @property
    def anchor(self) -> str:
        """What the page calls it in links to itself."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def sections(found: Findings, drawings: dict[str, Drawing]) -> list[Section]:
    """All sections that have something in them."""

    def these(*names: str) -> list[Drawing]:
        return [drawings[name] for name in names if name in drawings]

    with_probe = [tables.probe_table(found), paper.correlations_table(found), coefficients_table(found.correlations)]
    made = [
        Section("Saturation", [], [tables.overall_table(found), tables.laws_table(found)]),
        Section("Deceptive saturation", [], [tables.deceptive_table(found), tables.ceilings_table(found)]),
        Section("Behavioural: the probe", these("probe"), with_probe),
        Section("Probabilistic: needles", these("needle_by_length", "variants", "depths", "needle_maps")),
        Section("Probabilistic: held-out text", these("text", "positions")),
        Section(
            "Mechanistic: heads", these("heads", "intervention", "induction", "head_map"), [paper.stages_table(found)]
        ),
        Section("The paper and this run", [], [paper.claims_table(found)]),
        Section("Forecasts", [], [tables.forecasts_table(found)]),
        Section("Training", these("load_map"), [costs_table(found), corpus_table(found)]),
        Section("Every window", [], [tables.windows_table(found), tables.heads_table(found)]),
        Section("Every part", [], [tables.by_length_table(found), tables.parts_table(found)]),
        Section(
            "Every correlation",
            [],
            [comparisons_table(found.comparisons), by_task_table(found.correlations)],
        ),
    ]
    kept = [Section(one.title, one.drawings, [table for table in one.tables if table.rows], True) for one in made]
    return [section for section in kept if section.drawings or section.tables]
