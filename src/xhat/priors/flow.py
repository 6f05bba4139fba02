"""A learned prior: a standard Normal bent by invertible layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, Independent
from torch.distributions import Normal as TorchNormal

from xhat import distributions
from xhat.errors import ConfigError, DataError
from xhat.networks.base import as_shape, check_condition
from xhat.networks.invertible import invertible_layers
from xhat.parts import Part
from xhat.priors.base import need_condition

KINDS = ("autoregressive", "coupling", "spline")


class Flow(Part, nn.Module):
    r"""A normalising flow as a prior, trained with the model or on codes afterwards.

    .. math:: \log p(z) = \log N(u; 0, I) + \log \left| \det \frac{\partial u}{\partial z} \right|,
              \qquad u = T\!\left(\frac{z - m}{s}\right)

    The density takes one pass of each layer; a draw takes the way back, d passes in turn, or two for ``"coupling"``. It starts as
    N(m, diag s²), with m = 0 and s = 1 the standard Normal. m and s are buffers, which training leaves alone:
    :meth:`standardise` sets them from codes. Do so before fitting a prior to codes, above all the splines, which bend space
    within five s of m and leave the rest as it is.

    Args:
        event: size d of one draw.
        kind: ``"autoregressive"`` (affine in each element, given all before it), ``"coupling"`` (affine, half given the other
            half) or ``"spline"`` (autoregressive, with a monotone rational-quadratic spline for each element: 8 bins).
        transforms: the number of layers; their order alternates.
        hidden: sizes of the hidden layers of each masked network.
        condition: C, how many numbers of a condition the layers depend on; 0 for none.

    Raises:
        ConfigError: an event with more than one axis; an unknown kind; a size below 1; zuko is not installed
            (``pip install 'xhat[flows]'``).

    Source: Papamakarios, Pavlakou & Murray (2017); as a prior: Chen et al. (Variational lossy autoencoder, 2017); splines:
    Durkan et al. (2019).

    >>> prior = Flow(20)
    >>> prior().log_prob(torch.zeros(20))
    tensor(-18.3788, grad_fn=<AddBackward0>)
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        event: int | Sequence[int],
        kind: str = "autoregressive",
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        condition: int = 0,
    ) -> None:
        super().__init__()
        self.event = as_shape(event, "event")
        if len(self.event) != 1:
            raise ConfigError(f"a flow needs an event with one axis, was {self.event}: use StandardNormal instead")
        if kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, was {kind!r}")
        self.register_buffer("loc", torch.zeros(self.event))
        self.register_buffer("scale", torch.ones(self.event))
        form = "spline" if kind == "spline" else "affine"
        self.condition = check_condition(condition)
        self.flow = invertible_layers(self.event[0], self.condition, form, kind == "coupling", transforms, hidden)

    def standardise(self, codes: Tensor) -> None:
        """Take m and s from codes, ``(N, d)``: their mean and standard deviation, element by element.

        It changes the law at once, so do it before training, not after. An element that does not vary keeps s = 1.

        Raises:
            DataError: codes of another shape, fewer than two, or some that are not finite.
        """
        if codes.ndim != 2 or tuple(codes.shape[1:]) != self.event or len(codes) < 2:
            raise DataError(f"codes must have shape (N, {self.event[0]}) with N at least 2, was {tuple(codes.shape)}")
        if not bool(codes.isfinite().all()):
            raise DataError("codes must be finite numbers, and some are not: look at the posterior that made them")
        with torch.no_grad():
            codes = codes.to(self.loc)
            scale, loc = torch.std_mean(codes, 0)
            rounding = 10 * torch.finfo(codes.dtype).eps * codes.abs().amax(0)
            self.loc.copy_(loc)
            self.scale.copy_(torch.where(scale > rounding, scale, torch.ones_like(scale)))

    def forward(self, condition: Tensor | None = None) -> Distribution:
        return self._law(need_condition(condition, self.condition, "the prior Flow")) if self.condition else self._law(None)

    def _law(self, condition: Tensor | None) -> Distribution:
        zeros = torch.zeros_like(self.loc)
        zeros = zeros if condition is None else zeros.expand(*condition.shape[:-1], -1)
        base = TorchNormal(zeros, torch.ones_like(zeros), validate_args=False)
        standard = AffineTransform(-self.loc / self.scale, 1 / self.scale, event_dim=1)
        return distributions.Flow(
            Independent(base, 1, validate_args=False),
            [standard, *(layer(condition) for layer in self.flow)],
            normalising=True,
            validate_args=False,
        )
