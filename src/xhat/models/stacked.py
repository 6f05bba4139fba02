"""The stacked autoencoder: trained greedily, layer by layer, then unrolled and fine-tuned."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from xhat.conditionals import Conditional, event_of
from xhat.data import Corruption, Masking
from xhat.errors import ConfigError
from xhat.gradients import Pathwise
from xhat.models.base import Model, Stage
from xhat.networks import MLP
from xhat.networks.mlp import linears
from xhat.networks.precision import Reducible
from xhat.objectives import ELBO, NegativeLogLikelihood, Objective, SquaredError, Terms
from xhat.objectives.reconstruction import squared_error


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
        posterior: Conditional,
        likelihood: Conditional,
        objective: Objective | None = None,
        corruption: Corruption | None = None,
        prior: nn.Module | None = None,
    ) -> None:
        if prior is not None:
            event_of(prior, "prior")
        if isinstance(objective, ELBO):
            raise ConfigError("a Stacked autoencoder has no prior, so it has no ELBO: use objectives.SquaredError")
        for what, part in (("posterior", posterior), ("likelihood", likelihood)):
            if not isinstance(part, Conditional):
                raise ConfigError(
                    f"a Stacked autoencoder takes its networks apart, so its {what} must be one of xhat.conditionals on an MLP, "
                    f"was {type(part).__name__}"
                )
        if isinstance(corruption, Masking) and corruption.pixelwise:
            raise ConfigError("the stages of a Stacked autoencoder corrupt codes, which have no pixels: use pixelwise=False")
        up = linears(posterior.network, posterior.head)
        down = linears(likelihood.network, likelihood.head)[::-1]
        # Of the outermost two only the codes' size counts: how many numbers an entry of x takes is the law's affair.
        if [a.out_features for a in up] != [b.in_features for b in down]:
            raise ConfigError(
                "a Stacked autoencoder needs a decoder that mirrors its encoder: the encoder's layers are "
                f"{[(a.in_features, a.out_features) for a in up]}, the decoder's, from its end, "
                f"{[(b.in_features, b.out_features) for b in down]}"
            )
        super().__init__(prior, posterior, likelihood, SquaredError() if objective is None else objective, Pathwise(), corruption)

    def stages(self) -> list[Stage]:
        posterior = self.posterior
        assert isinstance(posterior, Conditional)
        depth = len(linears(posterior.network, posterior.head))
        greedy = [Stage(f"layer {i + 1} of {depth}", Layer(self, i), self.objective) for i in range(depth)]
        return [*greedy, Stage("fine-tune", self, self.objective)]


class Layer(Reducible):
    """One encoder layer with its mirror image, as a shallow autoencoder of the codes below."""

    def __init__(self, model: Stacked, index: int) -> None:
        super().__init__()
        posterior, likelihood = model.posterior, model.likelihood
        assert isinstance(posterior, Conditional)
        assert isinstance(likelihood, Conditional)
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

    def forward(self, x: Tensor) -> Terms:
        below, posterior, likelihood, objective, corruption = self._below
        with torch.no_grad(), self.in_precision(x):
            h = x.flatten(1)
            for layer in below:
                h = self.activation(layer(h))
        h = h.to(x.dtype)
        with self.in_precision(x):
            code = self.encode(h if corruption is None else corruption(h)).to(x.dtype)
        if self.is_top:
            code = posterior.law(code.unflatten(1, posterior.head.shape)).rsample().flatten(1)
        else:
            code = self.activation(code)
        with self.in_precision(x):
            back = self.decode(code)
        back = back.to(x.dtype)
        if not self.is_bottom:
            error = squared_error(self.mirrored(back), h)
            return Terms(error, {"squared_error": error})
        law = likelihood.law(back.unflatten(1, likelihood.head.shape))
        error = squared_error(law.mean, x)
        loss = -law.log_prob(x) if isinstance(objective, NegativeLogLikelihood) else error
        return Terms(loss, {"squared_error": error})
