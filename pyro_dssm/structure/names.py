"""The names of structures: of models in the literature, and of places in the taxonomy.

This is the one place that says which edges a named model has; its class looks them up here.

Reference:
    Tang, Feng, Yu, Dong, Qin: *A Hierarchical Taxonomy for Deep State Space Models*.
"""

from __future__ import annotations

import functools
import re

__all__ = ["GROUPS", "MARKERS", "MODELS", "WITHOUT_LATENTS", "figures", "in_order", "key"]

# The edges of models in the literature: z from z, z from x, x from z, x from x. Where several models share a structure,
# the first listed gives it its name.
MODELS: dict[str, tuple[str, str, str, str]] = {
    "DMM": ("markov", "none", "markov", "none"),
    "DKF": ("markov", "none", "markov", "none"),
    "DKS": ("markov", "none", "markov", "none"),
    "RSSM": ("full", "none", "full", "none"),
    "AR-HMM": ("markov", "none", "markov", "markov"),
    "ArSSM": ("full", "none", "full", "full"),
    "F-HMM": ("markov", "markov", "markov", "none"),
    "FSSM": ("full", "full", "full", "none"),
    "DMM-Aug": ("markov", "markov", "markov", "markov"),
    "SRNN": ("markov", "full", "markov", "full"),
    "VRNN": ("full", "full", "full", "full"),
    "VAE": ("none", "none", "markov", "none"),
    "RVAE": ("none", "none", "full", "none"),
    "STORN": ("none", "none", "full", "full"),
    "SVG-FP": ("none", "none", "full", "full"),
    "SVG-LP": ("none", "full", "full", "full"),
}
# Models whose latent variables have no dimensions: their edges are not called after them, since others may have them.
WITHOUT_LATENTS: dict[str, tuple[str, str, str, str]] = {
    "RNN": ("none", "none", "markov", "full"),
}

MARKERS = {"z_from_z": "○", "z_from_x": "◑", "x_from_x": "●", "x_from_z": "◐"}
# The group by whether x leads to z, and x to x.
GROUPS = {(False, False): "HMM", (False, True): "AR-HMM", (True, False): "F-HMM", (True, True): "DMM-Aug"}

# The paper's figure of each group and the markers of its parts a, b, c ...; a base has no letter.
_FIGURES = {
    "HMM": ("3", "○ ◐ ○◐"),
    "AR-HMM": ("1", "○ ◐ ● ●◐ ◐○ ●○ ●◐○"),
    "F-HMM": ("4", "○ ◐ ◑ ◐○ ○◑ ◑◐ ○◑◐"),
    "DMM-Aug": ("5", "○ ● ◐ ◑ ○● ◑◐ ○◐ ○◑ ◑● ◐● ◐○◑ ●◐○ ○◑● ◑●◐ ○◑●◐"),
}


@functools.cache
def figures() -> dict[tuple[str, str], str]:
    """Figures by group and markers, the markers in the order of `Structure.markers`."""
    figures = {}
    for group, (number, parts) in _FIGURES.items():
        figures[group, ""] = number
        for letter, markers in zip("abcdefghijklmno", parts.split(), strict=False):
            figures[group, in_order(markers)] = number + letter
    return figures


def key(name: str) -> str:
    """A name as names are compared: without case, spaces and hyphens, its markers at the end in their order."""
    signs = "".join(MARKERS.values())
    return re.sub(rf"[\s_{signs}-]", "", name).lower() + in_order(name)


def in_order(markers: str) -> str:
    """The markers among some text, in the order of :attr:`Structure.markers`."""
    return "".join(marker for marker in MARKERS.values() if marker in markers)
