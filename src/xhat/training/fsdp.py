"""Weights in pieces: each process keeps its part of the weights and of the optimiser's state, for models that fit no device."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xhat.data import Batch, Examples
from xhat.errors import ConfigError
from xhat.gradients import Pathwise
from xhat.models.base import Model
from xhat.models.files import state_of
from xhat.networks.bayesian_models import is_bayesian
from xhat.networks.mlp import TransposedLinear
from xhat.objectives import Terms
from xhat.ranks import Ranks
from xhat.training.distributed import Work
from xhat.training.engine import Bounds, Engine, Taken
from xhat.training.optimizer import Optimizer
from xhat.training.program import Program
from xhat.training.settings import Settings

ALONE = 2**16  # numbers from which on a layer's weights are fetched by themselves, just before the layer needs them


class Pieces:
    """A model of which every process keeps a part, by torch's ``fully_shard``.

    Each large layer is a group of its own: its weights are gathered before it runs and let go afterwards. The rest is one group.
    The model that was given stays whole, where it was, and gets the weights back when they are asked for.

    Args:
        model: the whole one, the same in every process; may lie in memory when no device could hold it.
        device: where the pieces go.
        ranks: the processes.

    Source: Rajbhandari et al. (2020), the third stage of ZeRO; Zhao et al. (2023).
    """

    def __init__(self, model: Model, device: torch.device, ranks: Ranks) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.whole, self.ranks = model, ranks
        self.model = copy.deepcopy(model)
        mesh = init_device_mesh(device.type, (ranks.world,))
        for module in list(self.model.modules()):
            if not list(module.children()) and sum(p.numel() for p in module.parameters()) >= ALONE:
                fully_shard(module, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    @staticmethod
    def own(tensor: Tensor) -> Tensor:
        """This process's piece of a weight, sharing its memory; a tensor that is whole everywhere, itself."""
        with torch.no_grad():
            return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a DTensor

    def state(self) -> dict[str, Tensor]:
        """This process's pieces of a model's tensors, by name."""
        held = dict(self.model.state_dict(keep_vars=True))
        return {name: self.own(held[name]).detach() for name in state_of(self.whole)}

    def joined(self, pieces: Tensor, like: Tensor) -> Tensor:
        """The whole tensor, in memory, of pieces cut as ``like`` is cut; empty where this is not the first process."""
        from torch.distributed.tensor import DTensor

        if not isinstance(like, DTensor) or pieces.dim() == 0:
            return pieces.detach().cpu().clone()
        with torch.no_grad():
            cut = DTensor.from_local(
                pieces,
                like.device_mesh,
                like.placements,
                run_check=False,
                shape=like.shape,
                stride=like.stride(),
            )
            return cut.full_tensor().cpu() if self.ranks.first else cut.full_tensor().new_empty(0, device="cpu")

    def piece(self, whole: Tensor, like: Tensor) -> Tensor:
        """The piece of a whole tensor that this process keeps, cut as ``like`` is cut."""
        if not hasattr(like, "to_local") or whole.dim() == 0:
            return whole
        size = math.ceil(whole.shape[0] / self.ranks.world)  # fully_shard cuts the first axis as torch.chunk does
        return whole[self.ranks.rank * size : (self.ranks.rank + 1) * size]

    def joined_state(self, pieces: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors of a :meth:`state`, in the first process."""
        held = dict(self.model.state_dict(keep_vars=True))
        return {name: self.joined(tensor, held[name]) for name, tensor in pieces.items()}

    def pieces_of(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's pieces of whole tensors."""
        held = dict(self.model.state_dict(keep_vars=True))
        return {name: self.piece(tensor, held[name]).clone() for name, tensor in state.items()}

    def put(self, pieces: dict[str, Tensor]) -> None:
        """Take up the pieces of a :meth:`state`."""
        own = self.state()
        for name, tensor in pieces.items():
            own[name].copy_(tensor)

    def gather(self) -> None:
        """Put the weights into the whole model, in every process."""
        whole = state_of(self.whole)
        for name, tensor in self.joined_state(self.state()).items():
            if self.ranks.first:
                whole[name].copy_(tensor)
        self.ranks.copy(list(whole.values()))

    def joined_slots(self, slots: dict[str, Tensor]) -> dict[str, Tensor]:
        """The optimiser's state, whole, in the first process; its names begin with a parameter's place."""
        return {name: self.joined(tensor, self.parameters[int(name.partition("/")[0])]) for name, tensor in slots.items()}

    def slots_of(self, slots: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's pieces of a whole optimiser's state."""
        known = {name: int(name.partition("/")[0]) for name in slots}
        return {
            name: self.piece(slots[name], self.parameters[place]) for name, place in known.items() if place < len(self.parameters)
        }


def refuse_pieces(model: Model, settings: Settings) -> None:
    """Refuse what reads weights in other ways than by running the layers that hold them.

    Raises:
        ConfigError: names it.
    """
    whole = "leave shard_weights (--shard-weights) out"
    if len(model.stages()) > 1:
        raise ConfigError(f"{type(model).__name__} is trained in stages, which weights in pieces do not go through: {whole}")
    if is_bayesian(model):
        raise ConfigError(f"the divergence of random weights needs them whole: {whole}")
    if type(model.gradient) is not Pathwise:
        raise ConfigError(
            f"weights in pieces are derived in one sweep, and {type(model.gradient).__name__} takes derivatives of its own: use "
            f"gradient='pathwise', or {whole}"
        )
    if settings.engine not in ("auto", "eager"):
        raise ConfigError(
            f"weights in pieces are gathered layer by layer, which only the engine eager does: {whole}, or the engine"
        )
    if settings.precision != "float32":
        raise ConfigError(f"weights in pieces are gathered in float32: use precision='float32', or {whole}")
    twice = len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False)))
    if twice or any(isinstance(module, TransposedLinear) for module in model.modules()):
        raise ConfigError(f"{type(model).__name__} has weights that stand in several places, and a piece has one place: {whole}")


class InPieces(Engine):
    """Eager steps with weights in pieces: torch gathers a layer's weights when it runs, and adds up its derivative in pieces.

    The derivative comes from ``backward`` and not from :class:`~xhat.training.program.Program`, for it is in its hooks that the
    pieces are gathered and added up. Every process takes part in each of these sums, so each runs equally many shards; one that
    has none left runs an example more, of weight 0.
    """

    name = "eager"

    def __init__(
        self,
        program: Program,
        optimizer: Optimizer,
        clip: float | None,
        size: int,
        pieces: Pieces,
        work: Work,
    ) -> None:
        super().__init__(program, optimizer, None, size)
        self.longest, self.pieces, self.ranks = clip, pieces, pieces.ranks
        self.work, self.shards = work, work.shards

    def steps(self, examples: Examples, order: Any, bounds: Bounds) -> Iterator[Taken]:
        """As every engine's; but ``order`` is the order's seed."""
        bounds = list(bounds)
        if not bounds:
            return
        spare = next(self.fetched(examples, torch.tensor([0]), [(0, 1)]))
        with self.shards.feeds(examples, order, bounds, self.ranks, self.fetched) as feeds:
            for start, stop in bounds:
                yield self._step(feeds, spare, start, stop)

    def _step(self, feeds: dict[int, Iterator[Tensor | Batch]], spare: Tensor | Batch, start: int, stop: int) -> Taken:
        cuts, step, names = self.shards.cut(start, stop), self.work.now(), ()
        told: Tensor | None = None
        for shard in range(self.ranks.rank, math.ceil(self.shards.count / self.ranks.world) * self.ranks.world, self.ranks.world):
            first, last = cuts[shard] if shard < self.shards.count else (0, 0)
            self.work.draw(step, shard)
            x, weight = (next(feeds[shard]), (last - first) / (stop - start)) if first < last else (spare, 0.0)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*returned a view tensor")  # which nothing here changes in place
                terms: Terms = self.program.module(x)
            # torch takes the mean over the processes
            (terms.loss.mean() * (weight * self.ranks.world)).backward()
            names = ("loss", *terms.measures)  # type: ignore[assignment]
            values = torch.stack([terms.loss, *terms.measures.values()]).detach().mean(1) if weight > 0 else None
            told = terms.loss.new_zeros(len(names) + 1).detach() if told is None else told
            if values is not None:
                told[:-1] += weight * values
        assert told is not None
        told[-1] = float(self.work.asked())
        self.ranks.add([told])
        return self.update((told, self._derivatives(), names), stop - start, self.rate)

    def _derivatives(self) -> tuple[Tensor | None, ...]:
        found = [None if p.grad is None else self.pieces.own(p.grad) for p in self.pieces.parameters]
        for parameter in self.pieces.parameters:
            parameter.grad = None
        if self.longest is not None:
            squares = torch.stack([d.square().sum() for d in found if d is not None]).sum().reshape(1)
            self.ranks.add([squares])
            share = (self.longest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
            found = [None if d is None else d * share for d in found]
        return tuple(found)


def moved(parameters: Sequence[nn.Parameter], pieces: Pieces | None) -> list[nn.Parameter]:
    """What the optimiser moves: the parameters, or this process's pieces of them."""
    return list(parameters) if pieces is None else [pieces.own(p) for p in parameters]  # type: ignore[misc]
