"""``xhat.fit_prior``: a prior fitted to the codes of a trained model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from xhat import priors
from xhat.conditionals import Ladder, condition_of
from xhat.data import Examples
from xhat.data.permutation import Permutation
from xhat.distributions import is_discrete
from xhat.errors import ConfigError, TrainingError, whole_number
from xhat.models.base import PIECE, Model, quiet
from xhat.networks.base import as_shape
from xhat.objectives import ELBO
from xhat.training.mixture import fit_normals

M = TypeVar("M", bound=Model)
Progress = Callable[[int, float], None]

ENOUGH = 50_000  # codes for a mixture: of fewer examples more draws are taken of each, or it would fit these draws, up to
MOST_DRAWS = 100
HELD = 10  # draws of each example that is held out
CODES = 100_000  # numbers of codes whose density is taken at once, over the components of a mixture
# What each kind of prior may be told, with the default.
OPTIONS: dict[str, dict[str, Any]] = {
    "mixture": {"covariance": "full", "steps": 100, "floor": 1e-3, "tolerance": 1e-4},
    "flow": {"form": "autoregressive", "transforms": 3, "hidden": (64, 64)},
    "vamp": {"bounds": None},
}
STEPS: dict[str, Any] = {"epochs": 50, "batch_size": 256, "lr": 1e-3, "patience": 5}
COMPONENTS = {"mixture": 10, "vamp": 500}


def fit_prior(
    model: M,
    x: Any,
    kind: str = "mixture",
    *,
    components: int | None = None,
    draws: int | None = None,
    valid: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> M:
    r"""A copy of a trained model with a prior that is fitted to the codes of the training examples.

    .. math:: \max_p \frac1N \sum_n E_{q(z|x_n)}[\log p(z)]

    is all of the ELBO that depends on the prior: whatever is gained here, the mean ELBO gains, and the posterior and the
    likelihood stay as they are. The best of all priors is the aggregate posterior, :math:`\frac1N \sum_n q(z \mid x_n)`; on
    other examples it would be too good to be true, so give ``valid``. A plain autoencoder gets a law of its codes: it can then
    ``sample`` new examples, but its codes are points, and it still has no bound and no likelihood of x.

    The copy shares no tensor with the model, which stays as it is. An objective that refuses the new prior, for it asks for
    closed forms (``kl="analytic"``, free bits), is the plain ELBO in the copy: training is over.

    Args:
        model: a trained model.
        x: training examples, ``(N, *event_shape)``; dynamic binarisation is drawn once, from the seed.
        kind: ``"mixture"`` of Normals, by expectation and maximisation; ``"flow"`` (needs zuko) or ``"vamp"``, a mixture of
            the model's posteriors, both by Adam, with fresh draws from q at each step.
        components: K of a mixture (10) or a VampPrior (500).
        draws: of z for each example: all that a mixture sees (50,000 codes in total, but at most 100 of each, unless given),
            or those of one step of the others (1). A code that is a point is taken once.
        valid: examples by which fitting is stopped before it fits the training codes too closely. Without them a mixture is
            fitted to its end, and the others are stopped by a tenth of x, which they then do not see.
        seed: of everything random; the caller's random numbers are left alone.
        progress: called with the number of each step or epoch and the mean of log p(z) in nats.
        **options: of a mixture ``covariance`` (``"full"`` or ``"diagonal"``), ``steps``, ``floor``, ``tolerance``, see
            :func:`xhat.training.mixture.fit_normals`; of a flow ``form`` (the ``kind`` of :class:`xhat.priors.Flow`),
            ``transforms``, ``hidden``; of a VampPrior ``bounds``; of both ``epochs``, ``batch_size``, ``lr`` and ``patience``
            (epochs without a better mean on what is held out).

    Raises:
        ConfigError: an unknown kind or option, or one that does not suit the model's codes.
        DataError: x has another shape, or fewer codes than components.
        TrainingError: the new prior is worse for the training codes than the one that the model has, or not finite.

    Source: Ghosh et al. (From variational to deterministic autoencoders, 2020), there for deterministic codes.

    >>> import torch, xhat
    >>> x = torch.rand(200, 4)
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8])
    >>> better = fit_prior(model, x, components=3)
    >>> bool(better.elbo(x, samples=200).mean() > model.elbo(x, samples=200).mean())
    True
    >>> fit_prior(xhat.build("autoencoder", shape=(4,), latent=2, hidden=[8]), x).sample(5).shape
    torch.Size([5, 4])
    """
    chosen = _options(kind, components, options)
    if draws is not None:
        whole_number("draws", draws)
    examples = model.examples(x).fixed(seed)
    others = None if valid is None else model.examples(valid, "valid").fixed(seed)
    for given, where in ((examples, "x"), (others, "valid")):
        if given is not None:
            model.check(model.batch(given.batch(slice(1))), where)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        _check_kind(model, kind)
        if kind == "mixture":
            fitted, codes = _mixture(model, examples, others, draws, chosen, progress)
        else:
            fitted, codes = _ascended(model, kind, examples, others, draws or 1, chosen, progress)
        _no_worse(model, fitted, codes)
    return fitted.eval()


def _options(kind: str, components: int | None, given: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(kind, str) or kind not in OPTIONS:
        raise ConfigError(f"kind must be one of {', '.join(OPTIONS)}, was {kind!r}")
    known = OPTIONS[kind] | ({} if kind == "mixture" else STEPS)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"{unknown[0]} is no option of a {kind} prior: it has {', '.join(known)}")
    chosen = known | given
    for name in ("steps", "epochs", "batch_size", "patience"):
        if name in chosen:
            whole_number(name, chosen[name])
    for name in ("lr", "floor", "tolerance"):
        if name in chosen and not (isinstance(chosen[name], int | float) and 0 < chosen[name] < math.inf):
            raise ConfigError(f"{name} must be a finite number above 0, was {chosen[name]!r}")
    if "hidden" in chosen:
        chosen["hidden"] = as_shape(chosen["hidden"], "hidden")
    if components is not None and kind not in COMPONENTS:
        raise ConfigError(f"a {kind} prior has no components: leave them out")
    return chosen | {"components": COMPONENTS.get(kind) if components is None else components}


def _given(model: M, prior: nn.Module) -> M:
    """A copy with the prior; where its objective wants a closed form that there is none of, it becomes the ELBO."""
    try:
        return model.with_prior(prior)
    except ConfigError:
        if not model.objective.needs_prior:
            raise
    copied = copy.deepcopy(model)
    copied.objective = ELBO().to(model.device)
    return copied.with_prior(prior)


def _check_kind(model: Model, kind: str) -> None:
    """Refuse a prior whose draws are numbers of any value for codes of single points."""
    with quiet(model):
        q = model.pose(model.blank(1)).q
    prior = getattr(model, "prior", None)
    if prior is not None and condition_of(prior):
        raise ConfigError(
            "the prior of this model depends on its condition, and fit_prior makes one of all codes together: train the prior "
            "with the model"
        )
    if kind == "vamp" and model.points:
        raise ConfigError(
            f"the codes of {type(model).__name__} are points, and a vamp prior is a mixture of the model's posteriors: use "
            "kind='mixture' or 'flow'"
        )
    if isinstance(model.posterior, Ladder):
        raise ConfigError(
            "a ladder goes down the layers of its own prior, which no other can take the place of: fit_prior serves posteriors "
            "that do not depend on the prior"
        )
    if kind != "vamp" and not model.points and is_discrete(q):
        raise ConfigError(f"the codes of this model are discrete, and a {kind} prior is a density: use kind='vamp'")


def _codes(model: Model, x: Examples, draws: int) -> Tensor:
    """Draws of z for each example, ``(draws · N, *latent_shape)``; of a point one."""
    found = []
    with quiet(model):
        for batch in x.batched(PIECE):
            q = model.pose(model.batch(batch)).q
            found.append(q.sample((draws if model.has_bound or not model.points else 1,)).flatten(0, 1))
    return torch.cat(found)


def _mixture(
    model: M, x: Examples, valid: Examples | None, draws: int | None, options: dict[str, Any], progress: Progress | None
) -> tuple[M, Tensor]:
    covariance, components, size = options["covariance"], options["components"], model.latent_shape
    priors.Mixture(size, components, covariance)  # which refuses what is no mixture, before anything is computed
    draws = draws or max(1, min(MOST_DRAWS, ENOUGH // len(x)))
    codes = _codes(model, x, draws)
    apart = None if valid is None else _codes(model, valid, draws)
    fitted = fit_normals(
        codes,
        components,
        covariance,
        floor=options["floor"],
        steps=options["steps"],
        tolerance=options["tolerance"],
        held_out=apart,
        progress=progress,
    )
    found = fitted.mixture
    scales = torch.linalg.cholesky(found.covariances).diagonal(dim1=-2, dim2=-1) if found.full else found.covariances.sqrt()
    prior = priors.Mixture(size, components, covariance, minimum=min(1e-3, float(scales.min()) / 2))
    prior.to(model.device, model.like.dtype).put(*found)
    return _given(model, prior), codes


def _ascended(
    model: M,
    kind: str,
    x: Examples,
    valid: Examples | None,
    draws: int,
    options: dict[str, Any],
    progress: Progress | None,
) -> tuple[M, Tensor]:
    """Adam on the prior's own parameters."""
    if valid is None:
        if len(x) < 2:
            raise ConfigError("fitting a prior by steps needs examples that are held out: give at least two, or valid")
        shuffled, cut = Permutation(len(x), seed=int(torch.randint(2**62, ())))[:], max(1, len(x) // 10)
        x, valid = x.subset(shuffled[cut:].sort().values), x.subset(shuffled[:cut].sort().values)
    prior: nn.Module
    if kind == "vamp":
        prior = priors.VampPrior(
            model.latent_shape, model.event_shape, options["components"], options["bounds"], **_beside(model)
        )
    else:
        prior = priors.Flow(model.latent_shape, options["form"], options["transforms"], options["hidden"])
    fitted = _given(model, prior).eval()
    codes, apart = _codes(fitted, x, 1), _codes(fitted, valid, HELD)
    if isinstance(prior, priors.Flow):
        prior.standardise(codes)
    else:
        fitted.prepare(x)
    parameters = [p for p in prior.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=options["lr"])
    best, waited, kept = _mean(fitted, apart), 0, copy.deepcopy(prior.state_dict())
    for epoch in range(options["epochs"]):
        order, size = x.order(int(torch.randint(2**62, ()))), options["batch_size"]
        for batch in x.fed(order, [(i, min(i + size, len(x))) for i in range(0, len(x), size)]):
            with torch.no_grad():
                z = fitted.pose(fitted.batch(batch)).q.sample((draws,))
            loss = -fitted.prior().log_prob(z).mean()
            for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = slope  # of the prior alone: a VampPrior's posterior stays as it is
            optimizer.step()
        value = _mean(fitted, apart)
        if progress is not None:
            progress(epoch + 1, value)
        if value > best:
            best, waited, kept = value, 0, copy.deepcopy(prior.state_dict())
        else:
            waited += 1
        if waited >= options["patience"]:
            break
    optimizer.zero_grad()
    prior.load_state_dict(kept)
    return fitted, codes


def _beside(model: Model) -> dict[str, int]:
    """The conditions of a VampPrior's pseudo-inputs, where the model's posterior takes one."""
    return {"beside": model.condition_size} if model.condition_size else {}


def _mean(model: Model, codes: Tensor) -> float:
    """The mean of log p(z) in nats."""
    prior = getattr(model, "prior", None)
    step = max(1, CODES // (codes[0].numel() * getattr(prior, "components", 1)))
    with quiet(model):
        law = model.prior()
        return sum(float(law.log_prob(part).double().sum()) for part in codes.split(step)) / len(codes)


def _no_worse(model: Model, fitted: Model, codes: Tensor) -> None:
    """Refuse a prior that takes from the bound."""
    new = _mean(fitted, codes)
    old = _mean(model, codes) if hasattr(model, "prior") else -math.inf
    if not math.isfinite(new) or new < old:
        raise TrainingError(
            f"the new prior gives the training codes a mean log density of {new:.4f} nats, the model's own {old:.4f}: keep the "
            "model as it is, or fit another kind of prior, with more components or steps"
        )
