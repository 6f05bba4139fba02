"""What looks wrong about an evaluated model, in words."""

from __future__ import annotations

import math

from xhat.conditionals import Normal
from xhat.evaluation.anatomy import near_ceiling
from xhat.evaluation.result import Evaluation
from xhat.models.base import Model

COLLAPSED = 0.01  # nats of KL, below which a dimension says nothing about x
SMALL_ESS = 10.0


def findings(model: Model, result: Evaluation) -> list[str]:
    """Sentences about collapsed dimensions, σ at its bound, what so few draws or examples cannot show, and overfitting."""
    found = []
    told = {"ELBO": result.elbo, "log p(x)": result.log_likelihood, "squared error": result.squared_error}
    for name, mean in told.items():
        if mean is not None and not math.isfinite(mean.value):
            found.append(
                f"the mean {name} is {mean.value}: some example is impossible under the model, or its numbers are too large for "
                "it; find it with xhat.log_likelihood, and prepare these data as the training data were"
            )
    if result.unseen_examples:
        found.append(
            f"of {result.unseen_examples} examples no value was observed: their bound is the KL alone, and says nothing of them"
        )
    if result.kl_per_dimension is not None:
        dead = sum(kl < COLLAPSED for kl in result.kl_per_dimension)
        if dead == result.latent:
            found.append(
                "posterior collapse: every latent dimension's KL is below 0.01 nats, so the code says nothing about x; warm β "
                "up (beta_warmup), give free bits, or weaken the decoder"
            )
        elif dead:
            found.append(
                f"{dead} of {result.latent} latent dimensions are collapsed (KL below 0.01 nats): a smaller latent would do"
            )
    else:
        found += _sampled_collapse(result)
    information, count = result.mutual_information, result.anatomy_examples
    if information is not None and count is not None and near_ceiling(information.value, count):
        found.append(
            f"the mutual information, {information.value:.2f} nats, is close to the most that {count} examples can show "
            f"(log {count} = {math.log(count):.2f}): the true one is at least so large, the marginal KL and those of single "
            "dimensions are at most as large as they seem, and the total correlation may be off either way; give more examples"
        )
    bound = model.likelihood.minimum if isinstance(model.likelihood, Normal) and model.likelihood.per != "fixed" else None
    if bound is not None and result.likelihood_scale is not None and result.likelihood_scale < 1.05 * bound:
        found.append(
            f"the likelihood's σ stands at its lower bound {bound:g}: the density is limited by that bound and not by the data; "
            "look for constant elements, or share σ (per='shared')"
        )
    if result.ess_smallest is not None and result.ess is not None and result.samples > 1:
        if result.ess < SMALL_ESS and result.ess < 0.5 * result.samples:
            found.append(
                f"the effective sample size is {result.ess:.1f} of {result.samples} on average: the estimate of log p(x) is "
                "dominated by a few draws and is too low; use more samples"
            )
        elif result.ess_smallest < 2 and result.samples >= SMALL_ESS:
            found.append(
                f"for some examples one draw carries the estimate of log p(x) (effective sample size {result.ess_smallest:.1f}): "
                "their values are too low; use more samples"
            )
    if result.train_elbo is not None and result.elbo is not None:
        gap = result.train_elbo.value - result.elbo.value
        doubt = math.hypot(result.train_elbo.stderr, result.elbo.stderr)
        if gap > max(3 * doubt, 0.03 * abs(result.elbo.value)):
            found.append(
                f"the bound is {gap:.1f} nats better on training examples: the model overfits; stop earlier (patience), or make "
                "the network smaller"
            )
    denoised, corrupted = result.denoised_error, result.corrupted_error
    if denoised is not None and corrupted is not None and denoised.value >= corrupted.value:
        found.append("the reconstruction is no closer to the clean example than the corrupted one is: train longer")
    return found


def _sampled_collapse(result: Evaluation) -> list[str]:
    """The same about collapse where the KL has no closed form: by what was sampled."""
    worth = [dimension.kl for dimension in result.dimensions or () if dimension.kl is not None]
    dead = sum(kl < COLLAPSED for kl in worth)
    several = result.anatomy_examples is not None and result.anatomy_examples > 1
    if worth and dead == len(worth):
        return [
            "posterior collapse: every latent dimension's sampled KL is below 0.01 nats, so the code says nothing about x; warm "
            "β up, or weaken the decoder"
        ]
    if dead:
        return [
            f"{dead} of {result.latent} latent dimensions are collapsed (sampled KL below 0.01 nats): a smaller latent would do"
        ]
    if several and not worth and result.mutual_information is not None and result.mutual_information.value < COLLAPSED:
        return [
            "posterior collapse: the mutual information of x and z is below 0.01 nats, so the code says nothing about x; warm "
            "β up, or weaken the decoder"
        ]
    if result.mutual_information is None and result.active_units == 0 and result.examples > 1:
        return ["no unit of the code varies with x: the code says nothing about it"]
    return []
