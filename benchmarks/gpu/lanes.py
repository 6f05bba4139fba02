"""Parts in processes of their own, with their limits; a process that hangs or dies takes one part with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START = 60.0  # seconds that a process may take to begin, beside a part's own limit


def worker(*options: str) -> list[str]:
    """The command of a process that reads names of parts, and writes for each what it found as one line of JSON."""
    return [sys.executable, "-m", "benchmarks.gpu", "--worker", *options]


class Lane:
    """A worker process, started when it is needed, and again after it was lost or spent."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[bytes] | None = None

    def do(self, part: str, seconds: float) -> dict[str, Any]:
        """What a part found within so many seconds."""
        began, fresh = time.monotonic(), self.process is None
        if self.process is None:
            path = os.pathsep.join(filter(None, [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
            alone = {"OMP_NUM_THREADS": "1"} if "--cpu" in self.command else {}  # a rehearsal is in nobody's way
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=ROOT,
                    env={**os.environ, **alone, "PYTHONPATH": path},
                    start_new_session=True,
                )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(part.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._lost(part, began, "the process ended before it began")
        deadline, text = began + seconds + (START if fresh else 0.0), b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return self._lost(part, began, f"stopped after {time.monotonic() - began:.0f} s")
            read = os.read(process.stdout.fileno(), 65536)
            if not read:
                return self._lost(part, began, "the process died: see the log")
            text += read
        found: dict[str, Any] = json.loads(text)
        if found.pop("spent"):
            self.close()
        return found

    def _lost(self, part: str, began: float, why: str) -> dict[str, Any]:
        self.close()
        return {"part": part, "passed": False, "message": why, "took": time.monotonic() - began}

    def close(self) -> None:
        """End the process, and what it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()
            self.process = None


def share(
    parts: list[tuple[str, float]],
    lanes: int,
    command: list[str],
    log: Path,
    until: float,
    done: Callable[[dict[str, Any]], None],
) -> None:
    """Do parts, so many at a time, until a time of the monotonic clock.

    Args:
        parts: names and limits.
        lanes: processes at a time.
        command: that starts a worker, see :func:`worker`.
        log: what the workers say.
        until: when to stop.
        done: called with each result, one at a time.
    """
    left, lock = list(parts), threading.Lock()

    def lane() -> None:
        own = Lane(command, log)
        try:
            while True:
                with lock:
                    if not left:
                        return
                    part, limit = left.pop(0)
                remaining = until - time.monotonic()
                if remaining < 3:
                    found = {"part": part, "passed": False, "message": "no time was left", "took": 0.0}
                else:
                    found = own.do(part, min(limit, remaining))
                with lock:
                    done(found)
        finally:
            own.close()

    threads = [threading.Thread(target=lane) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
