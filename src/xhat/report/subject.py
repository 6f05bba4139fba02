"""What the report is about: a model with its test examples, and what several figures ask of them."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from xhat.data import Data
from xhat.evaluation.evaluate import Evaluation
from xhat.models.base import Model, quiet
from xhat.objectives.posed import squared_error

MOST = 3000  # test examples that are looked at
_CHUNK = 500
_SHOWN_COLUMNS = 12


class Subject:
    """A trained model and up to 3,000 test examples in an order of their own, on the CPU; x ``(N, *event)``."""

    def __init__(self, model: Model, data: Data, evaluation: Evaluation) -> None:
        self.model, self.data, self.evaluation = model, data, evaluation
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        test = data.test.fixed(0)
        chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:MOST]
        part = test.subset(chosen.to(test.device))
        self.batch = part.batch(slice(None)).to(torch.zeros(()))
        self.x = self.batch.x
        self.labels = None if part.labels is None else part.labels.cpu()
        self.has_prior, self.has_bound = hasattr(model, "prior"), model.has_bound

    @cached_property
    def codes(self) -> Tensor:
        """Codes of x, flat: ``(N, latent)``."""
        return torch.cat([self.model.encode(part).cpu() for part in self.batch.split(_CHUNK)]).flatten(1)

    @cached_property
    def reconstructed(self) -> Tensor:
        """x̂ of x, ``(N, *event)``."""
        parts = zip(self.codes.split(_CHUNK), self.batch.split(_CHUNK), strict=True)
        return torch.cat([self.decode(codes, part.condition) for codes, part in parts])

    @cached_property
    def error(self) -> Tensor:
        """Squared error of each x̂, summed over the event: ``(N,)``."""
        return squared_error(self.reconstructed, self.x, self.batch.observed)

    def decode(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """What flat codes ``(N, latent)`` decode to, on the CPU; under the typical example's condition unless one is given."""
        if condition is None and self.batch.condition is not None:
            condition = self.batch.condition[self._typical]
        return self.model.decode(codes.reshape(-1, *self.model.latent_shape), condition=condition).cpu()

    def reconstruct(self, x: Tensor, which: Tensor | slice = slice(None)) -> Tensor:
        """x̂ of what the encoder is shown of the examples at some positions, under their conditions."""
        return self.model.reconstruct(self.batch.rows(which)._replace(x=x)).cpu()

    def seen(self, values: Tensor) -> np.ndarray:
        """Values of x's shape in the units of the data, flat, with NaN where nothing was observed."""
        found = self.units(values).flatten(1).double()
        return (found if self.batch.observed is None else found.where(self.batch.observed.flatten(1), torch.nan)).numpy()

    def corrupted(self, x: Tensor) -> Tensor:
        """One draw of the corrupted x."""
        assert self.model.corruption is not None
        with quiet(self.model):
            seen: Tensor = self.model.corruption(x.to(self.device))
        return seen.cpu()

    @cached_property
    def typical(self) -> Tensor:
        """The code of the example whose code lies nearest to the mean code."""
        return self.codes[self._typical]

    @cached_property
    def _typical(self) -> int:
        return int((self.codes - self.codes.mean(0)).square().sum(1).argmin())

    @property
    def pictures(self) -> bool:
        """Whether examples are images: height by width, with one channel or colours."""
        shape = self.data.shape
        return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3, 4))

    @cached_property
    def _levels(self) -> tuple[float, float]:
        """What is black and what is white: [0, 1] unless the data leave it."""
        low, high = (float(bound) for bound in torch.aminmax(self.units(self.x)))
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)

    def units(self, x: Tensor) -> Tensor:
        """Values in the units that the data came in."""
        return x if self.data.scaling is None else self.data.scaling.invert(x)

    def rgb(self, x: Tensor) -> Tensor:
        """Images ``(N, *event)`` as ``(N, H, W, 3)`` in [0, 1]."""
        low, high = self._levels
        x = ((self.units(x) - low) / max(high - low, 1e-12)).clamp(0, 1)
        if x.dim() == 3:
            x = x.unsqueeze(1)
        x = x[:, :3]
        return x.expand(-1, 3, -1, -1).movedim(1, -1).contiguous()

    @cached_property
    def shown(self) -> Tensor:
        """Positions of ten examples, of as many labels as there are."""
        if self.labels is None:
            return torch.arange(min(10, len(self.x)))
        kinds, which = np.unique(self.labels.numpy(), return_inverse=True)
        turn = np.zeros_like(which)
        for kind in range(len(kinds)):
            turn[which == kind] = np.arange((which == kind).sum())
        return torch.from_numpy(np.lexsort((which, turn))[:10])

    @cached_property
    def columns(self) -> list[int]:
        """The columns of a table that are shown: the first twelve, or those that vary most if they are not standardised."""
        flat = self.x.flatten(1)
        if flat.shape[1] <= _SHOWN_COLUMNS or self.data.scaling is not None:
            return list(range(min(_SHOWN_COLUMNS, flat.shape[1])))
        spread = flat.var(0, correction=0)
        return sorted(spread.argsort(descending=True, stable=True)[:_SHOWN_COLUMNS].tolist())

    def column_name(self, column: int) -> str:
        """Its name, or its position from 0."""
        names = self.data.columns
        return names[column] if names is not None and column < len(names) else f"column {column}"

    @property
    def chosen_columns(self) -> str:
        """A sentence on which columns are shown, where some are not."""
        count = self.x.flatten(1).shape[1]
        if count <= len(self.columns):
            return ""
        which = "the first" if self.data.scaling is not None else "those that vary most:"
        return f" Shown are {which} {len(self.columns)} of {count} columns."

    def label_name(self, label: int) -> str:
        names = self.data.label_names
        return str(names[label]) if names is not None and 0 <= label < len(names) else str(label)
