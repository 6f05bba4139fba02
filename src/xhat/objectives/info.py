"""InfoVAE and the Wasserstein autoencoder: the aggregate posterior is held to the prior by a kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from xhat.distributions import relaxed_log_prob
from xhat.distributions.kl_table import closed_form
from xhat.distributions.support import split
from xhat.errors import ConfigError, whole_number
from xhat.gradients import Gradient
from xhat.objectives.aggregate import ELEMENTS, need_path
from xhat.objectives.base import Objective, Terms
from xhat.objectives.posed import Posed

KERNELS = ("rbf", "imq")
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def similarity(squares: Tensor, kernel: str, bandwidth: float) -> Tensor:
    r"""A kernel from squared distances :math:`r^2`: ``"rbf"`` :math:`e^{-r^2/h}`, ``"imq"`` :math:`\sum_s sh/(sh + r^2)`.

    The sum is over the scales s = 0.1, 0.2, 0.5, 1, 2, 5, 10.

    >>> similarity(torch.tensor([0.0, 2.0]), "rbf", 2.0)
    tensor([1.0000, 0.3679])
    """
    if kernel == "rbf":
        return (-squares / bandwidth).exp()
    total = torch.zeros_like(squares)
    for scale in SCALES:
        total = total + scale * bandwidth / (scale * bandwidth + squares)
    return total


def squared_mmd(z: Tensor, y: Tensor, kernel: str, bandwidth: float) -> Tensor:
    r"""The squared maximum mean discrepancy of two laws from B draws of each: the unbiased U-statistic.

    .. math:: \mathrm{MMD}^2 = \frac1{B(B-1)} \sum_{i \ne j} \big(k(z_i, z_j) + k(y_i, y_j)\big)
              - \frac2{B^2} \sum_{i,j} k(z_i, y_j)

    The pairs of a draw with itself are left out: with them it is above 0 even for equal laws, by the more the smaller the batch.
    So it can be below 0.

    Args:
        z: draws of the first law, ``(S, B, d)``, with B of at least 2.
        y: draws of the second, of the same shape.
        kernel: ``"rbf"`` or ``"imq"``.
        bandwidth: h, a squared length.

    Returns:
        Row by row, ``(S, B)``: the mean over B is the statistic. A pure number, no nats.

    Source: Gretton et al. (2012).

    >>> z = torch.tensor([[[0.0], [1.0]]])
    >>> squared_mmd(z, z, "rbf", 1.0).mean()  # 2/e − (1 + 1/e)
    tensor(-0.6321)
    """
    samples, batch, size = z.shape
    itself = similarity(z.new_zeros(()), kernel, bandwidth)

    def summed(rows: Tensor, others: Tensor) -> Tensor:
        squares = (rows.unsqueeze(2) - others.unsqueeze(1)).square().sum(-1)
        return similarity(squares, kernel, bandwidth).sum(-1)

    piece = max(1, ELEMENTS // (samples * batch * size))
    found = [
        (summed(a, z) + summed(b, y) - 2 * itself) / (batch - 1) - 2 * summed(a, y) / batch
        for a, b in zip(z.split(piece, 1), y.split(piece, 1), strict=True)
    ]
    return torch.cat(found, 1)


class Info(Objective):
    r"""InfoVAE: the KL of each posterior, and beside it the squared discrepancy of all of them together, held against the prior.

    .. math:: L = -E_{q(z|x)}[\log p(x|z)] + (1 - \alpha)\, KL(q(z|x) \,\|\, p(z))
              + (\alpha + \lambda - 1)\, \mathrm{MMD}^2(q(z) \,\|\, p(z))

    The aggregate posterior q(z) is the average of q(z|x) over the examples: with α = 1, the Wasserstein autoencoder with an MMD
    penalty of weight λ, no single posterior has to look like the prior, so that z may hold as much about x as it will. The MMD is
    the unbiased U-statistic (:func:`xhat.objectives.info.squared_mmd`) of the batch's draws and as many of the prior: the loss of
    an example depends on the others. The examples stand for the population that they are drawn from; for the N examples
    themselves the statistic is too small by what two draws of one example are more alike, over N. It is no number of nats, and
    neither is a loss with it.

    Args:
        alpha: α, at most 1; below 0 the KL weighs more than in a bound.
        lambda_: λ, at least 1 − α.
        kernel: ``"rbf"``, :math:`e^{-r^2/h}` with h = d² for d latent numbers; or ``"imq"``,
            :math:`\sum_s sh/(sh + r^2)` over seven scales s from 0.1 to 10, with h = 2d, made for a standard Normal prior.
        bandwidth: h, a squared length; None for the kernel's own.
        samples: draws of z for each example; each makes an MMD of its own, and they are averaged.

    Shapes: ``loss`` and every measure ``(B,)``. The measures are ``elbo`` (the true bound), ``log_px_given_z`` and ``kl`` in
    nats, the KL in closed form where there is one; and ``mmd``, the squared MMD, whose mean over the batch is the statistic. For
    a batch of one example, which has no pair, it is 0.

    Raises:
        ConfigError: a weight below 0; an unknown kernel; a gradient that does not follow the draws themselves; a learned prior
            whose draws carry no derivative.

    Source: Zhao, Song & Ermon (2019); ``imq`` and α = 1: Tolstikhin, Bousquet, Gelly & Schölkopf (2018).

    >>> import xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> model.objective = Info(alpha=1.0, lambda_=10.0, kernel="imq")
    >>> terms = model(torch.ones(3, 4))
    >>> terms.loss.shape, sorted(terms.measures)
    (torch.Size([3]), ['elbo', 'kl', 'log_px_given_z', 'mmd'])
    """

    name = "info"
    needs_prior = True
    fewest_examples = 2

    def __init__(
        self,
        alpha: float = 0.0,
        lambda_: float = 1000.0,
        kernel: str = "rbf",
        bandwidth: float | None = None,
        samples: int = 1,
    ) -> None:
        super().__init__()
        for option, value in (("alpha", alpha), ("lambda_", lambda_)):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"{option} must be a finite number, was {value!r}")
        if alpha > 1:
            raise ConfigError(f"alpha must be at most 1, or the KL has a weight 1 - alpha below 0; was {alpha!r}")
        if alpha + lambda_ < 1:
            raise ConfigError(
                f"lambda_, the weight of the MMD, must be at least 1 - alpha = {1 - alpha:g}, or alpha + lambda_ - 1 is below 0; "
                f"was {lambda_!r}"
            )
        if kernel not in KERNELS:
            raise ConfigError(f"kernel must be one of {', '.join(KERNELS)}, was {kernel!r}")
        if bandwidth is not None and (not isinstance(bandwidth, int | float) or not 0 < bandwidth < math.inf):
            raise ConfigError(f"bandwidth must be above 0 and finite, or None for the kernel's own, was {bandwidth!r}")
        whole_number("samples", samples)
        self.alpha, self.lambda_, self.kernel, self.bandwidth, self.samples = alpha, lambda_, kernel, bandwidth, samples

    @property
    def coupled(self) -> str:
        return "Info compares the draws of the whole batch with the prior's"

    def fits(self, q: Distribution, p: Distribution) -> None:
        if p.has_rsample:
            return
        with torch.random.fork_rng(devices=[]):
            self._need_path(p, p.sample((1,)))

    def _need_path(self, p: Distribution, y: Tensor) -> None:
        if torch.is_grad_enabled() and p.log_prob(y).requires_grad:
            raise ConfigError(
                "Info needs a derivative through the draws of a learned prior, and those of the prior "
                f"{type(split(p)[0]).__name__} have none: use a flow, one that is not learned (learn=False), or objectives.ELBO"
            )

    def serves(self, gradient: Gradient) -> None:
        need_path("Info", gradient)

    def forward(self, posed: Posed) -> Terms:
        q, p = posed.q, posed.prior
        self.serves(posed.gradient)
        closed = closed_form(q, p)
        drawn = self._drawn(p, posed.target.size)
        seen: list[tuple[Tensor, Tensor, Tensor]] = []

        def loss(z: Tensor) -> Tensor:
            # q first: a flow knows the density of its last draw only
            kl = relaxed_log_prob(q, z) - relaxed_log_prob(p, z) if closed is None else closed.expand(z.shape[:2])
            log_px, mmd = posed.log_px(z), self._discrepancy(z, drawn)
            if not seen:  # the first call is at the draws that the value is made of
                seen.append((log_px.detach().mean(0), kl.detach().mean(0), mmd.detach().mean(0)))
            return (1 - self.alpha) * kl + (self.alpha + self.lambda_ - 1) * mmd - log_px

        value = posed.expectation(loss, self.samples)
        log_px, kl, mmd = seen[0]
        return Terms(value, {"elbo": log_px - kl, "log_px_given_z": log_px, "kl": kl, "mmd": mmd})

    def _drawn(self, p: Distribution, batch: int) -> Tensor:
        """Draws of the prior, ``(S, B, *event)``, with their derivative where the prior is learned."""
        shape = (self.samples,) if p.batch_shape else (self.samples, batch)  # the prior of each example, or of all
        if p.has_rsample:
            return p.rsample(shape)
        y = p.sample(shape)
        self._need_path(p, y)
        return y

    def _discrepancy(self, z: Tensor, y: Tensor) -> Tensor:
        if z.shape[1] == 1:
            return z.new_zeros(z.shape[:2])
        z, y = z.flatten(2), y.to(z.dtype).flatten(2)
        size = z.shape[-1]
        own = float(size * size if self.kernel == "rbf" else 2 * size)
        return squared_mmd(z, y, self.kernel, own if self.bandwidth is None else self.bandwidth)
