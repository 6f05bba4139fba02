"""REBAR and RELAX: unbiased gradients whose control variate is a relaxation of f, trained on the gradient's variance."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.errors import ConfigError
from xhat.gradients.base import Function, Gradient, Once, Pending, finite, honest, lift, slope, total
from xhat.gradients.components import Components, components_of
from xhat.gradients.reduction import Reduction
from xhat.networks import head_of, in_shape_of

FAR = 1e8


class REBAR(Gradient):
    r"""Score-function gradient with a relaxed f as its control variate.

    .. math:: g = [f(b) - \eta f(\sigma_\lambda(\tilde z))]\, \nabla \log q(b)
              + \eta \nabla f(\sigma_\lambda(z)) - \eta \nabla f(\sigma_\lambda(\tilde z))

    z is the perturbed logits whose hardening is b, :math:`\tilde z` a draw of it given b that moves with the logits in its own
    way. Both share their noise, as Tucker et al. advise, so they are equal in value and one relaxed evaluation serves both.
    η and λ are trained on the squared gradient through :meth:`auxiliary_loss`.

    Args:
        temperature: λ at the start.
        learn_temperature: its derivative needs f differentiated twice; False where a deeper layer's surrogate forbids that.

    Source: Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein (2017).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: z**2, torch.distributions.Bernoulli(logits=logits), "rebar").shape
    torch.Size([4])
    """

    unbiased = True
    requires = frozenset({"relaxable", "differentiable f"})

    def __init__(self, temperature: float = 0.5, learn_temperature: bool = True) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(_log(temperature)), requires_grad=learn_temperature)
        self.scale = nn.Parameter(torch.ones(()))
        self._loss = Pending()

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return 2 * samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        return _controlled(self, f, components_of(q), samples, None)

    def auxiliary_loss(self) -> Tensor | None:
        return self._loss.take()


class RELAX(Gradient):
    r"""REBAR with a control variate of one's own: :math:`c(z) = \eta f(\sigma_\lambda(z)) + r(z)`, r a network.

    Args:
        network: r, from perturbed logits ``(N, *code)`` to features, to which a linear layer is added; unless given, a small one
            that treats all elements alike and sums over them, for events of any size.
        temperature: λ at the start.
        through_f: False leaves the relaxed f out, for an f that is defined at draws only (LAX with b): one evaluation for each
            sample.
        learn_temperature: as in :class:`REBAR`.

    Source: Grathwohl, Choi, Wu, Roeder & Duvenaud (2018).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> q = torch.distributions.Bernoulli(logits=logits)
    >>> xhat.expectation(lambda z: (z > 0.5).float(), q, RELAX(through_f=False)).shape
    torch.Size([4])
    """

    unbiased = True

    def __init__(
        self,
        network: nn.Module | None = None,
        temperature: float = 0.5,
        through_f: bool = True,
        learn_temperature: bool = True,
    ) -> None:
        super().__init__()
        self.requires = frozenset({"relaxable", "differentiable f"} if through_f else {"components"})
        self.through_f = through_f
        self.network = network
        self.head = None if network is None else head_of(network, (1,))
        with torch.random.fork_rng(devices=[]):  # to name a gradient is not to draw
            self.each = _Each() if network is None else None
        self.log_temperature = nn.Parameter(torch.tensor(_log(temperature)), requires_grad=through_f and learn_temperature)
        self.scale = nn.Parameter(torch.ones(()))
        self._loss = Pending()

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return 2 * samples if self.through_f else samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        law = components_of(q)
        return _controlled(self, f if self.through_f else None, law, samples, lambda z: self._own(z, law), of=f)

    def _own(self, perturbed: Tensor, law: Components) -> Tensor:
        batch = perturbed.shape[: perturbed.ndim - law.axes]
        if self.each is None:
            network: nn.Module = self.network  # type: ignore[assignment]
            head: nn.Module = self.head  # type: ignore[assignment]
            shape = in_shape_of(network) or perturbed.shape[len(batch) :]
            if math.prod(shape) != perturbed.shape[len(batch) :].numel():
                code = tuple(perturbed.shape[len(batch) :])
                raise ConfigError(f"the network of RELAX takes {math.prod(shape)} numbers, but a code here has shape {code}")
            like = next(head.parameters()).dtype
            return head(network(perturbed.reshape(-1, *shape).to(like))).reshape(batch).to(perturbed.dtype)
        logits = law.logits.detach().clamp(-10, 10).expand_as(perturbed)
        return total(self.each(perturbed.clamp(-10, 10), logits), law.axes)

    def auxiliary_loss(self) -> Tensor | None:
        return self._loss.take()


class _Each(nn.Module):
    """A number for each element from its perturbed logit and its logit, by one small network for all; 0 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 16), nn.Linear(16, 1)
        nn.init.zeros_(self.last.weight)

    def forward(self, perturbed: Tensor, logits: Tensor) -> Tensor:
        pairs = torch.stack([perturbed, logits], -1).to(self.first.weight.dtype)
        return self.last(self.first(pairs).tanh()).squeeze(-1).to(perturbed.dtype)


