"""Faults that are planted in the core, one at a time: a test of the default run has to find each.

``python tests/mutants.py`` plants all of them in turn in a copy of the checkout, runs the tests that are likely to see
it and, where these pass, the whole default run. ``--list`` shows the table, ``--only NAME`` takes a few, ``--quick``
leaves the whole run out. Ends with an error if one survives.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "shared", "*.egg-info")
MINUTES = 20
KIT = ("tests/contract/test_pairs.py", "-k", "kit_passes and not seeds")


class Mutant(NamedTuple):
    """A fault.

    Attributes:
        file: Of the package.
        text: What stands there exactly once.
        instead: What is put in its place.
        breaks: In one line, what is wrong then.
        first: Arguments of pytest: the tests that are likely to see it.
    """

    file: str
    text: str
    instead: str
    breaks: str
    first: tuple[str, ...]


MUTANTS = {
    # Programs.
    "padding counts": Mutant(
        "programs/path.py",
        "return terms if self.valid is None else torch.where(self.valid, terms, 0.0)",
        "return terms",
        "the density of a path counts its padding (a wrong mask)",
        KIT,
    ),
    "padding is observed": Mutant(
        "programs/batch.py",
        "observed = mask if observed is None else mask & observed",
        "observed = mask",
        "with a mask, padding counts as observed",
        KIT,
    ),
    "early controls": Mutant(
        "programs/batch.py",
        "torch.cat([first.unsqueeze(-2), controls[..., :-1, :]], dim=-2)",
        "controls",
        "a control drives the transition into its own step (a shifted index)",
        (
            "tests/unit/models/test_dvbf.py",
            "tests/unit/models/test_generation.py",
            "tests/unit/training/test_truncation.py",
        ),
    ),
    "lost carry": Mutant(
        "programs/states.py",
        "{name: state.detach()[index] for",
        "{name: torch.zeros_like(state[index]) for",
        "the states of memories are not handed on between chunks",
        ("tests/contract/test_pairs.py", "-k", "chunks_add_up"),
    ),
    # Models and their networks.
    "no first": Mutant(
        "models/path.py",
        "= with_first(self.first, fn if fn.batch_shape else fn.expand(z.shape[:-1]))",
        "= fn if fn.batch_shape else fn.expand(z.shape[:-1])",
        "a path is scored without its own distribution of the start (a dropped factor)",
        KIT,
    ),
    "own latent": Mutant(
        "nn/memories.py",
        'before["z"] = self.get("z").past(z, start["z"])',
        'before["z"] = z',
        "with path sites, a transition reads the latent that it is scored at (a shifted index)",
        KIT,
    ),
    "no volume of units": Mutant(
        "models/affine.py",
        "return log_prob - self.factor.log()",
        "return log_prob",
        "the density in data units lacks its Jacobian",
        ("tests/unit/models/test_standardise.py",),
    ),
    "no volume of codes": Mutant(
        "models/codes.py",
        ".square() - scale.log() - 0.5",
        ".square() - 0.5",
        "the density of states and codes lacks its normaliser",
        ("tests/unit/models/test_codes.py", "tests/unit/models/test_kalman_vae.py"),
    ),
    # Guides.
    "backwards states": Mutant(
        "guides/context.py",
        "parts.append(reverse(backwards, ",
        "parts.append((lambda values, _: values)(backwards, ",
        "what the guide reads of later frames is in the wrong order of time",
        ("tests/contract/test_parents.py", "-k", "alignment"),
    ),
    "inverted flow": Mutant(
        "guides/flow.py",
        "(-log_scale[..., i]).exp()",
        "log_scale[..., i].exp()",
        "the inverse of a flow scales the wrong way",
        ("tests/unit/guides/test_flow.py",),
    ),
    "late contexts": Mutant(
        "guides/flow_path.py",
        "None if self.contexts is None else self.contexts[t])",
        "None if self.contexts is None else self.contexts[t - 1])",
        "a conditional flow draws with the context of another step than it scores with",
        (*KIT[:2], "kit_passes and conditional and not seeds"),
    ),
    "swapped fusion": Mutant(
        "guides/variational_filter.py",
        "variance * (precision * prior_loc + own * loc)",
        "variance * (own * prior_loc + precision * loc)",
        "each mean is weighted with the precision of the other",
        ("tests/unit/models/test_dvbf.py",),
    ),
    # Kalman filters.
    "added covariance": Mutant(
        "kalman/_step.py",
        "a = eye - (pad(k,",
        "a = eye + (pad(k,",
        "an update adds to the covariance what it knows (a wrong sign)",
        ("tests/unit/kalman/test_kalman_filter.py",),
    ),
    "no determinant": Mutant(
        "kalman/filtered.py",
        "-0.5 * (square + log_det + count",
        "-0.5 * (square + count",
        "the likelihood of the innovations lacks its normaliser",
        ("tests/unit/kalman/test_kalman_filter.py",),
    ),
    "smoothed backwards": Mutant(
        "kalman/smoother.py",
        "chain.drift.flip(-2)).flip(-2)",
        "chain.drift.flip(-2))",
        "the smoothed means are in the wrong order of time",
        ("tests/unit/kalman/test_kalman_filter.py",),
    ),
    # Emissions.
    "no volume of logarithms": Mutant(
        "emissions/spectra.py",
        "return log_prob - log_x",
        "return log_prob",
        "a log-normal density is that of the logarithm (a missing Jacobian)",
        ("tests/unit/emissions/test_power.py", *KIT),
    ),
    "hidden frames count": Mutant(
        "emissions/hidden.py",
        "return _masked(fn, observed[..., 0])",
        "return fn",
        "whole frames that are hidden are scored",
        ("tests/unit/emissions", "-k", "hidden"),
    ),
    # Objectives.
    "unweighted divergence": Mutant(
        "objectives/elbo.py",
        'scale_and_mask(terms, guide_site["scale"], guide_site["mask"]).sum()',
        'scale_and_mask(terms, mask=guide_site["mask"]).sum()',
        "the recorded bound ignores the weight of its divergence",
        ("tests/contract/test_svi.py", "-k", "kl_weight"),
    ),
    "uphill": Mutant(
        "objectives/elbo.py",
        "return -torch_item(bound), -(bound + score_terms(",
        "return -torch_item(bound), (bound + score_terms(",
        "gradients have the wrong sign",
        ("tests/unit/objectives/test_estimators.py",),
    ),
    "credit for the past": Mutant(
        "objectives/_credit.py",
        "term.steps.flip(-1).cumsum(-1).flip(-1)",
        "term.steps.cumsum(-1)",
        "the score of a step is multiplied with what came before it, not after",
        ("tests/unit/objectives/test_estimators.py",),
    ),
    # Particles.
    "blind resampling": Mutant(
        "particles/sweep.py",
        "index = _pick(weights, self.sizes[t])",
        "index = _pick(torch.ones_like(weights), self.sizes[t])",
        "particles are resampled without their weights",
        ("tests/unit/particles/test_filling.py",),
    ),
    "free proposals": Mutant(
        "particles/proposal.py",
        "(1 - fraction).log() + q.log_prob(z))",
        "(1 - fraction).log())",
        "the density of what particles are drawn from is left out of their weights",
        ("tests/unit/particles/test_filling.py",),
    ),
    # Evaluation.
    "guide as a friend": Mutant(
        "evaluation/likelihood.py",
        "(guide_trace, -1)",
        "(guide_trace, 1)",
        "a bound adds the density of the guide",
        ("tests/contract/test_oracles.py", "-k", "exact_guide"),
    ),
    "sum of weights": Mutant(
        "evaluation/likelihood.py",
        "log_w.logsumexp(0) - math.log(num_particles)",
        "log_w.logsumexp(0)",
        "the tighter bound is the sum of the weights, not their mean",
        ("tests/contract/test_oracles.py",),
    ),
    "errors of the present": Mutant(
        "evaluation/prediction.py",
        "past, future = slice(None, known), slice(known, known + horizon)",
        "past, future = slice(None, known), slice(known - 1, known + horizon - 1)",
        "predictions are compared with the frames one step before (a shifted index)",
        ("tests/unit/evaluation/test_prediction.py",),
    ),
    # Training.
    "no annealing": Mutant(
        "training/_steps.py",
        "kl_weight(w):",
        "kl_weight(1.0):",
        "fit ignores the schedule of the weight",
        ("tests/unit/training/test_training.py", "-k", "kl or weight or schedule"),
    ),
    "hasty average": Mutant(
        "training/_weights.py",
        "fraction = 1 - min(self.averaging,",
        "fraction = min(self.averaging,",
        "the average of the weights follows the last ones",
        ("tests/unit/training", "-k", "averag"),
    ),
    "lost moments": Mutant(
        "training/_adapted.py",
        "self.optimizer._waiting = dict(state)",
        "self.optimizer._waiting = {}",
        "a run that resumes has lost the moments of its optimiser",
        ("tests/unit/training/test_resume.py",),
    ),
    # Saving.
    "thawed": Mutant(
        "saving/_describing.py",
        "for path, p in program.named_parameters() if not p.requires_grad)",
        "for path, p in program.named_parameters() if p is None)",
        "a file does not know which parameters are frozen",
        ("tests/unit/saving/test_files.py", "tests/unit/saving/test_checkpoints.py", "-k", "frozen or freez"),
    ),
    "loaded without its guide": Mutant(
        "saving/_states.py",
        "            module.load_state_dict(own)\n",
        "            module.load_state_dict(own) if prefix == 'model' else None\n",
        "the guide of a pair that is loaded is a new one",
        ("tests/contract/test_pairs.py", "-k", "file"),
    ),
}


def planted(mutant):
    """The file with the fault in it.

    Raises:
        ValueError: If the text does not stand there exactly once.
    """
    content = (ROOT / "pyro_dssm" / mutant.file).read_text()
    count = content.count(mutant.text)
    if count != 1:
        raise ValueError(f"{mutant.file}: expected {mutant.text!r} once, found it {count} times.")
    return content.replace(mutant.text, mutant.instead)


@contextlib.contextmanager
def copied():
    """A copy of the checkout."""
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        yield copy


def run(copy, *arguments):
    """The first test of a run that fails; ``None`` where all pass.

    Raises:
        RuntimeError: If the run itself does not work.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    command += ["--basetemp", str(copy.parent / "tmp"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=60 * MINUTES, check=False
    )
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", done.stdout, re.M)
    if found is None or done.returncode not in (1, 2):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found[1]


def killed(mutant, copy, *, quick=False):
    """The test that finds a fault, in a copy of the checkout; ``None`` where it survives."""
    path = copy / "pyro_dssm" / mutant.file
    before = path.read_text()
    path.write_text(planted(mutant))
    try:
        found = run(copy, *mutant.first)
        if found is None and not quick:
            found = run(copy, "-n", "2", "--dist", "worksteal")
        return found
    except subprocess.TimeoutExpired:
        return f"none, but it takes more than {MINUTES} minutes"
    finally:
        path.write_text(before)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="shows the table and runs nothing")
    parser.add_argument("--only", action="append", choices=list(MUTANTS), help="a mutant; may be given again")
    parser.add_argument("--quick", action="store_true", help="leaves out the whole default run")
    options = parser.parse_args()
    chosen = {name: MUTANTS[name] for name in options.only or MUTANTS}
    if options.list:
        for name, mutant in chosen.items():
            print(f"{name:26} {mutant.file:28} {mutant.breaks}")
        return 0
    survivors = []
    with copied() as copy:
        for name, mutant in chosen.items():
            begun = time.monotonic()
            found = killed(mutant, copy, quick=options.quick)
            print(f"{name:26} {time.monotonic() - begun:6.0f} s  {found or 'SURVIVES'}", flush=True)
            survivors += [] if found else [name]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed" + (f"; {survivors} survive" if survivors else ""))
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
