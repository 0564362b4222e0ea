"""One table of named pairs, on which every promise is checked: what is in the library, pairwise covered.

A row says what a model and its guide are, and what they are called with. Any two values of any two factors that go
together stand in some row. A row is called after all that is not usual in it.
"""

from typing import NamedTuple

import torch
from covering import Rules, covering, rule

import pyro_dssm as dssm
from pyro_dssm.testing import random_batch

X, Z = 3, 4
B, T = 4, 4
POWER = ("itakura-saito", "gamma", "log-normal", "power-gaussian")
YES = (False, True)

# What models and guides of the taxonomy are, and what they are called with. Structures are their four edges.
TAXONOMY = {
    "guide": tuple(dssm.GUIDES),
    "emission": ("gaussian", "bernoulli", "autoregressive", *POWER),
    "z_from_z": ("full", "markov", "none"),
    "z_from_x": ("none", "markov", "full"),
    "x_from_z": ("full", "markov"),
    "x_from_x": ("full", "markov", "none"),
    "initial": ("transition", "gaussian", "hierarchical"),
    "mask": ("none", "frames", "entries"),
    "flow": ("none", "plain", "conditional"),
    "standardise": YES,
    "rnn": ("gru", "lstm", "rnn"),
    "controls": YES,
    "sites": ("path", "step"),
    "truncation": ("whole", "chunks"),
    "shared": YES,
    "skip": YES,
    "guide_skip": YES,
    "residual": YES,
    "gated": YES,
    "reads_mask": YES,
    "encoder": YES,
}
# Models of one guide each. Of the emissions one that is read as it is and one that is not.
DYNAMICS = {
    "pair": (
        "EKVAE smoothing",
        "EKVAE filtering",
        "KVAE smoothing",
        "KVAE filtering",
        "DVBF",
        "LocallyLinearSSM",
        "RNN",
    ),
    "emission": ("gaussian", "gamma"),
    "mask": TAXONOMY["mask"],
    "initial": TAXONOMY["initial"],
    "flow": TAXONOMY["flow"],
    "standardise": (False, "shared"),
    "bound": ("joint", "collapsed"),
    "controls": YES,
    "sites": ("path", "step"),
    "truncation": ("whole", "chunks"),
    "square_root": YES,
    "reads_mask": YES,
}


def is_kalman(pair):
    return "KVAE" in pair


RULES = (
    rule("truncation", "sites")(lambda truncation, sites: truncation == "whole" or sites == "path"),
    rule("standardise", "emission")(lambda standardise, emission: not standardise or emission == "gaussian"),
)
OF_TAXONOMY = Rules(
    *RULES,
    # One RNN over both stands for two full edges.
    rule("shared", "x_from_z")(lambda shared, edge: not shared or edge == "full"),
    rule("shared", "x_from_x")(lambda shared, edge: not shared or edge == "full"),
    rule("residual", "emission")(lambda residual, emission: not residual or emission in POWER),
    # Full alignment may read all frames through the model, which leaves nothing to encode.
    rule("encoder", "guide")(lambda encoder, guide: not encoder or guide != "full"),
    # The last frame is at the end of what the emission reads.
    rule("residual", "x_from_x", "skip")(
        lambda residual, edge, skip: not residual or edge == "markov" or (edge == "full" and skip)
    ),
)
OF_DYNAMICS = Rules(
    *RULES,
    rule("pair", "bound")(lambda pair, bound: is_kalman(pair) or bound == "joint"),
    rule("pair", "square_root")(lambda pair, root: is_kalman(pair) or not root),
    # Without latents there is nothing that a control could drive.
    rule("pair", "controls")(lambda pair, controls: pair != "RNN" or not controls),
    rule("pair", "reads_mask")(lambda pair, reads: pair != "RNN" or not reads),
    # Smoothing draws backward in time: see `KalmanGuide`.
    rule("pair", "mask", "sites")(
        lambda pair, mask, sites: not pair.endswith("smoothing") or mask == "none" or sites == "path"
    ),
    rule("pair", "flow")(lambda pair, flow: flow == "none" or pair in ("DVBF", "LocallyLinearSSM")),
    rule("pair", "initial")(
        lambda pair, initial: (
            initial
            in {
                "DVBF": ("transition", "gaussian", "hierarchical"),
                "LocallyLinearSSM": ("gaussian",),
                "RNN": ("transition",),
            }.get(pair, ("gaussian", "hierarchical"))
        )
    ),
)


