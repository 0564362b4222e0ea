"""Guides: the taxonomy's, flows around them, and the base class for your own."""

from .alignment import (
    GUIDES,
    ApproachA,
    ApproachB,
    ApproachC,
    Filtering,
    FullAlignment,
    MeanField,
    PartialAlignment,
)
from .base import BaseGuide, check_pair
from .empty import NoLatents
from .flow import FlowGuide
from .frames import FrameGuide, FrameOptions
from .gaussian import CombinerOptions, GaussianGuide, GaussianOptions, ReadingOptions
from .guide import Guide
from .kalman import KalmanGuide
from .kalman_path import KalmanPath
from .path import GuidePath
from .variational_filter import FusionGuide, NoiseGuide

__all__ = [
    "GUIDES",
    "ApproachA",
    "ApproachB",
    "ApproachC",
    "BaseGuide",
    "CombinerOptions",
    "Filtering",
    "FlowGuide",
    "FrameGuide",
    "FrameOptions",
    "FullAlignment",
    "FusionGuide",
    "GaussianGuide",
    "GaussianOptions",
    "Guide",
    "GuidePath",
    "KalmanGuide",
    "KalmanPath",
    "MeanField",
    "NoLatents",
    "NoiseGuide",
    "PartialAlignment",
    "ReadingOptions",
    "check_pair",
]
