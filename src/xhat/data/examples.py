"""Examples: N of them in one tensor, fetched in whole batches as floats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat.errors import ConfigError, DataError

STORED = (torch.uint8, torch.float32, torch.float64)
_EXACT_IN_FLOAT32 = 2**24
_CHUNK = 4096  # examples drawn at once: a whole data set as float32 would be four times its bytes


class Examples:
    """N examples held as one tensor, with a label each if there are any.

    Args:
        storage: ``(N, *event)``, uint8, float32 or float64; shared with the caller, not copied.
        labels: ``(N,)``, whole numbers, or None.
        scale: divide by 255 when a batch is fetched, so that bytes stay bytes in memory (uint8 storage only).
        binarize: ``"dynamic"`` makes every fetch draw Bernoulli(value) anew from torch's global generator.

    Raises:
        DataError: storage of another dtype, without examples or without an event axis; labels of another length;
            ``binarize`` on values outside [0, 1].
        ConfigError: ``binarize`` is another word, or ``scale`` is asked of floats.

    >>> x = Examples(torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8), scale=True)
    >>> len(x), x.shape, x.storage.dtype
    (2, (2,), torch.uint8)
    >>> x[:1]
    tensor([[0., 1.]])
    >>> x[torch.tensor([1, 1])].shape, x[0].shape
    (torch.Size([2, 2]), torch.Size([2]))
    """

    def __init__(
        self, storage: Tensor, labels: Tensor | None = None, *, scale: bool = False, binarize: str | None = None
    ) -> None:
        if storage.dtype not in STORED:
            raise DataError(f"examples must be stored as uint8, float32 or float64, not {storage.dtype}: as_examples(x) converts")
        if storage.dim() < 2:
            raise _too_flat("the storage", tuple(storage.shape))
        if storage.numel() == 0:
            raise DataError(f"the storage holds no examples, its shape is {tuple(storage.shape)}: give at least one")
        if scale and storage.dtype != torch.uint8:
            raise ConfigError(f"scale=True divides bytes by 255, the storage is {storage.dtype}: leave scale out")
        if labels is not None and tuple(labels.shape) != (len(storage),):
            raise DataError(
                f"labels must hold one number for each of the {len(storage)} examples, "
                f"their shape is {tuple(labels.shape)}: give labels of shape ({len(storage)},)"
            )
        if binarize not in (None, "dynamic"):
            raise ConfigError(
                f"binarize must be None or 'dynamic' for examples in memory, not {binarize!r}: "
                "load_data(...) also knows 'static' and 'threshold'"
            )
        self.storage = storage.detach()
        self.labels = None if labels is None else labels.detach().to(torch.int64)
        self.scale = scale
        self.binarize = binarize
        if binarize is not None:
            check_unit_range(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """The event shape, without N."""
        return tuple(self.storage.shape[1:])

    def __len__(self) -> int:
        return len(self.storage)

    def __getitem__(self, index: Any) -> Tensor:
        """A float32 batch ``(n, *event)``; for an int, one example ``(*event)``."""
        values = self._grey(index)
        return values if self.binarize is None else torch.bernoulli(values)

    def _grey(self, index: Any) -> Tensor:
        values = self.storage[_as_index(index)].to(torch.float32)
        return values / 255 if self.scale else values

    def tensor(self) -> Tensor:
        """All examples as one float32 tensor ``(N, *event)``."""
        return self[:]

    def batches(self, size: int) -> Iterator[Tensor]:
        """Consecutive float32 batches of ``size`` examples; the last one may be shorter.

        Raises:
            ConfigError: ``size`` is below 1.

        >>> [len(batch) for batch in as_examples(torch.rand(5, 2)).batches(2)]
        [2, 2, 1]
        """
        if size < 1:
            raise ConfigError(f"the batch size must be at least 1, not {size}: give a positive whole number")
        return (self[start : start + size] for start in range(0, len(self), size))

    def subset(self, indices: Any) -> Examples:
        """The examples at ``indices`` (slice, list, array or int64 tensor), with their labels.

        Raises:
            DataError: no index is given.
        """
        index = _as_index(indices)
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        labels = None if self.labels is None else self.labels[index]
        return Examples(self.storage[index], labels, scale=self.scale, binarize=self.binarize)

    def fixed(self, seed: int) -> Examples:
        """The same examples with dynamic binarisation replaced by one draw, a pure function of ``seed``.

        >>> x = Examples(torch.full((4, 3), 0.5), binarize="dynamic")
        >>> torch.equal(x.fixed(0).tensor(), x.fixed(0).tensor())
        True
        """
        return self if self.binarize is None else drawn(self, seed)

    def to(self, device: torch.device | str) -> Examples:
        """The same examples, stored on another device: batches then come from there."""
        labels = None if self.labels is None else self.labels.to(device)
        return Examples(self.storage.to(device), labels, scale=self.scale, binarize=self.binarize)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.tensor().cpu().numpy().astype(dtype or np.float32, copy=bool(copy))

    def __repr__(self) -> str:
        options = ("scaled by 1/255",) * self.scale + (f"binarize={self.binarize}",) * (self.binarize is not None)
        labelled = ("labelled",) * (self.labels is not None)
        words = (f"{len(self)} of shape {self.shape}", str(self.storage.dtype).removeprefix("torch."))
        return f"Examples({', '.join(words + options + labelled)})"


def drawn(examples: Examples, seed: int) -> Examples:
    """One Bernoulli draw of every value, stored as bytes 0 and 1; a pure function of the values and ``seed``."""
    check_unit_range(examples)
    generator = torch.Generator().manual_seed(seed)
    result = torch.empty(examples.storage.shape, dtype=torch.uint8)
    for start in range(0, len(examples), _CHUNK):
        # On the CPU whatever the device: another device's stream would be another data set under the same seed.
        grey = examples._grey(slice(start, start + _CHUNK)).cpu()
        result[start : start + _CHUNK] = torch.rand(grey.shape, generator=generator) < grey
    return Examples(result.to(examples.storage.device), examples.labels)


def check_unit_range(examples: Examples) -> None:
    """Refuse to binarise what is no probability.

    Raises:
        DataError: a value lies outside [0, 1].
    """
    low, high = (float(bound) for bound in torch.aminmax(examples.storage))
    if not examples.scale and not (low >= 0 and high <= 1):
        raise DataError(f"binarisation needs values in [0, 1], these go from {low:g} to {high:g}: rescale them, or leave it out")


def as_examples(x: Any, where: str = "x") -> Examples:
    """Examples from whatever holds numbers: a tensor, an array, a nested list, or Examples (returned as they are).

    The first axis counts the examples. Bytes that reach above 1 are grey levels and are divided by 255 when fetched;
    other whole numbers are kept as they are, as floats. Memory is shared where the dtype allows it.

    Args:
        x: shape ``(N, *event)``.
        where: what messages call ``x``.

    Raises:
        DataError: no examples, no event axis, values that are no real numbers, NaN or infinity.

    >>> as_examples(np.array([[0, 128], [255, 1]], dtype=np.uint8))
    Examples(2 of shape (2,), uint8, scaled by 1/255)
    >>> as_examples([[1, 2], [3, float("nan")]])
    Traceback (most recent call last):
    xhat.errors.DataError: x holds nan at row 1, column 1 (x[1, 1], counted from 0), must be finite:
    remove or fill that row
    """
    if isinstance(x, Examples):
        return x
    storage = as_storage(x, where)
    check_size(storage, where)
    check_finite(storage, where)
    scale = storage.dtype == torch.uint8 and int(storage.max()) > 1
    return Examples(storage, scale=scale)


def as_storage(x: Any, where: str) -> Tensor:
    """``x`` as a uint8, float32 or float64 tensor of the same values, sharing memory where it can."""
    tensor: Tensor = (x if isinstance(x, Tensor) else _from_numpy(x, where)).detach()
    if tensor.is_complex():
        raise DataError(f"{where} holds complex numbers, must hold real ones: stack x.real and x.imag on an event axis")
    if tensor.dtype in STORED:
        return tensor
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8)
    if tensor.is_floating_point():
        return tensor.to(torch.float32)
    # float32 is exact up to 2**24; beyond it (time stamps) float64 keeps the digits until the data are standardised
    large = tensor.numel() > 0 and int(tensor.abs().max()) > _EXACT_IN_FLOAT32
    return tensor.to(torch.float64 if large else torch.float32)


def _from_numpy(x: Any, where: str) -> Tensor:
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{where} is no rectangular array of numbers ({error}): make all rows equally long") from error
    if array.dtype.kind not in "biufc":
        raise DataError(f"{where} has dtype {array.dtype}, must hold numbers: convert it with numpy.asarray(x, dtype=float)")
    if array.dtype.kind == "c":
        array = array.astype(np.complex128)
    elif array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float64 if array.dtype.itemsize > 8 else np.float32)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.float64 if array.dtype.itemsize == 8 else np.int64)  # torch's own unsigned lack max
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    # torch cannot share memory that is read-only or runs backwards
    shareable = native.flags.writeable and all(stride >= 0 for stride in native.strides)
    return torch.from_numpy(native if shareable else native.copy())


def check_size(storage: Tensor, where: str) -> None:
    """Refuse what has no examples, or no event axis."""
    shape = tuple(storage.shape)
    if len(shape) < 2:
        raise _too_flat(where, shape)
    if storage.numel() == 0:
        raise DataError(f"{where} holds no examples, its shape is {shape}: give at least one example with one value")


def _too_flat(where: str, shape: tuple[int, ...]) -> DataError:
    if not shape:
        return DataError(f"{where} is a single number, must have shape (N, *event): give an array of examples")
    if shape == (0,):
        return DataError(f"{where} holds no examples: give an array of shape (N, *event)")
    return DataError(
        f"{where} has 1 axis of length {shape[0]}, must have shape (N, *event): "
        "reshape to (N, 1) with x.reshape(-1, 1), or to (1, D) if it is one example"
    )


def check_finite(storage: Tensor, where: str, rows: Any = None, places: Sequence[str] | None = None) -> None:
    """Refuse NaN and infinity, and what float32 cannot hold.

    Args:
        storage: ``(N, *event)``.
        where: what messages call it.
        rows: for messages, the rows of a table in its file.
        places: for messages, what its columns are called.

    Raises:
        DataError: names the first bad entry.
    """
    position = first_nonfinite(storage)
    if position is None:
        return
    value = float(storage[position])
    index = ", ".join(map(str, position))
    place = f"row {position[0]}, column {position[1]}" if len(position) == 2 else f"index ({index})"
    wrong = f"{value:g}" if not np.isfinite(value) else f"{value:g}, too large for float32,"
    if rows is not None and places is not None:
        raise DataError(f"{where} holds {wrong} at row {rows[position[0]]}, {places[position[1]]}, must be finite: fill it")
    raise DataError(f"{where} holds {wrong} at {place} (x[{index}], counted from 0), must be finite: remove or fill that row")


def first_nonfinite(storage: Tensor) -> tuple[int, ...] | None:
    """Where the first entry stands that is not finite as float32, or None."""
    if storage.dtype == torch.uint8 or storage.numel() == 0:
        return None
    limit = torch.finfo(torch.float32).max
    low, high = torch.aminmax(storage)  # NaN propagates: one pass, no copy, for the usual case that all is well
    if low >= -limit and high <= limit:
        return None
    bad = ~(storage.abs() <= limit)
    return tuple(int(axis) for axis in np.unravel_index(int(bad.flatten().to(torch.uint8).argmax()), storage.shape))


def _as_index(index: Any) -> Any:
    if isinstance(index, slice | Tensor):
        return index
    if isinstance(index, int | np.integer):
        return int(index)
    array = np.asarray(index)
    return torch.from_numpy(array.astype(bool if array.dtype == bool else np.int64))
