"""Reports: runs side by side, as a table, and as a page that says at its top what to believe."""

from layerwise.report.comparison import Comparison, Standing, compare
from layerwise.report.page import FILES, Report, report

__all__ = ["FILES", "Comparison", "Report", "Standing", "compare", "report"]
