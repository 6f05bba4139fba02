"""Interleaved rounds: every contender in a process of its own, one of them running at a time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed.dataset import ROOT
from benchmarks.speed.machine import THREADS
from benchmarks.speed.tasks import Task

PAUSE = 0.3  # seconds between rounds, in which the threads of the one before stop spinning


class WorkerFailed(RuntimeError):
    """A contender that could not run; the report says why."""


class Worker:
    """A contender's process; it is asked over a pipe."""

    def __init__(self, contender: str, task: Task, folder: Path, cache: Path) -> None:
        self.log = (folder / "log").open("w+")
        cache.mkdir(exist_ok=True)
        # Compilers find no cache of an earlier run: what the first epoch costs is what it costs a new user.
        caches = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME", "KERAS_HOME"), str(cache))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(THREADS))
        path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker", contender, json.dumps(task.to_json())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=folder,
            env={**os.environ, **caches, **threads, "PYTHONPATH": path},
        )

    def answer(self) -> dict[str, Any]:
        """The next line that it sends.

        Raises:
            WorkerFailed: it ended instead.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self.log.seek(0)
        lines = [text for text in self.log.read().splitlines() if text.strip()]
        raise WorkerFailed(lines[-1].strip() if lines else f"ended with code {self.process.returncode}")

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


@contextlib.contextmanager
def _workers() -> Iterator[tuple[dict[str, Worker], Path]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        workers: dict[str, Worker] = {}
        try:
            yield workers, Path(folder)
        finally:
            for worker in workers.values():
                worker.close()


def race(entrants: dict[str, tuple[str, Task]], rounds: int, share_cache: bool = False, say=print) -> dict[str, dict[str, Any]]:
    """Run contenders by turns.

    Args:
        entrants: a key of one's own → (contender, task).
        rounds: of each.
        share_cache: whether compilers may use what they made for another entrant; set-up times then say nothing.
        say: takes a line of progress.

    Returns:
        For each key either ``failed`` (why), or ``seconds`` (a step's time in each round), ``loss`` (of the last epoch),
        ``first`` (the first epoch's seconds), ``steps`` (in an epoch) and ``parameters``.
    """
    results: dict[str, dict[str, Any]] = {}
    with _workers() as (workers, folder):
        for index, (key, (contender, task)) in enumerate(entrants.items()):
            own = folder / str(index)
            own.mkdir()
            worker = workers[key] = Worker(contender, task, own, (folder if share_cache else own) / "cache")
            try:
                first = worker.ask("warm")
                results[key] = {
                    "parameters": first["parameters"],
                    "first": first["seconds"],
                    "steps": first["steps"],
                    "seconds": [],
                }
                say(f"    {key}: ready, first epoch {first['seconds']:.2f} s")
            except WorkerFailed as error:
                results[key] = {"failed": str(error)}
                say(f"    {key}: {error}")
        running = [key for key in entrants if "failed" not in results[key]]
        for number in range(rounds):
            turn = number % max(1, len(running))
            for key in running[turn:] + running[:turn]:  # nobody always follows the same one
                time.sleep(PAUSE)
                try:
                    done = workers[key].ask("round")
                except WorkerFailed as error:
                    results[key] = {"failed": str(error)}
                    continue
                results[key]["seconds"].append(done["seconds"] / done["steps"])
                results[key]["loss"] = done["loss"]
            running = [key for key in running if "failed" not in results[key]]
    return results