class Pair(NamedTuple):
    """One row.

    Attributes:
        row: Its values by factor.
    """

    row: dict

    def build(self):
        """The model and its guide, in the default dtype, with parameters of their own choice."""
        model, guide = (taxonomy if "guide" in self.row else dynamics)(self.row)
        if self.row["flow"] != "none":
            guide = dssm.FlowGuide(guide, 2, 16, conditional=self.row["flow"] == "conditional")
        if model.standardise is not None:
            model.standardise.fit(dssm.SequenceDataset(torch.randn(5, 6, X) * torch.tensor([0.5, 2.0, 3.0]) + 1.0))
        model.sites = self.row["sites"]
        return model, guide

    def batch(self, model):
        """Noise of the right kind, the first sequence of which has no padding."""
        batch = random_batch(model, B, T)
        return batch._replace(mask=MASKS[self.row["mask"]](batch.x))

    def data(self, model):
        """The same as a data set."""
        x, lengths, mask, controls = self.batch(model)

        def cut(values):
            return None if values is None else [v[:n] for v, n in zip(values, lengths, strict=True)]

        return dssm.SequenceDataset(cut(x), controls=cut(controls), masks=cut(mask))


def seen(*shape):
    """A mask, with the first frames of each sequence observed."""
    mask = torch.rand(shape) > 0.4
    mask[:, 0] = True
    return mask


MASKS = {"none": lambda x: None, "frames": lambda x: seen(*x.shape[:2]), "entries": lambda x: seen(*x.shape)}


def taxonomy(row):
    options = {"emission_options": {"residual": True}} if row["residual"] else {}
    model = dssm.DSSM(
        dssm.Structure(*(row[edge] for edge in ("z_from_z", "z_from_x", "x_from_z", "x_from_x"))),
        X,
        Z,
        rnn_dim=3,
        mlp_dims=(16,),
        transition_net="gated" if row["gated"] else "mlp",
        control_dim=int(row["controls"]),
        **{key: row[key] for key in ("emission", "initial", "standardise", "rnn", "shared", "skip")},
        **options,
    )
    guide = dssm.GUIDES[row["guide"]](
        model,
        rnn_dim=8,
        hidden_dim=16,
        rnn=row["rnn"],
        skip=row["guide_skip"],
        gated=row["gated"],
        reads_mask=row["reads_mask"],
        encoder_dims=(16,) if row["encoder"] else (),
    )
    return model, guide


def dynamics(row):
    options = {key: row[key] for key in ("emission", "standardise")}
    options["control_dim"] = int(row["controls"])
    name, _, kind = row["pair"].partition(" ")
    reads = {"reads_mask": row["reads_mask"]}
    if is_kalman(name):
        options |= {key: row[key] for key in ("initial", "bound", "square_root")}
        more = {"num_matrices": 2, "rnn_dim": 3} if name == "KVAE" else {"dynamics_options": {"num_matrices": 2}}
        model = getattr(dssm, name)(X, 2, 2, mlp_dims=(16,), **options, **more)
        return model, dssm.KalmanGuide(model, kind=kind, encoder_dims=(16,), **reads)
    if name == "RNN":
        model = dssm.RNN(X, rnn_dim=3, mlp_dims=(16,), **options)
        return model, dssm.NoLatents(model)
    options |= {"initial": row["initial"], "num_matrices": 2, "hidden_dim": 16, "mlp_dims": (16,)}
    if name == "DVBF":
        model = dssm.DVBF(X, Z, **options)
        return model, dssm.NoiseGuide(model, rnn_dim=8, hidden_dim=16, **reads)
    model = dssm.LocallyLinearSSM(X, Z, **options)
    return model, dssm.FusionGuide(model, hidden_dim=16, **reads)


def name_of(row, factors):
    """What is not usual in a row, after what it is: of the taxonomy its edges by their first letters, and its guide."""
    words, rest = [], dict(row)
    if "guide" in row:
        edges = [rest.pop(edge) for edge in ("z_from_z", "z_from_x", "x_from_z", "x_from_x")]
        words = ["".join(edge[0].upper() for edge in edges), rest.pop("guide")]
    for key, value in rest.items():
        if value != factors[key][0] or key in ("pair", "emission"):
            words.append(WORDS.get((key, value), key if value is True else str(value)))
    return " ".join(words)


WORDS = {
    ("initial", "gaussian"): "start",
    ("initial", "hierarchical"): "zeta",
    ("flow", "plain"): "flow",
    ("flow", "conditional"): "conditional",
    ("standardise", "shared"): "standardise-shared",
    ("shared", True): "shared-rnn",
    ("guide_skip", True): "frame",
    ("controls", True): "u",
    ("reads_mask", True): "reads-mask",
    ("encoder", True): "encoded",
    ("square_root", True): "roots",
}


def table(factors, rules):
    return {name_of(row, factors): Pair(row) for row in covering(factors, rules)}


PAIRS = {**table(TAXONOMY, OF_TAXONOMY), **table(DYNAMICS, OF_DYNAMICS)}
