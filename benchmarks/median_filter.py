"""What a 3×3 median filter makes of half-masked images: the figure that a denoising autoencoder must beat.

    python benchmarks/median_filter.py FASHION masking:0.5

Prints the squared error to the clean test images, per image on [0, 1] pixels, of the corrupted and of the filtered images.
A median of all nine pixels, and one of those that are not 0, which a mask of known value allows.
"""

import sys

import numpy as np
import torch
from scipy.ndimage import median_filter

import xhat
from xhat.data import corruption_from


def main(source: str, noise: str) -> None:
    x = xhat.load_data(source).test.tensor()
    torch.manual_seed(0)
    noisy = corruption_from(noise)(x)
    plain = median_filter(noisy.numpy(), size=(1, 1, 3, 3), mode="nearest")
    padded = torch.nn.functional.pad(noisy, (1, 1, 1, 1), value=0.0)
    nine = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2)
    known = torch.where(nine > 0, nine, torch.nan).nanmedian(-1).values.nan_to_num(0.0)
    for name, values in (("corrupted", noisy), ("3×3 median", plain), ("3×3 median of pixels above 0", known)):
        error = ((np.asarray(values) - x.numpy()) ** 2).reshape(len(x), -1).sum(1)
        print(f"{name:<30} {error.mean():8.3f} ± {error.std() / len(x) ** 0.5:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
