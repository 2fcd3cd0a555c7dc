"""Models are built without random weights where all weights are then loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

RANDOM = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "erfinv_")
"""Functions that the constructors of msclap and transformers draw their first weights with."""


class WithoutInitialization(TorchFunctionMode):
    """Within it, models are built with the values that memory happens to have.

    Drawing random ones takes half of the time that ms-clap 2023 takes to load from a folder.

    Only for a model whose every weight is then given, as `ClapModel.load_weights` demands.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
