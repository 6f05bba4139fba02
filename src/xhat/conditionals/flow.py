"""The flow posterior: a Normal bent by invertible layers that see the context."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributions import Distribution, Independent, constraints
from torch.distributions import Normal as TorchNormal

from xhat import distributions
from xhat.conditionals.base import TRANSFORMS, Headed, check_minimum, positive
from xhat.errors import ConfigError, whole_number
from xhat.networks.invertible import invertible_layers

KINDS = ("iaf", "coupling")


class Flow(Headed):
    r"""A normalising flow on an axis-aligned Normal, :math:`z = T_c(\mu(c) + \sigma(c)\,\varepsilon)`.

    .. math:: \log q(z) = \log N(u; \mu, \mathrm{diag}\,\sigma^2) - \log \left| \det \frac{\partial T_c}{\partial u} \right|

    Each layer of T is affine in each element, :math:`y_i = e^{a_i} u_i + m_i` with :math:`|a_i| < \log 1000`; a masked network
    makes a and m of the elements before i and of features of the context. T starts as the identity, so q as the Normal.

    Draws, and the density of a draw just made, take one pass of each layer: all that training with the pathwise gradient needs.
    The density of any other point, and so the gradients ``stl``, ``dreg``, ``score``, ``rloo`` and ``vimco``, needs the way back:
    d passes in turn for ``"iaf"``, two for ``"coupling"``.

    Args:
        network: from the context to features.
        event: size d of one draw.
        kind: ``"iaf"``, where an element depends on all before it, or ``"coupling"``, where half depends on the other half.
        transforms: the number of layers; their order alternates.
        hidden: sizes of the hidden layers of each masked network.
        context: how many numbers of the context the masked networks get; 0 for none, when only μ and σ depend on it.
        scale: how σ is made positive, ``"softplus"`` or ``"exp"``.
        minimum: lower bound of σ.

    Raises:
        ConfigError: an event with more than one axis; an unknown kind or scale; a size below 1; zuko is not installed
            (``pip install 'xhat[flows]'``).

    Source: Kingma et al. (Improved variational inference with inverse autoregressive flow, 2016); coupling: Dinh,
    Sohl-Dickstein & Bengio (2017).

    >>> import torch
    >>> from xhat.networks import MLP
    >>> q = Flow(MLP(784, [400]), event=20, kind="iaf")(torch.rand(5, 784))
    >>> z = q.rsample((3,))
    >>> z.shape, q.log_prob(z).shape
    (torch.Size([3, 5, 20]), torch.Size([3, 5]))
    """

    support = constraints.real

    def __init__(
        self,
        network: nn.Module,
        event: int | Sequence[int],
        kind: str = "iaf",
        transforms: int = 2,
        hidden: Sequence[int] = (64,),
        context: int = 16,
        scale: str = "softplus",
        minimum: float = 1e-4,
    ) -> None:
        shape = (event,) if isinstance(event, int) else tuple(event)
        if len(shape) != 1:
            raise ConfigError(f"a flow needs an event with one axis, was {shape}: use Normal instead")
        if kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, was {kind!r}")
        if scale not in TRANSFORMS:
            raise ConfigError(f"scale must be one of {', '.join(TRANSFORMS)}, was {scale!r}")
        check_minimum(minimum)
        if context != 0:
            whole_number("context", context)
        size = int(shape[0])
        super().__init__(network, shape, parameters=(2 * size + context,))
        self.transform, self.minimum, self.features = scale, minimum, context
        self.flow = invertible_layers(size, context, "affine", kind == "coupling", transforms, hidden)

    def law(self, raw: Tensor) -> Distribution:
        size = self.event[0]
        loc, raw_scale, features = raw.split([size, size, self.features], dim=-1)
        base = TorchNormal(loc, positive(raw_scale, self.transform, self.minimum), validate_args=False)
        context = features if self.features else None
        return distributions.Flow(
            Independent(base, 1, validate_args=False), [layer(context) for layer in self.flow], validate_args=False
        )
