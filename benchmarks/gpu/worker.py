"""One process that does parts as it is told, one line of JSON for each."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

from benchmarks.gpu.part import Setup
from benchmarks.gpu.parts import PARTS


def work(setup: Setup) -> None:
    """Read the names of parts from standard input, and write what they found to standard output; all else goes to the log."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what parts print
    if setup.device == "cpu":
        from benchmarks.gpu import rehearsal

        rehearsal.install()
    for line in sys.stdin:
        name = line.strip()
        print(f"--- {name}", file=sys.stderr, flush=True)
        found = attempt(name, setup)
        results.write(json.dumps(found) + "\n")
        results.flush()
        if "CUDA error" in found["message"]:
            return  # the device is lost to this process, but not to the next


def attempt(name: str, setup: Setup) -> dict[str, Any]:
    """What a part found, or why it failed."""
    began = time.perf_counter()
    try:
        found = {"passed": True, **PARTS[name].run(setup)}
    except Exception as error:  # noqa: BLE001 - one part's failure must not stop the others
        traceback.print_exc()
        found = {"passed": False, "message": f"{type(error).__name__}: {' '.join(str(error).split())[:1500]}"}
    return {"part": name, "took": time.perf_counter() - began, **found}
