"""What a report has below its first screen: sections of figures and tables, in the order of the paper's levels."""

from dataclasses import dataclass, field

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.report import paper, tables
from lccp_sim.analysis.report.beside_probe import by_task, coefficients, compared
from lccp_sim.analysis.report.plots import Drawing
from lccp_sim.analysis.report.tables import Table, corpus, costs


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

    with_probe = [tables.probe_cells(found), paper.correlations(found), coefficients(found.correlations)]
    made = [
        Section("Saturation", [], [tables.whole(found), tables.laws(found)]),
        Section("Deceptive saturation", [], [tables.deceptive(found), tables.ceilings(found)]),
        Section("Behavioural: the probe", these("probe"), with_probe),
        Section("Probabilistic: needles", these("needle_by_length", "variants", "depths", "needle_maps")),
        Section("Probabilistic: held-out text", these("text", "positions")),
        Section("Mechanistic: heads", these("heads", "intervention", "induction", "head_map"), [paper.stages(found)]),
        Section("The paper and this run", [], [paper.claims(found)]),
        Section("Forecasts", [], [tables.forecasts(found)]),
        Section("Training", these("load_map"), [costs(found), corpus(found)]),
        Section("Every window", [], [tables.windows(found), tables.heads(found)], folded=True),
        Section("Every part", [], [tables.by_length(found), tables.parts(found)], folded=True),
        Section("Every correlation", [], [compared(found.comparisons), by_task(found.correlations)], folded=True),
    ]
    kept = [Section(one.title, one.drawings, [table for table in one.tables if table.rows], one.folded) for one in made]
    return [section for section in kept if section.drawings or section.tables]
