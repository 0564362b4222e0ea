"""Guides: the taxonomy's, flows around them, and the base class for your own."""

from .alignment import (
    GUIDES,
    ApproachA,
    ApproachB,
    ApproachC,
    Filtering,
    FullAlignment,
    GaussianGuide,
    MeanField,
    PartialAlignment,
)
from .empty import NoLatents
from .flow import FlowGuide
from .guide import Guide, GuidePath, check_pair
from .kalman import KalmanGuide, KalmanPath
from .variational_filter import FusionGuide, NoiseGuide

__all__ = [
    "GUIDES",
    "ApproachA",
    "ApproachB",
    "ApproachC",
    "Filtering",
    "FlowGuide",
    "FullAlignment",
    "GaussianGuide",
    "FusionGuide",
    "Guide",
    "GuidePath",
    "KalmanGuide",
    "KalmanPath",
    "MeanField",
    "NoLatents",
    "NoiseGuide",
    "PartialAlignment",
    "check_pair",
]
