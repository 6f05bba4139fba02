"""Kill a training run with SIGKILL at random moments, resume it each time, and compare with a run that nothing disturbed.

    python benchmarks/kill_and_resume.py MNIST

Trains the same 10-epoch VAE twice through the command ``xhat``; prints where each kill fell and whether the final weights
are equal bit for bit.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from xhat.models.files import read_tensors

XHAT = [sys.executable, "-m", "xhat"]


def command(source: str, out: Path) -> list[str]:
    model = ["--recipe", "vae", "--binarize", "dynamic", "--hidden", "100", "--latent", "10"]
    training = ["--epochs", "10", "--schedule", "cosine", "--seed", "1"]
    return [*XHAT, "train", source, *model, *training, "--out", str(out)]


def rows(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="data, such as the folder of MNIST")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        began = time.perf_counter()
        subprocess.run(command(arguments.source, whole), check=True, stdout=subprocess.DEVNULL)
        # What one epoch takes, without the start of Python and the reading of the data.
        epoch = (time.perf_counter() - began) / 12
        kills = 0
        while kills < arguments.kills:
            started = (broken / "checkpoints" / "last.safetensors").exists()
            run = [*XHAT, "train", "--resume", str(broken)] if started else command(arguments.source, broken)
            process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            target = rows(broken) + random.choice([0, 0, 1])  # in the epoch that it resumes in, or in the one after
            while process.poll() is None and rows(broken) < target:
                time.sleep(0.005)
            time.sleep(random.uniform(0.0, 3.0 + epoch))
            process.kill()
            process.wait()
            kills += 1
            print(f"kill {kills}: {rows(broken)} of 10 epochs logged", flush=True)
        if not (broken / "model.safetensors").exists():
            subprocess.run([*XHAT, "train", "--resume", str(broken)], check=True, stdout=subprocess.DEVNULL)
        ours, _ = read_tensors(whole / "model.safetensors")
        theirs, _ = read_tensors(broken / "model.safetensors")
        equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        logs = (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()
        print(f"{kills} kills; weights bitwise equal: {equal}; metrics.jsonl equal: {logs}")
        return 0 if equal and logs else 1


if __name__ == "__main__":
    sys.exit(main())
