"""Charts as geometry: numbers in, positions on a drawing out. The template only draws them."""

from .curves import Chart, learning_curves
from .place import Badge, place
from .scatter import Scatter, cost_scatter

__all__ = ["Badge", "Chart", "Scatter", "cost_scatter", "learning_curves", "place"]
