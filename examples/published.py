"""Published results on polyphonic music, test sets, nats per time step: (negative log-likelihood, bound on it)."""

from __future__ import annotations

import pyro_dssm as pd

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


def table(data: str, name: str, score: pd.Score) -> str:
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
