"""What every model and guide has to keep, as checks for your own: each raises ``AssertionError`` in words.

:class:`PairContract` gathers them into a test class to inherit, :func:`check_pair` into one call. All work on a
model and a guide in any dtype; ``float64`` is the one to use, since float32 rounding hides small mistakes. What is
random in them comes from torch's generator: from one seed, a check finds the same.

- :mod:`~pyro_dssm.testing.forms`: the two forms of sites agree.
- :mod:`~pyro_dssm.testing.invariance`: padding, batch-mates and hidden values change nothing.
- :mod:`~pyro_dssm.testing.draws`: draws follow their densities.
- :mod:`~pyro_dssm.testing.normalisation`: densities integrate to one.
- :mod:`~pyro_dssm.testing.derivatives`: gradients are derivatives, and train every parameter.
- :mod:`~pyro_dssm.testing.reparameterisation`: draws pass on their whole gradient.
- :mod:`~pyro_dssm.testing.parents`: every density depends on what is declared, and on nothing else.
"""

from .contract import PairContract, check_pair
from .densities import gradients, log_probs_at, log_probs_per_step, log_weights_at
from .derivatives import check_density_gradients, check_every_parameter_moves
from .draws import check_draws_follow_their_density, check_draws_have_their_density
from .forms import check_sites_agree
from .invariance import (
    check_batch_changes_nothing,
    check_densities_repeat,
    check_hidden_values_change_nothing,
    check_padding_changes_nothing,
)
from .normalisation import check_densities_integrate_to_one
from .parents import check_guide_parents, check_parents, check_wrapper_keeps_parents, parents_by_jacobian
from .reparameterisation import check_draw_gradients
from .samples import random_batch, random_latents
from .sites import FORMS, run_as, steps_have_rsample

__all__ = [
    "FORMS",
    "PairContract",
    "check_batch_changes_nothing",
    "check_densities_integrate_to_one",
    "check_densities_repeat",
    "check_density_gradients",
    "check_draw_gradients",
    "check_draws_follow_their_density",
    "check_draws_have_their_density",
    "check_every_parameter_moves",
    "check_guide_parents",
    "check_hidden_values_change_nothing",
    "check_padding_changes_nothing",
    "check_pair",
    "check_parents",
    "check_sites_agree",
    "check_wrapper_keeps_parents",
    "gradients",
    "log_probs_at",
    "log_probs_per_step",
    "log_weights_at",
    "parents_by_jacobian",
    "random_batch",
    "random_latents",
    "run_as",
    "steps_have_rsample",
]
