"""A data set, split, with what was learnt about it."""

from __future__ import annotations

from dataclasses import dataclass

from xhat.data.conditions import Conditions
from xhat.data.examples import Examples
from xhat.data.kinds import Kind
from xhat.data.preparation import Preparation
from xhat.data.scaling import Scaling
from xhat.data.split_arrays import SPLITS


@dataclass(frozen=True)
class Data:
    """A data set, split, with what was learnt about it.

    ``kind`` says what the values look like, ``preparation`` what was done to them and how the same is done to others, and
    ``notes`` what a user should hear of it. ``scaling`` is None unless the values were standardised, ``label_names`` and
    ``columns`` are None unless the source has them, ``kept`` the positions of a table's columns where constant ones were left
    out, and ``bytes`` whether the values were divided by 255.
    """

    name: str
    train: Examples
    valid: Examples
    test: Examples
    kind: Kind
    preparation: Preparation
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The event shape, without N."""
        return self.train.shape

    @property
    def scaling(self) -> Scaling | None:
        return self.preparation.scaling

    @property
    def label_names(self) -> tuple[str, ...] | None:
        return self.preparation.label_names

    @property
    def columns(self) -> tuple[str, ...] | None:
        return self.preparation.names

    @property
    def conditions(self) -> Conditions | None:
        """What the examples are conditioned on; ``.described`` is what ``xhat.build(condition=…)`` takes."""
        return self.preparation.conditions

    @property
    def kept(self) -> tuple[int, ...] | None:
        return self.preparation.kept

    @property
    def bytes(self) -> bool:
        return bool(self.preparation.bytes)

    @property
    def streamed(self) -> bool:
        """Whether the examples stay on disk and are read when they are fetched."""
        return not self.train.resident

    def describe(self) -> str:
        """Two or three lines for the command line: how many, of what shape and kind, and what suits them.

        >>> from xhat.data import load_data
        >>> print(load_data([[0.0, 1.0], [1.0, 0.0]] * 5).describe())
        the array: 10 examples of shape (2,), 8 to train, 1 to validate, 1 to test
        kind binary, suggested likelihood 'bernoulli': the values are 0 and 1
        """
        sizes = [len(getattr(self, name)) for name in SPLITS]
        lines = [
            f"{self.name}: {sum(sizes)} examples of shape {self.shape}, {sizes[0]} to train, {sizes[1]} to validate, "
            f"{sizes[2]} to test" + self._classes(),
            f"kind {self.kind.name}, suggested likelihood '{self.kind.likelihood}': {self.kind.why}",
        ]
        if self.conditions is not None:
            lines.append(f"conditioned on {self.conditions}")
        return "\n".join(lines + ["; ".join(self.notes)] * bool(self.notes))

    def _classes(self) -> str:
        if self.train.labels is None:
            return ""
        return f"; {len(self.label_names or set(self.train.labels.tolist()))} classes"
