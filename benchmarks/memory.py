"""Train a VAE on a file larger than memory should be, and print the peak of resident memory.

    python benchmarks/memory.py                  # 20 GB of bytes, sparse where the file system allows, 300 steps
    python benchmarks/memory.py --gigabytes 1 --steps 100

A file of 28x28 images in bytes is made, some of its rows drawn and the rest left to the file system's zeros; a fresh process
loads it with ``xhat.load_data`` and trains a VAE 784-400-20 with ``xhat.train`` on batches from all over the file. What is
printed is that process's VmHWM, the most memory that it ever held, against 1 GiB and the model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LIMIT = 2**30
ROW = 28 * 28
REAL = 2000  # rows that are drawn, at the start of the file
BATCH = 128


def make(path: Path, gigabytes: float) -> int:
    """Write the file; the number of its rows."""
    import numpy as np

    rows = int(gigabytes * 10**9) // ROW
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 28, 28)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.write(np.random.default_rng(0).integers(0, 256, (REAL, ROW), dtype=np.uint8).tobytes())
        file.truncate(start + rows * ROW)
    return rows


def resident(field: str) -> int:
    """Bytes of this process's memory, now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024


def train(path: Path, steps: int) -> None:
    """The fresh process: load, train, and print what came of it as JSON."""
    import torch

    import xhat

    imported = resident("VmRSS")
    torch.manual_seed(0)
    began = time.perf_counter()
    data = xhat.load_data(path, memory="stream", binarize="dynamic", valid=1000, test=1000)
    loaded = time.perf_counter() - began
    model = xhat.build("vae", shape=data.shape, latent=20, hidden=[400], likelihood="bernoulli")
    weights = sum(parameter.nbytes for parameter in model.parameters())
    taken, seconds, first = 0, 0.0, 0.0
    for taken, _ in enumerate(xhat.train(model, data.train, epochs=1, batch_size=BATCH), start=1):
        if taken == 1:
            first = time.perf_counter()
        seconds = time.perf_counter() - first
        if taken > steps:
            break
    print(
        json.dumps(
            {
                "described": data.describe(),
                "loaded": loaded,
                "steps": taken,
                "rows": (taken - 1) * BATCH / max(seconds, 1e-9),
                "imported": imported,
                "peak": resident("VmHWM"),
                "model": weights,
                "threads": threading.active_count(),
            }
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=None, help="where to put the file; a temporary folder unless given")
    parser.add_argument("--train", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train is not None:
        train(arguments.train, arguments.steps)
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "images.npy"
        rows = make(path, arguments.gigabytes)
        on_disk = os.stat(path).st_blocks * 512
        print(f"{path.stat().st_size / 1e9:.2f} GB in {rows:,} images, {on_disk / 1e6:.1f} MB of them on the disk", flush=True)
        command = [sys.executable, __file__, "--train", str(path), "--steps", str(arguments.steps)]
        told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    limit = LIMIT + told["model"]
    print(told["described"])
    print(f"loaded in {told['loaded']:.2f} s; {told['steps']} steps of {BATCH}, {told['rows']:,.0f} images a second")
    print(
        f"resident: {told['imported'] / 2**20:.0f} MiB with the library imported, at most {told['peak'] / 2**20:.0f} MiB; "
        f"limit 1 GiB and the model's {told['model'] / 2**20:.1f} MiB: {'kept' if told['peak'] <= limit else 'EXCEEDED'}"
    )
    return 0 if told["peak"] <= limit else 1


if __name__ == "__main__":
    sys.exit(main())
