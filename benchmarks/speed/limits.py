"""The products and convolutions of a step alone: what no library that computes the same numbers gets below."""

from __future__ import annotations

from collections.abc import Callable

import torch
from benchmarks.speed.contender import Contender, Epoch
from benchmarks.speed.ours import model_of
from benchmarks.speed.tasks import Task
from torch import Tensor, nn

STEPS = 50  # in an epoch
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def shapes(task: Task) -> list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]]:
    """Each layer that multiplies, with the shapes of its input and output in one training step."""
    model, found = model_of(task), []

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        found.append((module, tuple(given[0].shape), tuple(out.shape)))

    for module in model.modules():
        if isinstance(module, LAYERS):
            module.register_forward_hook(note)
    model.loss(torch.zeros(task.batch, *task.shape))
    return found


class Limit(Contender):
    """Every product of a step on operands that lie ready: forward, gradient of the weights, and of all inputs but the data.

    Args:
        task: whose step.
        onednn: float32 products by oneDNN; else by what ``torch.mm`` calls.
        precision: "float32" or "bfloat16".
    """

    def __init__(self, task: Task, onednn: bool = False, precision: str = "float32") -> None:
        super().__init__(task)
        self.dtype, self.onednn = getattr(torch, precision), onednn
        self.operations: list[Callable[[], object]] = []
        self.step: Callable[[], None] | None = None
        with torch.no_grad():
            for number, (module, given, out) in enumerate(shapes(task)):
                if isinstance(module, nn.Linear):
                    self._linear(module, given, number > 0)
                else:
                    self._convolution(module, given, out, number > 0)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.task.device, dtype=self.dtype)

    def _linear(self, module: nn.Linear, given: tuple[int, ...], further: bool) -> None:
        rows = torch.Size(given[:-1]).numel()
        self._product(rows, module.in_features, module.out_features)
        self._product(module.out_features, rows, module.in_features)
        if further:
            self._product(rows, module.out_features, module.in_features)

    def _product(self, m: int, k: int, n: int) -> None:
        a, b = self._random(m, k), self._random(n, k)
        if self.onednn:
            self.operations.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
        else:
            out, b = self._random(m, n), b.t().contiguous()
            self.operations.append(lambda: torch.mm(a, b, out=out))

    def _convolution(self, module: nn.Module, given: tuple[int, ...], out: tuple[int, ...], further: bool) -> None:
        x, dy = (self._random(*shape).contiguous(memory_format=torch.channels_last) for shape in (given, out))
        weight = torch.randn_like(module.weight, device=self.task.device, dtype=self.dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        transposed = isinstance(module, nn.ConvTranspose2d)
        padding = list(module.output_padding)
        rest = (list(module.stride), list(module.padding), list(module.dilation), transposed, padding, module.groups)
        mask = [further, True, False]
        self.operations.append(lambda: torch.ops.aten.convolution(x, weight, None, *rest))
        self.operations.append(lambda: torch.ops.aten.convolution_backward(dy, x, weight, None, *rest, mask))

    def _once(self) -> None:
        for operation in self.operations:
            operation()

    def _recorded(self) -> Callable[[], None]:
        """All operations as one CUDA graph: else it is Python's launches that are measured."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            self._once()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._once()
        return graph.replay

    def epoch(self) -> Epoch:
        with torch.no_grad():
            if self.step is None:
                self.step = self._recorded() if self.task.device == "cuda" else self._once
            for _ in range(STEPS):
                self.step()
        return Epoch(STEPS, None)

    def parameters(self) -> None:
        return None
