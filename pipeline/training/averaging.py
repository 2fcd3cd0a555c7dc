"""The exponential moving average of the weights of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of the trained parameters of a model over its steps; it starts from the weights before the first.

    Frozen parameters are left out, and so are buffers: BatchNorm's statistics are averages already.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._averages = {name: value.detach().clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after a step, counted from 0: A becomes d A + (1 - d) W with d = min(decay, (1+t) / (10+t)).

        The bound, TensorFlow's, makes the first weights fade: those of a new a2t module are random.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, average in self._averages.items():
            average.lerp_(self._weights[name], 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model its averaged weights inside the block, and its own after it, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def put_in_place(self) -> None:
        """Give the model its averaged weights for good."""
        for name, average in self._averages.items():
            self._weights[name].copy_(average)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self._averages.items():
            weights = self._weights[name].clone()
            self._weights[name].copy_(average)
            average.copy_(weights)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by the names of the parameters, for a checkpoint."""
        return dict(self._averages)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from the averages of a checkpoint."""
        for name, average in self._averages.items():
            average.copy_(state[name])
