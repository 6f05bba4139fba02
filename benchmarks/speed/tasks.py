"""What is trained: networks, batch, data. Each contender gets the same task."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

LEARNING_RATE = 1e-3  # Adam's, everywhere


@dataclass(frozen=True)
class Task:
    """One thing to train.

    Attributes:
        kind: "vae", "iwae" or "autoencoder".
        data: "digits" (binary 28×28 images), "pictures" (64×64×3, generated) or "bits" (64 binary features, generated).
        examples: rows of the data.
        hidden: the encoder's hidden layers, mirrored in the decoder; for "conv" the size of the fully connected one.
        channels: feature maps of the convolutions; empty for fully connected networks.
        samples: draws of the code for each example.
    """

    kind: str
    data: str
    examples: int
    batch: int
    hidden: tuple[int, ...]
    latent: int
    channels: tuple[int, ...] = ()
    samples: int = 1
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape of one example."""
        return {"digits": (1, 28, 28), "pictures": (3, 64, 64), "bits": (64,)}[self.data]

    @property
    def features(self) -> int:
        return math.prod(self.shape)

    @property
    def likelihood(self) -> str:
        """ "bernoulli" for binary data; "normal" with unit variance for the rest."""
        return "normal" if self.data == "pictures" or self.kind == "autoencoder" else "bernoulli"

    def described(self) -> str:
        """The networks and the batch in words."""
        up = [self.features, *self.hidden]
        sizes = [*up, self.latent, *up[::-1]] if self.kind == "autoencoder" else [*up, self.latent]
        text = "-".join(map(str, sizes))
        if self.channels:
            shape, maps = ("×".join(map(str, self.shape[1:] + self.shape[:1])), "-".join(map(str, self.channels)))
            text = f"{shape}, convolutions {maps}, {self.hidden[0]} units, {self.latent} codes"
        return f"{text}, batch {self.batch}"

    def few(self) -> Task:
        """The same on 20 batches of data, to try things out."""
        return replace(self, examples=min(self.examples, 20 * self.batch))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Task:
        return cls(**{**values, "hidden": tuple(values["hidden"]), "channels": tuple(values["channels"])})
