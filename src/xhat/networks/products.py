"""Large float32 products on a processor, by the faster of the two libraries that torch carries.

On x86 processors torch multiplies float32 matrices with MKL. On those that are not Intel's, MKL leaves half of the processor's
speed unused; oneDNN, which torch carries too, does not. The choice is by the processor's maker, never by a measurement, so
that the same seed gives the same digits in every run on one machine.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

WORTH = 4e6  # operations; below it the call itself takes longer than the product


@functools.cache
def better_without_mkl() -> bool:
    """Whether float32 products are faster through oneDNN: on an x86 processor of another maker than Intel."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    return torch.backends.mkl.is_available() and _maker() not in ("GenuineIntel", "")


def _maker() -> str:
    """What the processor says of its maker; empty where the system does not tell."""
    if sys.platform.startswith("linux"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
    return "AuthenticAMD" if "AMD" in platform.processor() else ""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:math:`x W^\\top + c` through oneDNN, without a derivative; each factor may be transposed, or a part of a larger one."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        # Of a part of a larger matrix (a layer of z in a code of several) oneDNN multiplies number by number, 2,000 times slower.
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def worth(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`linear` serves a product, and is worth calling for it."""
    return (
        x.dtype == torch.float32
        and weight.dtype == torch.float32
        and x.device.type == "cpu"
        and 2 * x.numel() * weight.shape[0] >= WORTH
        and not is_functorch_wrapped_tensor(x)  # a stack of models at once, which oneDNN would take one by one
        and not is_functorch_wrapped_tensor(weight)
    )


class _Inference(TorchFunctionMode):
    """Hands the large linear layers that need no derivative to oneDNN, whoever's network they stand in."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and len(args) >= 2 and worth(args[0], args[1]) and not torch.is_grad_enabled():
            return linear(*args)
        return func(*args, **(kwargs or {}))


def quick_products() -> contextlib.AbstractContextManager[object]:
    """A context in which linear layers without a derivative take the faster library, where there is one."""
    return _Inference() if better_without_mkl() else contextlib.nullcontext()
