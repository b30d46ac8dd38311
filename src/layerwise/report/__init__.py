"""Reports: runs side by side."""

from layerwise.report.comparison import Comparison, Row, compare, write

__all__ = ["Comparison", "Row", "compare", "write"]
