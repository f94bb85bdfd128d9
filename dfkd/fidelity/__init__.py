"""Did the student match the teacher, and where? Metrics, evaluation distributions, statistics, diagnostics."""

from dfkd.fidelity.columns import (
    Column,
    answers,
    draws_column,
    logits,
    test_column,
    uniform_column,
)
from dfkd.fidelity.corruptions import CORRUPTIONS, corrupted, corrupted_column, parse_corruption
from dfkd.fidelity.diagnostics import DIAGNOSTICS, Diagnosis, LayerShift, diagnose
from dfkd.fidelity.features import FEATURE_METRICS, feature_scores
from dfkd.fidelity.metrics import METRICS, Metric, calibration_error, metric, rowwise, score
from dfkd.fidelity.neighbours import nearest
from dfkd.fidelity.quality import (
    QUALITY,
    Quality,
    Reference,
    frechet_distance,
    precision_recall_density_coverage,
)
from dfkd.fidelity.recalibrate import SCORING, Scoring, recalibrated, scored_logits
from dfkd.fidelity.statistics import (
    Difference,
    Spread,
    Verdict,
    detectable,
    holm,
    leads,
    paired_difference,
    spread,
)
from dfkd.fidelity.worst_case import worst_case, worst_case_column

__all__ = [
    "CORRUPTIONS",
    "DIAGNOSTICS",
    "FEATURE_METRICS",
    "METRICS",
    "QUALITY",
    "SCORING",
    "Column",
    "Diagnosis",
    "Difference",
    "LayerShift",
    "Metric",
    "Quality",
    "Reference",
    "Scoring",
    "Spread",
    "Verdict",
    "answers",
    "calibration_error",
    "corrupted",
    "corrupted_column",
    "detectable",
    "diagnose",
    "draws_column",
    "feature_scores",
    "frechet_distance",
    "holm",
    "leads",
    "logits",
    "metric",
    "nearest",
    "paired_difference",
    "parse_corruption",
    "precision_recall_density_coverage",
    "recalibrated",
    "rowwise",
    "score",
    "scored_logits",
    "spread",
    "test_column",
    "uniform_column",
    "worst_case",
    "worst_case_column",
]
