"""Drawings of arrays: heat maps, bars, dots with intervals, scatters and rooflines, each an SVG text."""

from reports.charts.bars import intervals, stacked, tornado
from reports.charts.heat import Panel, heat_map, heat_maps
from reports.charts.points import figure, lines, roofline, scatter

__all__ = [
    "Panel",
    "figure",
    "heat_map",
    "heat_maps",
    "intervals",
    "lines",
    "roofline",
    "scatter",
    "stacked",
    "tornado",
]
