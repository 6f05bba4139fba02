"""Models of one structure as one program: their tensors lie in stacks, and every operation serves all of them at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from xhat.data import Batch
from xhat.errors import ConfigError
from xhat.gradients.expectation import name_of
from xhat.models.base import Model, quiet
from xhat.networks.bayesian_models import is_bayesian
from xhat.objectives import ELBO, Terms
from xhat.parts import specification

ALONE = "train these models one by one with xhat.fit"
WORTHWHILE = 64  # steps with batches of one size, from which on writing their program down costs less than it saves

Program = Callable[[list[Tensor], dict[str, Tensor], dict[str, Tensor], list[Tensor]], tuple[list[Tensor | None], Tensor]]


class _Draws(TorchFunctionMode):
    """Lets laws that fill an empty tensor with noise (torch's Normal) draw for each member apart, as vmap alone would not."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.like = like

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty and options.keys() <= {"dtype", "device", "size"}:
            dtype = options.pop("dtype", None) or torch.get_default_dtype()
            device = options.pop("device", None) or torch.get_default_device()
            return self.like.new_empty(*args, **options, dtype=dtype, device=device)
        return func(*args, **options)


class _Member(nn.Module):
    """One model as a map from a batch to numbers: the loss and every measure, averaged in training, else summed.

    Args:
        model: the member.
        fields: what a batch holds, in the order in which it comes.
    """

    def __init__(self, model: Model, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.fields = model, fields
        self.names: dict[bool, list[str]] = {}  # of what comes out, in training and in evaluation

    def forward(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        terms: Terms = self.model(Batch(**dict(zip(self.fields, parts, strict=True))))
        values = {"loss": terms.loss, **terms.measures}
        if not self.training:
            self.names[False] = list(values)
            return terms.loss.sum(), torch.stack([value.double().sum() for value in values.values()])
        self.names[True] = list(values)
        return terms.loss.mean(), torch.stack([value.detach().mean() for value in values.values()])


class Stack:
    """The members' parameters and buffers, each ``(M, *shape)``, and the programs that act on all of them.

    Args:
        models: M models that differ in their weights and in β only.
        first: a first batch for each member, its parts ``(M, B, …)``, to find out whether it can be done.

    Raises:
        ConfigError: models of different structures, or with a part that cannot be trained in a stack; names it.
    """

    def __init__(self, models: list[Model], first: Batch) -> None:
        _check_alike(models)
        _check_alone(models[0], first.rows(0))
        self.size = len(models)
        self.fields = tuple(name for name, part in first._asdict().items() if part is not None)
        members = [_Member(model, self.fields).train() for model in models]
        self.template = copy.deepcopy(members[0])
        with torch.no_grad():
            self.parameters, self.buffers = stack_module_state([*members])
        self.trained = {name: tensor for name, tensor in self.parameters.items() if tensor.requires_grad}
        self.frozen = {name: tensor for name, tensor in self.parameters.items() if not tensor.requires_grad}
        if not self.trained:
            raise ConfigError("nothing can be trained in train: every parameter is frozen (requires_grad is False)")
        self._schedules = self._scheduled(models)
        scheduled = [stacked for stacked, _, _ in self._schedules]
        # What is the same for all stays where it is, in the template.
        self.buffers = {
            name: stacked
            for name, stacked in self.buffers.items()
            if any(stacked is other for other in scheduled) or not bool((stacked == stacked[:1]).all())
        }
        self._programs: dict[int, Program] = {}
        self._can_be_written = self._at_moves_buffers_alone()
        self.at(0.0)
        self._probe(self._parts(first))

    def _scheduled(self, models: list[Model]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What schedules move: the stacked buffer, the template's own, and by what each member's is multiplied."""
        model = self.template.model
        ones = torch.ones(self.size, device=model.device)
        betas = ones
        if isinstance(model.objective, ELBO):
            betas = torch.tensor([float(m.objective.beta) for m in models], device=model.device)  # type: ignore[arg-type]
            # The template's weight is the warm-up's share alone, from 0 to 1.
            model.objective.beta = 1.0
            model.objective.weight.fill_(0.0 if model.objective.warmup > 0 else 1.0)
        weight = getattr(model.objective, "weight", None)
        return [
            (self.buffers[f"model.{part}.{name}"], buffer, betas if buffer is weight else ones)
            for part, module in (("objective", model.objective), ("gradient", model.gradient))
            for name, buffer in module.named_buffers()
        ]

    def at(self, epoch: float) -> None:
        """Tell every member how far training is; infinity sets its objective as it will be in the end."""
        model = self.template.model
        model.objective.at(epoch)
        if epoch < math.inf:
            model.gradient.at(epoch)
        for stacked, own, scale in self._schedules:
            stacked.copy_(own * scale.view(-1, *(1,) * own.ndim))

    def _parts(self, batch: Batch) -> list[Tensor]:
        """What a batch holds, in its order."""
        return [getattr(batch, name) for name in self.fields]

    def _probe(self, parts: list[Tensor]) -> None:
        """Try a step, so that what vmap refuses is refused now and by name; no random number is used up."""
        device = parts[0].device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                self._step([*self.trained.values()], self.frozen, self.buffers, parts)
            except (RuntimeError, NotImplementedError, ValueError) as error:
                if isinstance(error, ConfigError):
                    raise
                gradient = name_of(self.template.model.gradient)
                raise ConfigError(
                    f"this model, with the gradient {gradient!r}, cannot be trained in a stack: {ALONE} (torch says: "
                    f"{str(error).splitlines()[0].split('. ')[0].rstrip('.')})"
                ) from error

    def _forward(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], parts: list[Tensor]) -> Any:
            # Any tensor of the member's own serves: what is made like it is the member's own, too.
            with _Draws(next(iter(parameters.values()))):
                return functional_call(self.template, (parameters, buffers), tuple(parts))

        in_dims = (0, 0, 0 if self.template.training else None)
        return vmap(one, in_dims=in_dims, randomness="different")(parameters, buffers, parts)

    def _step(
        self, trained: list[Tensor], frozen: dict[str, Tensor], buffers: dict[str, Tensor], parts: list[Tensor]
    ) -> tuple[list[Tensor | None], Tensor]:
        parameters = dict(zip(self.trained, trained, strict=True)) | frozen
        losses, values = self._forward(parameters, buffers, parts)
        # No loss knows of another member's weights, so the gradient of the sum holds each member's own.
        found = torch.autograd.grad(losses.sum(), trained, allow_unused=True)
        # Adam's fused kernel goes through memory as it comes, and takes no notice of strides.
        return [None if gradient is None else gradient.contiguous() for gradient in found], values

    def gradients(self, batch: Batch, steps: int) -> tuple[list[Tensor | None], Tensor]:
        """Each member's gradient on its own batch, in the order of ``trained``, and its numbers.

        Args:
            batch: its parts ``(M, B, …)``.
            steps: how many steps with batches of this size there will be.

        Returns:
            gradients, each ``(M, *shape)``, and the means over the batch, ``(M, names)``.
        """
        arguments = ([*self.trained.values()], self.frozen, self.buffers, self._parts(batch))
        size = batch.x.shape[1]
        if size not in self._programs:
            self._programs[size] = self._step if steps < WORTHWHILE else self._written(arguments)
        return self._programs[size](*arguments)

    def _written(self, arguments: Any) -> Program:
        """The step as a list of torch's own operations: what Python and vmap add to each of them is paid for once, here."""
        if not self._can_be_written:
            return self._step
        devices = [self.template.model.device] if self.template.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                # A function, for make_fx counts the arguments, and a method has one more.
                written: Program = make_fx(lambda trained, frozen, buffers, parts: self._step(trained, frozen, buffers, parts))(
                    *arguments
                )
            except (RuntimeError, TypeError, NotImplementedError):
                return self._step
        return torch.no_grad()(written)

    def _at_moves_buffers_alone(self) -> bool:
        """Whether schedules keep what they say in buffers: a number kept elsewhere would be a constant of a written program."""
        parts = [*self.template.model.objective.modules(), *self.template.model.gradient.modules()]

        def told(epoch: float) -> list[dict[str, str]]:
            self.at(epoch)
            return [{name: repr(value) for name, value in vars(part).items() if name != "_buffers"} for part in parts]

        return told(0.25) == told(0.75)

    def names(self, training: bool) -> list[str]:
        """What the numbers are called that :meth:`gradients` gives, or :meth:`sums`."""
        return self.template.names[training]

    def sums(self, batches: Iterable[Batch]) -> Tensor:
        """Each member's sums over examples, ``(M, names)``, in evaluation mode and without gradients."""
        with quiet(self.template):
            found = [self._forward(self.parameters, self.buffers, self._parts(batch))[1] for batch in batches]
        return torch.stack(found).sum(0)

    def state(self) -> dict[str, Tensor]:
        """A copy of every stacked tensor."""
        return {name: tensor.detach().clone() for name, tensor in {**self.parameters, **self.buffers}.items()}


def put(model: Model, state: dict[str, Tensor], index: int) -> None:
    """Put one member's tensors of a :meth:`Stack.state` into a model of the same structure, and leave it in evaluation mode."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if f"model.{name}" in state:
                tensor.copy_(state[f"model.{name}"][index])
    model.eval()


def _described(model: Model) -> Any:
    """All that makes two models one program: everything but weights and β."""
    shapes = [(name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in model.named_parameters()]
    try:
        told = specification(model)
        told["arguments"]["objective"] = {**told["arguments"]["objective"], "arguments": _without_beta(model)}
    except (ConfigError, TypeError):  # parts of the user's own
        told = repr(model)
    return told, shapes


def _without_beta(model: Model) -> Any:
    return {name: value for name, value in specification(model.objective)["arguments"].items() if name != "beta"}


def _check_alike(models: list[Model]) -> None:
    first = _described(models[0])
    for index, model in enumerate(models):
        if type(model) is not type(models[0]) or _described(model) != first:
            raise ConfigError(
                f"models of a stack must be alike but for their weights and β, and the one at place {index + 1} is not like the "
                "first: let build(seed) use its seed for nothing else"
            )


def _check_alone(model: Model, batch: Batch) -> None:
    """Refuse what has a state that a step changes, by name."""
    if len(model.stages()) > 1:
        raise ConfigError(f"{type(model).__name__} is trained in stages, which a stack cannot do: {ALONE}")
    if is_bayesian(model):
        raise ConfigError(f"{type(model).__name__} has random weights, whose divergence a stack cannot sum up: {ALONE}")
    probe = copy.deepcopy(model).train()
    before = {name: buffer.clone() for name, buffer in probe.named_buffers()}
    device = batch.x.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        probe(batch)
    learns = next(probe.gradient.parameters(), None) is not None or probe.gradient.auxiliary_loss() is not None
    if learns:
        raise ConfigError(f"the gradient {name_of(model.gradient)!r} learns as it goes, which a stack cannot do: {ALONE}")
    for name, buffer in probe.named_buffers():
        if not torch.equal(buffer, before[name]):
            owner = type(probe.get_submodule(name.rpartition(".")[0])).__name__
            raise ConfigError(f"{owner} ({name}) keeps a running state, which a stack cannot do: {ALONE}")
