"""Matrix products of a compiled step, by the faster library: see :mod:`xhat.networks.products`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from xhat.networks.products import WORTH, linear, worth


@functools.cache
def _operators() -> tuple[torch.library.Library, Any, Any]:
    """``xhat::product(a, b)`` and ``xhat::product_plus(c, a, b)``, registered when first needed.

    What is registered lives as long as the library object, so that is kept, too.
    """
    library = torch.library.Library("xhat", "FRAGMENT")
    library.define("product(Tensor a, Tensor b) -> Tensor")
    library.define("product_plus(Tensor c, Tensor a, Tensor b) -> Tensor")
    library.impl("product", lambda a, b: linear(a, b.t()), "CPU")
    library.impl("product_plus", lambda c, a, b: linear(a, b.t(), c), "CPU")
    library.impl("product", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")
    library.impl("product_plus", lambda c, a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")
    return library, torch.ops.xhat.product.default, torch.ops.xhat.product_plus.default


class OneDNNProducts(CustomGraphPass):
    """A pass over a lowered graph that hands its large float32 products to oneDNN."""

    def __init__(self) -> None:
        _operators()  # here, for a program that the compiler finds in its cache on disk is run without the pass

    def __call__(self, graph: fx.Graph) -> None:
        _, product, product_plus = _operators()
        for node in graph.nodes:
            if node.op != "call_function" or node.kwargs:
                continue
            if node.target is torch.ops.aten.mm.default:
                (a, b), target = map(_value, node.args), product
            elif node.target is torch.ops.aten.addmm.default:
                (c, a, b), target = map(_value, node.args), product_plus
                if c is None or c.dim() != 1:  # a linear layer adds the same row to every row, and nothing else
                    continue
            else:
                continue
            if a is not None and b is not None and worth(a, b.t()):
                node.target = target

    def uuid(self) -> Any:
        """What the compiler's cache on disk knows the pass by."""
        return f"xhat oneDNN products from {WORTH:g}"


def _value(argument: Any) -> Tensor | None:
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    return value if isinstance(value, Tensor) else None
