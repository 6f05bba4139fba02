"""One process that does parts as it is told, one line of JSON for each."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

import torch
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
        if found["spent"]:
            return


def attempt(name: str, setup: Setup) -> dict[str, Any]:
    """What a part found, or why it failed; and whether the process is spent, so that the next part needs another one."""
    began = time.perf_counter()
    try:
        found = {"passed": True, **PARTS[name].run(setup)}
    except Exception as error:  # noqa: BLE001 - one part's failure must not stop the others
        traceback.print_exc()
        found = {"passed": False, "message": f"{type(error).__name__}: {' '.join(str(error).split())[:1500]}"}
    took = time.perf_counter() - began
    harm = harmed(setup)
    if harm and found["passed"]:
        found |= {"passed": False, "message": f"it left a process that draws no random numbers ({harm}); {found['message']}"}
    return {"part": name, "took": took, **found, "spent": bool(harm) or (name in PARTS and PARTS[name].alone)}


def harmed(setup: Setup) -> str:
    """Why this process can no longer use the device, or nothing if it can."""
    try:
        torch.rand(1, device=setup.device)
        setup.wait()
    except RuntimeError as error:
        traceback.print_exc()
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""
