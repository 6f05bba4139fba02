"""A contender in its own process: it reads commands, a line each, and answers in JSON.

``python -m benchmarks.speed.worker CONTENDER TASK``: ``warm`` and ``round`` on standard input.
"""

from __future__ import annotations

import json
import os
import sys

from benchmarks.speed.table import CONTENDERS
from benchmarks.speed.tasks import Task


def main(name: str, task: Task) -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print; the answers keep a channel of their own
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    contender = CONTENDERS[name].make(task)
    for line in sys.stdin:
        done = contender.warm() if line.strip() == "warm" else contender.round()
        print(json.dumps({**done._asdict(), "parameters": contender.parameters()}), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], Task.from_json(json.loads(sys.argv[2])))
