"""Figures (extra ``plots``): piano rolls, training curves, forecasts, phase portraits, films, errors, spectrograms.

Every function draws into the axes that it is given, or into those of a new figure, and returns them. No global
setting of matplotlib is changed.
"""

from .curves import plot_curves, plot_multiplier
from .films import plot_filmstrip, write_gif
from .paths import plot_forecast, plot_phase
from .rolls import pitch_name, plot_roll
from .spectrograms import mel_spectrogram, plot_mel
from .systems import plot_identified, plot_open_loop

__all__ = [
    "mel_spectrogram",
    "pitch_name",
    "plot_curves",
    "plot_filmstrip",
    "plot_forecast",
    "plot_identified",
    "plot_mel",
    "plot_multiplier",
    "plot_open_loop",
    "plot_phase",
    "plot_roll",
    "write_gif",
]
