"""The stacked autoencoder: trained greedily, layer by layer, then unrolled and fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xhat.conditionals import Headed, event_of
from xhat.data import Batch, Corruption, Masking
from xhat.distributions.observed import observed_log_prob
from xhat.errors import ConfigError
from xhat.gradients import Pathwise
from xhat.models.base import Model, Stage
from xhat.networks import MLP
from xhat.networks.base import joined, with_mask
from xhat.networks.mlp import linears
from xhat.networks.precision import Reducible
from xhat.objectives import ELBO, NegativeLogLikelihood, Objective, SquaredError, Terms
from xhat.objectives.posed import squared_error


class Stacked(Model):
    r"""Deep autoencoder whose layers are first trained one at a time, each on the codes of the layer below.

    Stage i trains the i-th encoder layer and its mirror image in the decoder as a shallow autoencoder of
    :math:`h_{i-1} = a(W_{i-1} \cdots)`; the last stage trains the whole, unrolled. The layers are the same tensors
    throughout, so after the last greedy stage nothing needs copying.

    Args:
        posterior: ``conditionals.Delta`` on an ``MLP``.
        likelihood: a conditional on an ``MLP`` that mirrors the encoder's.
        objective: of the whole; the squared error unless given.
        corruption: noise on each stage's input (a stacked denoising autoencoder).
        prior: a law of the codes, from which new examples are sampled; no part of the training. See :func:`xhat.fit_prior`.
        condition: the names of what all is conditioned on; see :class:`xhat.VAE`.

    Raises:
        ConfigError: networks that are not MLPs or do not mirror each other.

    Source: Hinton & Salakhutdinov (2006); Bengio et al. (2007); Vincent et al. (2010).

    >>> import xhat
    >>> model = xhat.build("stacked", shape=(64,), latent=2, hidden=[32, 8])
    >>> [stage.name for stage in model.stages()]
    ['layer 1 of 3', 'layer 2 of 3', 'layer 3 of 3', 'fine-tune']
    """

    points: ClassVar[bool] = True

    def __init__(
        self,
        posterior: Headed,
        likelihood: Headed,
        objective: Objective | None = None,
        corruption: Corruption | None = None,
        prior: nn.Module | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        if prior is not None:
            event_of(prior, "prior")
        if isinstance(objective, ELBO):
            raise ConfigError("a Stacked autoencoder has no prior, so it has no ELBO: use objectives.SquaredError")
        for what, part in (("posterior", posterior), ("likelihood", likelihood)):
            if not isinstance(part, Headed):
                raise ConfigError(
                    f"a Stacked autoencoder takes its networks apart, so its {what} must be one of xhat.conditionals on an MLP, "
                    f"was {type(part).__name__}"
                )
        if isinstance(corruption, Masking) and corruption.pixelwise:
            raise ConfigError("the stages of a Stacked autoencoder corrupt codes, which have no pixels: use pixelwise=False")
        up = linears(posterior.network, posterior.head)
        down = linears(likelihood.network, likelihood.head)[::-1]
        # Of the outermost two only the codes' size counts: how many numbers an entry of x takes is the law's affair.
        taken = [b.in_features for b in down]
        taken[-1] -= getattr(likelihood.network, "condition", 0)  # which joins the code
        if [a.out_features for a in up] != taken:
            raise ConfigError(
                "a Stacked autoencoder needs a decoder that mirrors its encoder: the encoder's layers are "
                f"{[(a.in_features, a.out_features) for a in up]}, the decoder's, from its end, "
                f"{[(b.in_features, b.out_features) for b in down]}"
            )
        objective = SquaredError() if objective is None else objective
        super().__init__(prior, posterior, likelihood, objective, Pathwise(), corruption, condition)

    def stages(self) -> list[Stage]:
        posterior = self.posterior
        assert isinstance(posterior, Headed)
        depth = len(linears(posterior.network, posterior.head))
        greedy = [Stage(f"layer {i + 1} of {depth}", Layer(self, i), self.objective) for i in range(depth)]
        return [*greedy, Stage("fine-tune", self, self.objective)]


class Layer(Reducible):
    """One encoder layer with its mirror image, as a shallow autoencoder of the codes below."""

    def __init__(self, model: Stacked, index: int) -> None:
        super().__init__()
        posterior, likelihood = model.posterior, model.likelihood
        assert isinstance(posterior, Headed)
        assert isinstance(likelihood, Headed)
        up = linears(posterior.network, posterior.head)
        down = linears(likelihood.network, likelihood.head)[::-1]
        assert isinstance(posterior.network, MLP)
        self.encode, self.decode = up[index], down[index]
        assert isinstance(likelihood.network, MLP)
        self.activation, self.mirrored = posterior.network.activation, likelihood.network.activation
        self.is_top = index == len(up) - 1
        self.is_bottom = index == 0
        # In a tuple: these are not this stage's to train.
        self._below = (up[:index], posterior, likelihood, model.objective, model.corruption)

    def forward(self, batch: Batch | Tensor) -> Terms:
        if isinstance(batch, Tensor):
            batch = Batch(batch)
        below, posterior, likelihood, objective, corruption = self._below
        x = batch.x
        with torch.no_grad(), self.in_precision(x):
            h = x.flatten(1)
            for i, layer in enumerate(below):
                h = self.activation(layer(h if i else self._entering(batch, h)))
        h = h.to(x.dtype)
        with self.in_precision(x):
            seen = h if corruption is None else corruption(h)
            code = self.encode(self._entering(batch, seen) if self.is_bottom else seen).to(x.dtype)
        if self.is_top:
            code = posterior.law(code.unflatten(1, posterior.head.shape)).rsample().flatten(1)
            code = joined(code, batch.condition if getattr(likelihood.network, "condition", 0) else None)
        else:
            code = self.activation(code)
        with self.in_precision(x):
            back = self.decode(code)
        back = back.to(x.dtype)
        if not self.is_bottom:
            error = squared_error(self.mirrored(back), h)
            return Terms(error, {"squared_error": error})
        law = likelihood.law(back.unflatten(1, likelihood.head.shape))
        error = squared_error(law.mean, x, batch.observed)
        loss = -observed_log_prob(law, x, batch.observed) if isinstance(objective, NegativeLogLikelihood) else error
        return Terms(loss, {"squared_error": error})

    def _entering(self, batch: Batch, seen: Tensor) -> Tensor:
        """What the encoder's first layer gets: x, with the mask and the condition where its network takes them."""
        network = self._below[1].network
        observed = None if batch.observed is None else batch.observed.flatten(1)
        if observed is not None:
            seen = torch.where(observed, seen, torch.zeros((), dtype=seen.dtype, device=seen.device))
        seen = with_mask(seen, observed) if network.masked else seen
        return joined(seen, batch.condition if network.condition else None)
