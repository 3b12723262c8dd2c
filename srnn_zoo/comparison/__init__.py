"""An SRNN beside its rivals: each fitted by one recipe, chosen on held-out images, and compared at equal cost."""

from .compare import compare
from .picture import plot_comparison
from .result import Comparison, Line

__all__ = ["Comparison", "Line", "compare", "plot_comparison"]
