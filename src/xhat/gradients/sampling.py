"""The sampling layer, for networks of one's own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal, OneHotCategorical

from xhat.errors import ConfigError
from xhat.gradients.base import Gradient, Path
from xhat.gradients.expectation import GRADIENTS, check_fit, gradient_of
from xhat.parts import Part


class Sampling(Part, nn.Module):
    r"""A layer that draws: a law's parameters in, z out, and a derivative through the draw.

    It takes a law, ``(loc, scale)`` of a Normal, or ``logits``: of Bernoulli elements, or with ``categories=True`` of one-hot
    vectors along the last axis. With the default gradient :math:`z = \mu + \sigma \varepsilon`, so
    :math:`\partial z / \partial \mu = 1` and :math:`\partial z / \partial \sigma = \varepsilon`.

    Args:
        gradient: one that needs nothing but the sample: pathwise, concrete, straight-through, st-gumbel, gumbel-rao or reinmax; a
            name or an estimator. Every other weighs f itself, which a layer does not see: ``xhat.expectation`` has those.
        categories: whether logits are those of categories along the last axis.

    It draws in evaluation mode, too: take the law's mean where you want no noise.

    Shapes: parameters ``(*batch, n)`` or a law; z is as one draw of the law, the relaxed one for concrete.

    Raises:
        ConfigError: another gradient, or a law that does not fit it.

    >>> loc, scale = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    >>> z = Sampling()(loc, scale)
    >>> dloc, dscale = torch.autograd.grad(z.sum(), (loc, scale))
    >>> epsilon = (z - loc) / scale
    >>> dloc, torch.allclose(dscale, epsilon)
    (tensor([1., 1., 1.]), True)

    A variational autoencoder around it:

    >>> encoder, decoder, sampling = nn.Linear(784, 40), nn.Linear(20, 784), Sampling()
    >>> x = torch.rand(5, 784).round()
    >>> loc, scale = encoder(x).chunk(2, -1)
    >>> z = sampling(loc, nn.functional.softplus(scale))
    >>> x_given_z = torch.distributions.Bernoulli(logits=decoder(z))
    >>> kl = xhat.kl_divergence(Normal(loc, nn.functional.softplus(scale)), Normal(0.0, 1.0)).sum(-1)
    >>> loss = (kl - x_given_z.log_prob(x).sum(-1)).mean()
    >>> loss.backward()
    """

    def __init__(self, gradient: str | Gradient = "pathwise", categories: bool = False) -> None:
        super().__init__()
        estimator = gradient_of(gradient)
        if not isinstance(estimator, Path):
            fitting = ", ".join(name for name, cls in GRADIENTS.items() if issubclass(cls, Path))
            raise ConfigError(
                f"the gradient {gradient!r} weighs the function that follows, which a layer does not see: use "
                f"xhat.expectation(f, q, {gradient!r}), or one of {fitting} here"
            )
        self.gradient = estimator
        self.categories = categories

    def forward(self, law: Distribution | Tensor, scale: Tensor | None = None) -> Tensor:
        q = law if isinstance(law, Distribution) else self._law(law, scale)
        fewest = self.gradient.fewest_samples
        check_fit(self.gradient, q, fewest)
        # Of mirrored pairs, one: alone it is a draw like any other.
        return self.gradient.draw(q, fewest)[0]

    def _law(self, first: Tensor, scale: Tensor | None) -> Distribution:
        if scale is not None:
            try:
                return Independent(Normal(first, scale), min(1, first.ndim), validate_args=False)
            except (ValueError, RuntimeError, TypeError) as error:
                raise ConfigError(
                    f"Sampling takes a loc and a scale above 0, of one shape: {str(error).splitlines()[0]}"
                ) from error
        if self.gradient.requires <= {"rsample"}:
            raise ConfigError("Sampling with a pathwise gradient needs a law, or a loc and a scale, but was given one tensor")
        if self.categories:
            return OneHotCategorical(logits=first, validate_args=False)
        return Bernoulli(logits=first, validate_args=False)