def _log(temperature: float) -> float:
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ConfigError(f"temperature must be above 0 and finite, was {temperature!r}")
    return math.log(temperature)


def _controlled(
    owner: REBAR | RELAX,
    relaxed: Function | None,
    law: Components,
    samples: int,
    own: Callable[[Tensor], Tensor] | None,
    of: Function | None = None,
) -> Tensor:
    """The estimate that both share, and the loss that waits in its owner.

    Args:
        owner: has ``scale``, ``log_temperature`` and a place for the loss.
        relaxed: f, where the control variate looks at it.
        law: the elements.
        samples: S.
        own: what the control variate adds of its own.
        of: f, where it is not ``relaxed``.
    """
    f: Function = of or relaxed  # type: ignore[assignment]
    code = law.sample(samples)
    values = f(law.value(code))
    learn = owner.training and law.logits.requires_grad and torch.is_grad_enabled()
    twice = learn and owner.log_temperature.requires_grad and not isinstance(f, Once)
    with torch.no_grad():
        perturbed, moved = law.given(code)
        # An impossible value is infinitely far away, which a derivative in the temperature would turn into NaN.
        perturbed = perturbed.clamp(*(sign * min(FAR, torch.finfo(perturbed.dtype).max) for sign in (-1, 1)))
    at, rise = torch.zeros_like(values.detach()), torch.zeros_like(perturbed)
    with torch.enable_grad():
        if relaxed is not None:
            temperature = owner.log_temperature.exp() if twice else owner.log_temperature.detach().exp()
            inner, outer = slope(lambda z: relaxed(law.value(law.soften(z, temperature))), perturbed, twice=twice)
            at, rise = owner.scale * inner, owner.scale * outer
        if own is not None:
            inner, outer = slope(own, perturbed, twice=learn)
            at, rise = at + inner, rise + outer
        # z moves one to one with its logit, its conditional twin by `moved`.
        gap = values.detach() - at
        coefficient = (lift(gap, law.axes) * law.score(code) + rise * (1 - moved)).mean(0)
        if learn:
            owner._loss.value = _variance(owner, total(law.project(coefficient).square(), law.axes).mean())
    return honest(values.mean(0), total(coefficient.detach() * finite(law.logits), law.axes))


def _variance(owner: nn.Module, spread: Tensor) -> Tensor:
    """A loss with the value of ``spread`` whose derivative is taken now, and in the estimator's own parameters alone.

    f's parameters, which the spread hangs on as well, must not be trained on it.
    """
    own = [p for p in owner.parameters() if p.requires_grad]
    try:
        slopes = torch.autograd.grad(spread, own, allow_unused=True)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise ConfigError(
            "the temperature is learned through f's second derivative, which the surrogate of a deeper expectation does not "
            "have: use learn_temperature=False"
        ) from error
    parts = [(p * s).sum().to(spread.dtype) for p, s in zip(own, slopes, strict=True) if s is not None]
    loss = torch.stack(parts).sum() if parts else spread.new_zeros(())
    return spread.detach() + loss - loss.detach()
