"""The tables and figures of Schroder (2017), regenerated beside the published numbers."""

from ._comparison import Comparison as Comparison, compare as compare
from ._paper import (
    PaperTable as PaperTable,
    paper_figure as paper_figure,
    paper_levels as paper_levels,
    paper_potential_speedup as paper_potential_speedup,
    paper_table as paper_table,
)
from ._tables import Row as Row, run_row as run_row, run_table as run_table
