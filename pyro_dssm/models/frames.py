"""The frames of a model: what comes in is checked, what goes out has the data's units and its calibrated scale."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from .._utils.checks import event
from .._utils.types import Distribution, check_types
from ..emissions import Emission, expected
from ..nn.layers import normal
from ..programs._program import Program
from ..programs.batch import CheckedBatch, check_batch
from ..programs.shared import carry_of
from ..programs.steps import normal_of
from .affine import in_own_units
from .standardise import Standardise

__all__ = ["FrameModel"]


class _Plain(Emission):
    """The emission of a model that overrides :meth:`DSSM.emission`: nothing is special about its frames."""

    def forward(self, features: Tensor) -> Distribution:
        raise NotImplementedError


_PLAIN = _Plain()


class FrameModel(Program):
    """The abstract base of models: how their frames are checked, read and drawn.

    Attributes:
        x_dim: Size of a frame.
        control_dim: Size of a control.
        standardise: The units in which networks read and write frames, if these are not the data's.
        calibration: Factors of the scale with which frames are drawn, shape ``(x_dim,)``, once it is calibrated.
    """

    x_dim: int
    control_dim: int
    standardise: Standardise | None
    calibration: Tensor | None
    _draws_calibrated = False

    @property
    def like(self) -> Tensor:
        """A tensor of the model's device and dtype."""
        return next(self.parameters(), torch.empty(0))

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self.like.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of its parameters; that of the data must be the same."""
        return self.like.dtype

    @property
    def frame_part(self) -> Emission:
        """The emission, which says how frames are checked and read."""
        part = self._modules.get("emission_net")
        return part if isinstance(part, Emission) else _PLAIN

    @property
    def binary(self) -> bool:
        """Whether frames are zeros and ones."""
        return self.frame_part.binary

    @property
    def neutral(self) -> Tensor | None:
        """What stands for a frame of which nothing is known, shape ``(x_dim,)``; ``None`` for zeros."""
        return None if self.standardise is None else self.standardise.loc

    # Frames that come in.

    def check(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> CheckedBatch:
        """Checks a call's arguments, and brings them into one form.

        Args:
            x: Observations, shape ``(*, B, T, x_dim)``.
            lengths: Shape ``(B,)``.
            mask: Shape ``(B, T)`` or ``(B, T, x_dim)``, True where observed.
            controls: Shape ``(B, T, control_dim)``.

        Returns:
            The checked batch.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value.
        """
        if self.standardise is not None:
            self.standardise.need_fitted()
        batch = check_batch(
            x,
            lengths,
            mask,
            controls,
            like=self.like,
            x_dim=self.x_dim,
            control_dim=self.control_dim,
            carry=carry_of(self),
            neutral=self.neutral,
        )
        self.frame_part.check(batch.x if self.standardise is None else self.standardise(batch.x), batch.observed)
        batch.read = self.read
        return batch

    def observe(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> CheckedBatch:
        """Deprecated: the old name of :meth:`check`, to which it forwards.

        Args:
            x: As in :meth:`check`.
            lengths: As there.
            mask: As there.
            controls: As there.

        Returns:
            The checked batch.

        Warns:
            DeprecationWarning: Always.
        """
        warnings.warn("observe is an old name, call check instead.", DeprecationWarning, stacklevel=2)
        return self.check(x, lengths, mask, controls)

    def read(self, x: Tensor) -> Tensor:
        """Frames as all networks read them, shape ``(*, x_dim)``: standardised, and in the form of the emission."""
        return self.frame_part.read(x if self.standardise is None else self.standardise(x))

    def read_mean(self, fn: Distribution) -> Tensor:
        """What networks read instead of a frame when only its distribution is known, shape ``(*, x_dim)``."""
        own = fn if self.standardise is None else in_own_units(fn)
        if own is None:
            return self.read(expected(fn))
        return self.frame_part.read_mean(own)

    # Frames that go out.

    def frames_from(self, fn: Distribution) -> Distribution:
        """The distribution of frames, in the data's units, from what :meth:`DSSM.emission` has returned."""
        fn = event("emission", fn, self.x_dim)
        if self._draws_calibrated and self.calibration is not None:
            base = normal_of(fn)
            if base is None:
                raise ValueError(f"emission: expected independent Gaussian entries as calibrated, got {fn!r}.")
            fn = normal(base.loc, self.calibration * base.scale)
        return fn if self.standardise is None else self.standardise.undo_distribution(fn)

    @property
    def calibrated(self) -> bool:
        """Whether frames are drawn with a scale that :func:`~pyro_dssm.calibrate` has fitted."""
        return self.calibration is not None

    def uncalibrate(self) -> None:
        """Lets frames be drawn with the scale of training again."""
        self.calibration = None

    @contextmanager
    def calibrated_frames(self, calibrated: bool = True) -> Iterator[None]:  # noqa: FBT001, FBT002
        """For a while, frames have the calibrated scale, where there is one; otherwise, that of training.

        Args:
            calibrated: ``False`` for that of training.

        Yields:
            Nothing.
        """
        check_types(FrameModel.calibrated_frames, locals())
        before, self._draws_calibrated = self._draws_calibrated, calibrated
        try:
            yield
        finally:
            self._draws_calibrated = before

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: object) -> None:
        # Models are built without a calibration, but the state to be loaded may have one.
        found = state_dict.get(f"{prefix}calibration")
        self.calibration = None if found is None else self.like.new_ones(self.x_dim)
        super()._load_from_state_dict(state_dict, prefix, *args)
