"""Published results on polyphonic music and on speech, and a table of music that shows a run next to them."""

from __future__ import annotations

import pyro_dssm as dssm

# Polyphonic music: nats per time step of test sets, (negative log-likelihood, bound on it).

TANG = "Tang et al., Table II"
SETS = ("nottingham", "jsb_chorales", "muse_data", "piano_midi")

# One row per model: for each set the negative log-likelihood, the bound, or both; then the source.
ROWS: list[tuple[str, list[tuple[float | None, float | None]], str]] = [
    ("ArSSM, partial alignment", [(None, 3.07), (None, 7.46), (None, 6.44), (None, 7.79)], TANG),
    ("ArSSM, full alignment", [(None, 2.87), (None, 7.17), (None, 6.34), (None, 7.76)], TANG),
    ("SRNN", [(None, 2.94), (None, 4.74), (None, 6.28), (None, 8.20)], TANG + "; JSB is an outlier"),
    ("DMM", [(2.77, 2.96), (6.39, 6.93), (6.83, 6.99), (7.84, 7.98)], TANG),
    ("DMM-Aug", [(2.68, 2.86), (6.29, 6.77), (6.36, 6.48), (7.59, 7.72)], TANG),
    ("HMSBN", [(5.24, None), (8.05, None), (9.74, None), (9.56, None)], TANG),
    ("STORN", [(2.85, None), (6.91, None), (6.16, None), (7.13, None)], TANG),
    ("RNN", [(4.46, None), (8.71, None), (8.13, None), (8.37, None)], TANG),
    ("TSBN", [(None, 3.67), (None, 7.48), (None, 6.81), (None, 7.98)], TANG),
    ("DMM, 2 flows, 5000 epochs", [(None, None), (None, 6.80), (None, None), (None, None)], "Pyro's tutorial"),
    ("DMM-Aug, NADE", [(None, None), (5.33, None), (None, None), (None, None)], "clinicalml's scripts, 5.33 to 5.40"),
    ("RNN-NADE", [(2.31, None), (5.19, None), (5.60, None), (7.05, None)], "Boulanger-Lewandowski et al. 2012"),
]


def table(data: str, name: str, score: dssm.Score) -> str:
    """A run's test score above the published rows of its data set.

    Args:
        data: Name of the data set.
        name: What was run.
        score: Its score.

    Returns:
        Lines to print.
    """
    elbo, iwae = score.elbo, score.iwae
    lines = [f"Test set of {data}: negative log-likelihood in nats per time step; a bound on it in brackets."]
    for bound, value in (("ELBO", elbo), (f"IWAE-{score.num_particles}", iwae)):
        figure = f"({value.nats_per_step:.3f} ± {value.standard_error:.3f})"
        lines.append(f"  {name:<40}{figure:<20}{bound}, this run")
    if data not in SETS:
        return "\n".join([*lines, f"There are no published results on {data}, and those on other sets do not compare."])
    for row, results, source in ROWS:
        nll, bound = results[SETS.index(data)]
        figure = " ".join(([f"{nll:.2f}"] if nll else []) + ([f"({bound:.2f})"] if bound else []))
        if figure:
            lines.append(f"  {row:<40}{figure:<20}{source}")
    return "\n".join(lines)


# Speech: SI-SDR in dB, PESQ of the wide band, ESTOI.

Figures = tuple[float, float, float]
METRICS = ("si_sdr", "pesq_wb", "estoi")
NOTE = (
    "Published: Tang et al. on a split of LibriSpeech's dev-clean of their own. Other recordings, another split, and "
    "emissions that start from the last frame where there is an edge from it, so the figures do not compare to the "
    "letter. Frames overlap by three quarters: with the recording's own phases, copying the last frame scores high, "
    "so the teacher-forced scores of a model that reads it say little about its latents."
)
# By model and inverse autoregressive layers: partial, then full alignment.
TABLE_I: dict[tuple[str, int], tuple[Figures, Figures]] = {
    ("ArSSM", 0): ((5.42, 1.69, 0.785), (5.132, 1.675, 0.795)),
    ("SRNN", 0): ((4.99, 1.60, 0.783), (5.146, 1.667, 0.788)),
    ("FSSM", 0): ((0.367, 1.17, 0.634), (1.46, 1.23, 0.691)),
    ("VRNN", 0): ((3.32, 1.25, 0.687), (3.23, 1.19, 0.664)),
    ("RSSM", 0): ((0.633, 1.18, 0.654), (0.787, 1.19, 0.663)),
    ("ArSSM", 3): ((5.24, 1.65, 0.791), (5.56, 1.70, 0.802)),
    ("SRNN", 3): ((5.73, 1.70, 0.795), (4.31, 1.42, 0.770)),
    ("FSSM", 3): ((1.44, 1.23, 0.688), (1.55, 1.25, 0.706)),
    ("VRNN", 3): ((2.09, 1.13, 0.601), (2.80, 1.16, 0.623)),
    ("RSSM", 3): ((1.30, 1.20, 0.665), (1.47, 1.20, 0.670)),
}
# ArSSM by guide: SI-SDR on the training set, then the figures of the test set.
TABLE_III: dict[str, tuple[float, Figures]] = {
    "partial": (6.050, (5.416, 1.690, 0.786)),
    "full": (5.791, (5.132, 1.675, 0.795)),
    "a": (6.000, (5.128, 1.665, 0.795)),
    "b": (5.249, (4.639, 1.640, 0.774)),
    "c": (5.280, (4.892, 1.570, 0.776)),
}


def speech_row(model: str, guide: str, flows: int) -> tuple[Figures, str] | None:
    """The published figures of a model, its guide and its flows, and where they stand; ``None`` where nowhere."""
    if guide in ("partial", "full") and (model, flows) in TABLE_I:
        return TABLE_I[model, flows][guide == "full"], "Tang et al., Table I"
    if model == "ArSSM" and flows == 0 and guide in TABLE_III:
        return TABLE_III[guide][1], "Tang et al., Table III"
    return None
