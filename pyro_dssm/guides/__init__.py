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
from .base import BaseGuide, check_pair
from .empty import NoLatents
from .flow import FlowGuide
from .frames import FrameGuide
from .guide import Guide, GuidePath
from .kalman import KalmanGuide, KalmanPath
from .variational_filter import FusionGuide, NoiseGuide

__all__ = [
    "GUIDES",
    "ApproachA",
    "ApproachB",
    "ApproachC",
    "BaseGuide",
    "Filtering",
    "FlowGuide",
    "FrameGuide",
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
