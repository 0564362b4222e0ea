"""All checks at once: in one call, or as a test class to inherit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from torch import Tensor

from .._utils.types import check_types
from ..data.sequences import Batch
from ..guides import BaseGuide
from ..models.dssm import DSSM
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
from .parents import check_wrapper_keeps_parents
from .reparameterisation import check_draw_gradients
from .samples import random_batch
from .sites import FORMS, run_as

__all__ = ["PairContract", "check_pair"]

# A pair, and x, lengths and mask.
Arguments = tuple[DSSM, BaseGuide, Tensor, Tensor | None, Tensor | None]


class Controls(TypedDict):
    """What a pair is called with by keyword."""

    controls: Tensor | None


class Compared(Controls):
    """The same, and how much a difference may be."""

    tolerance: float | None


def check_pair(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """Runs every check that holds for any model and guide; trains them for a few steps at the end.

    In this order, so that a fault is called by its own name: a step draws no noise of its own; both forms of sites have
    the same densities; batch-mates, padding and hidden values change nothing; a guide around another keeps its parents;
    densities integrate to one; draws follow their densities; gradients of densities are derivatives; the losses of both
    forms agree; draws pass on their gradient; training moves every parameter. Latents may be discrete; then what needs
    a derivative with respect to them is left out. A second or two for a small pair; a pair with dropout has to be
    switched to ``eval()``.

    Args:
        model: The model.
        guide: Its guide.
        x: Shape ``(B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If one of them fails.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.VRNN(x_dim=3, z_dim=4, emission="gaussian").double()
        >>> guide = dssm.FullAlignment(model).double()
        >>> batch = random_batch(model)
        >>> check_pair(model, guide, *batch[:3])
    """
    check_types(check_pair, locals())
    kwargs: Controls = {"controls": controls}
    close: Compared = {"controls": controls, "tolerance": tolerance}
    args: Arguments = (model, guide, x, lengths, mask)
    # What other checks take for granted comes first, so that a fault is called by its own name.
    _in_both_forms(model, check_densities_repeat, args, close)
    check_sites_agree(*args, **close, elbos=())
    _in_both_forms(model, check_batch_changes_nothing, args, close)
    _in_both_forms(model, check_padding_changes_nothing, args, close)
    _in_both_forms(model, check_hidden_values_change_nothing, args, close)
    check_wrapper_keeps_parents(guide)
    check_densities_integrate_to_one(*args, **kwargs)
    check_draws_follow_their_density(*args, **kwargs)
    check_density_gradients(*args, **kwargs)
    check_draws_have_their_density(guide, x, lengths, mask, **close)
    check_sites_agree(*args, **close)
    _in_both_forms(model, check_draw_gradients, args, kwargs)
    _in_both_forms(model, check_every_parameter_moves, args, kwargs)


def _in_both_forms(model: DSSM, check: Callable[..., None], args: Arguments, kwargs: Controls) -> None:
    for form in FORMS:
        with run_as(model, form):
            try:
                check(*args, **kwargs)
            except ValueError as error:
                # Not every guide has step sites for every mask; those that have none say so.
                if form == "path" or not str(error).startswith("sites:"):
                    raise


class PairContract:
    """Tests for a model and a guide of your own: inherit, write :meth:`pair`, and let pytest collect it.

    Example:
        >>> import pyro_dssm as dssm
        >>> class TestMine(PairContract):
        ...     def pair(self):
        ...         model = dssm.SRNN(x_dim=3, z_dim=4, emission="gaussian")
        ...         return model, dssm.FullAlignment(model)
        >>> TestMine().test_sites_agree()
    """

    def pair(self) -> tuple[DSSM, BaseGuide]:
        """A fresh model and guide. To be written.

        Returns:
            The two.
        """
        raise NotImplementedError

    def batch(self, model: DSSM) -> Batch:
        """Data to test on; noise by default.

        Args:
            model: The model.

        Returns:
            A few sequences.
        """
        return random_batch(model)

    def _arguments(self) -> tuple[Arguments, Controls]:
        model, guide = self.pair()
        model.double(), guide.double()
        batch = self.batch(model).to(model.like)
        return (model, guide, *batch[:3]), {"controls": batch.controls}

    def test_sites_agree(self) -> None:
        """Both forms of sites have the same loss and gradients."""
        args, kwargs = self._arguments()
        check_sites_agree(*args, **kwargs)

    def test_densities_repeat(self) -> None:
        """A step draws no noise of its own."""
        self._in_both_forms(check_densities_repeat)

    def test_densities_integrate_to_one(self) -> None:
        """They are densities."""
        args, kwargs = self._arguments()
        check_densities_integrate_to_one(*args, **kwargs)

    def test_draws_follow_their_density(self) -> None:
        """What is drawn is what is scored."""
        args, kwargs = self._arguments()
        check_draws_follow_their_density(*args, **kwargs)

    def test_density_gradients(self) -> None:
        """Nothing is detached on the way to a density."""
        args, kwargs = self._arguments()
        check_density_gradients(*args, **kwargs)

    def test_draw_gradients(self) -> None:
        """Nor between a draw and the bound."""
        self._in_both_forms(check_draw_gradients)

    def test_wrapper_keeps_parents(self) -> None:
        """A guide around another reads what that reads."""
        args, _ = self._arguments()
        check_wrapper_keeps_parents(args[1])

    def test_draws_have_their_density(self) -> None:
        """What comes with a draw is its density."""
        args, kwargs = self._arguments()
        check_draws_have_their_density(*args[1:], **kwargs)

    def test_padding_changes_nothing(self) -> None:
        """Padding does not matter."""
        self._in_both_forms(check_padding_changes_nothing)

    def test_batch_changes_nothing(self) -> None:
        """Neither do order and batch-mates."""
        self._in_both_forms(check_batch_changes_nothing)

    def test_hidden_values_change_nothing(self) -> None:
        """Nor what is hidden."""
        self._in_both_forms(check_hidden_values_change_nothing)

    def test_every_parameter_moves(self) -> None:
        """SVI trains everything, in the second pair of a process as well."""
        self._in_both_forms(check_every_parameter_moves)

    def _in_both_forms(self, check: Callable[..., None]) -> None:
        for form in FORMS:
            args, kwargs = self._arguments()
            with run_as(args[0], form):
                check(*args, **kwargs)
