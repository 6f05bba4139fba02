"""The evidence bound with its KL taken apart: mutual information, total correlation, and what is left for each dimension."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.data import Examples
from xhat.distributions import relaxed_log_prob
from xhat.distributions.kl_table import closed_form
from xhat.distributions.support import split
from xhat.errors import ConfigError, whole_number
from xhat.gradients import Gradient
from xhat.objectives.aggregate import ESTIMATES, aggregate, independent, need_path, shares
from xhat.objectives.base import LARGEST, Objective, Terms
from xhat.objectives.posed import Posed


class TotalCorrelation(Objective):
    r"""β-TCVAE: the negative evidence lower bound with a weight on each of the three parts of its KL term.

    .. math:: L = -E_{q(z|x)}[\log p(x|z)]
              + \alpha \underbrace{E\Big[\log \frac{q(z|x)}{q(z)}\Big]}_{\text{mutual information}}
              + \beta \underbrace{E\Big[\log \frac{q(z)}{\prod_j q(z_j)}\Big]}_{\text{total correlation}}
              + \gamma \underbrace{E\Big[\sum_j \log \frac{q(z_j)}{p(z_j)}\Big]}_{\text{dimension-wise KL}}

    Here q(z) is the aggregate posterior, the average of q(z|x) over the N examples of the data set. It is estimated at the
    batch's own draws from the batch's own posteriors (:func:`xhat.objectives.aggregate.shares`), so that the loss of an example
    depends on the others. The stratified estimate of q(z) is unbiased; its logarithm is too small on average, the less so the
    larger the batch. The weighted one is too small by a factor of at least B, and the measured parts are off accordingly.
    With α = β = γ they make up the KL again, whatever the estimate. The parts of an example, or of a batch, can be negative.

    Args:
        alpha: weight of the mutual information between x and z under q.
        beta: weight of the total correlation, which is 0 where the dimensions of z are independent under q(z).
        gamma: weight of the dimension-wise KL.
        estimate: ``"stratified"`` or ``"weighted"``.
        size: N; None to take it from the training examples.
        samples: draws of z for each example.

    Shapes: ``loss`` and every measure ``(B,)``, in nats. The measures are ``elbo`` (the true bound, its KL in closed form where
    there is one), ``log_px_given_z``, ``kl``, ``mutual_information``, ``total_correlation`` and ``dimension_wise_kl``.

    Raises:
        ConfigError: a negative weight; a posterior or a prior whose dimensions are not independent; a gradient that does not
            follow the draws themselves; a loss before N is known.

    Source: Chen, Li, Grosse & Duvenaud (2018).

    >>> import torch, xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> model.objective = TotalCorrelation(beta=6.0, size=100)
    >>> terms = model(torch.ones(3, 4))
    >>> parts = [terms.measures[name] for name in ("mutual_information", "total_correlation", "dimension_wise_kl")]
    >>> terms.loss.shape, bool(torch.isfinite(sum(parts)).all())
    (torch.Size([3]), True)
    """

    name = "tc"
    needs_prior = True
    fewest_examples = 2
    size: Tensor

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        estimate: str = "stratified",
        size: int | None = None,
        samples: int = 1,
    ) -> None:
        super().__init__()
        for option, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
                raise ConfigError(f"{option} must be at least 0 and at most {LARGEST:g}, was {value!r}")
        if estimate not in ESTIMATES:
            raise ConfigError(f"estimate must be one of {', '.join(ESTIMATES)}, was {estimate!r}")
        if size is not None:
            whole_number("size", size)
        whole_number("samples", samples)
        self.alpha, self.beta, self.gamma, self.estimate, self.samples = alpha, beta, gamma, estimate, samples
        self.given = size is not None
        # A tensor, so that it is saved with a model that learnt it from its training examples; 0: not known.
        self.register_buffer("size", torch.tensor(0 if size is None else size))
        self._known = self.given

    @property
    def coupled(self) -> str:
        return "TotalCorrelation estimates q(z) from the posteriors of the whole batch"

    def prepare(self, examples: Examples) -> None:
        """Take N from the training examples, unless it was given."""
        if not self.given:
            self.size.fill_(len(examples))
            self._known = True

    def fits(self, q: Distribution, p: Distribution) -> None:
        for what, law, remedy in (("posterior", q, "conditionals.Normal"), ("prior", p, "priors.StandardNormal")):
            if not independent(law):
                raise ConfigError(
                    f"TotalCorrelation takes the KL apart by dimensions, and those of the {what} {type(split(law)[0]).__name__} "
                    f"are not independent: use one whose are, such as {remedy}, or objectives.ELBO"
                )

    def serves(self, gradient: Gradient) -> None:
        need_path("TotalCorrelation", gradient)

    def forward(self, posed: Posed) -> Terms:
        q, p = posed.q, posed.prior
        self.serves(posed.gradient)
        self._need_size()
        seen: list[tuple[Tensor, ...]] = []

        def loss(z: Tensor) -> Tensor:
            log_px = posed.log_px(z)
            log_q, log_p = relaxed_log_prob(q, z), relaxed_log_prob(p, z)
            joint, product = aggregate(q, z, shares(self.estimate, self.size, posed.target.size, log_q))
            parts = (log_q - joint, joint - product, product - log_p)
            if not seen:  # the first call is at the draws that the value is made of
                seen.append(tuple(part.detach().mean(0) for part in (log_px, *parts)))
            information, correlation, dimensions = parts
            return self.alpha * information + self.beta * correlation + self.gamma * dimensions - log_px

        value = posed.expectation(loss, self.samples)
        log_px, *parts = seen[0]
        with torch.no_grad():
            closed = closed_form(q, p)
        kl = torch.stack(parts).sum(0) if closed is None else closed
        own = dict(zip(("mutual_information", "total_correlation", "dimension_wise_kl"), parts, strict=True))
        return Terms(value, {"elbo": log_px - kl, "log_px_given_z": log_px, "kl": kl, **own})

    def _need_size(self) -> None:
        # Once known, always known: the tensor is looked at only before, and never in a traced program, where 0 makes a NaN.
        if self._known or torch.compiler.is_compiling():
            return
        self._known = bool(self.size > 0)
        if not self._known:
            raise ConfigError(
                "TotalCorrelation needs the number of examples of the data set, which is not known yet: pass size=…, or train "
                "the model with xhat.fit, which tells it"
            )
