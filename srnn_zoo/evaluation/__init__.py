"""Models compared with single scales and ensembles, as in the paper's Table 1."""

from .compare import evaluate
from .methods import LOGIT_ENSEMBLE, PROBABILITY_ENSEMBLE
from .table import McNemar, Row, Table, mcnemar, wilson

__all__ = ["LOGIT_ENSEMBLE", "PROBABILITY_ENSEMBLE", "McNemar", "Row", "Table", "evaluate", "mcnemar", "wilson"]
