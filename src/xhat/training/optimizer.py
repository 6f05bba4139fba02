"""Adam and AdamW, their state in plain tensors."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from xhat.errors import CheckpointError

_SLOTS = ("exp_avg", "exp_avg_sq", "step")
_BETA1, _BETA2 = 0.9, 0.999


class Optimizer:
    """Adam, or AdamW, for a fixed list of parameters.

    The arithmetic is torch's own fused kernel. ``torch.optim.Adam.step`` costs more time around that kernel than a small model's
    kernel takes, so the kernel is called without it.

    Args:
        name: "adam" or "adamw".
        parameters: what is moved.
        weight_decay: added to the derivative (adam) or taken from the weights (adamw).
        epsilon: added to the root of the second moment.

    Source: Kingma & Ba (2015); Loshchilov & Hutter (2019).
    """

    def __init__(self, name: str, parameters: Sequence[nn.Parameter], weight_decay: float = 0.0, epsilon: float = 1e-8) -> None:
        self.decoupled = name == "adamw"
        self.parameters, self.weight_decay, self.epsilon = list(parameters), weight_decay, epsilon
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        # Where the weights are, as the fused kernel wants it
        self.steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in self.parameters]

    def rates(self, count: int) -> Tensor:
        """A place for learning rates that steps read from memory, ``(count,)``, as the fused kernel wants it.

        On a CUDA device that is float32, so there a rate that is given as a number is rounded to one: a step is the same
        whichever way it learns its rate.
        """
        device = self.parameters[0].device
        return torch.zeros(count, dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)

    def step(self, derivatives: Sequence[Tensor | None], rate: float | Tensor) -> None:
        """Move the parameters; those without a derivative stay, with their moments."""
        if not isinstance(rate, Tensor) and self.parameters[0].device.type == "cuda":
            rate = struct.unpack("f", struct.pack("f", rate))[0]  # the nearest float32
        moved = [i for i, derivative in enumerate(derivatives) if derivative is not None]
        if len(moved) == len(self.parameters):
            lists = (self.parameters, derivatives, self.first, self.second, self.steps)
        else:
            lists = tuple(
                [held[i] for i in moved] for held in (self.parameters, derivatives, self.first, self.second, self.steps)
            )  # type: ignore[assignment]
            if not moved:
                return
        parameters, used, first, second, steps = lists
        with torch.no_grad():
            adam(
                parameters,  # type: ignore[arg-type]
                list(used),  # type: ignore[arg-type]
                first,
                second,
                [],
                steps,
                fused=True,
                decoupled_weight_decay=self.decoupled,
                amsgrad=False,
                beta1=_BETA1,
                beta2=_BETA2,
                lr=rate,
                weight_decay=self.weight_decay,
                eps=self.epsilon,
                maximize=False,
            )

    def tensors(self) -> dict[str, Tensor]:
        """The state, by the parameter's position and the slot's name."""
        return {
            f"{index}/{name}": value
            for index, slots in enumerate(zip(self.first, self.second, self.steps, strict=True))
            for name, value in zip(_SLOTS, slots, strict=True)
        }

    def restore(self, tensors: dict[str, Tensor], where: str) -> None:
        """Take up the state that :meth:`tensors` gave, in place.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        for name, held in self.tensors().items():
            value = tensors.get(name)
            if value is None or value.shape != held.shape:
                raise CheckpointError(f"{where} does not hold the optimiser's {name} of this model: restore it, or train again")
            held.copy_(value)
