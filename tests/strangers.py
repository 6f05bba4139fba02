"""Tries ``make test`` as strangers meet it: in fresh clones of what is committed here, one scenario after the other.

    python tests/strangers.py                        # all of them, an hour or two; a table at the end
    python tests/strangers.py reverse no-compiler    # these two
    python tests/strangers.py reverse+no-compiler    # both at once, in one run
    python tests/strangers.py reverse --tests tests/test_kl.py

It needs Linux, git and make. To become an ordinary user it has to be started by root; else that scenario is tried as who you are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]

SCENARIOS = {
    "one-core": "on one core",
    "two-cores": "on two cores",
    "busy": "beside 8 busy processes",
    "homeless": "as an ordinary user without a home",
    "elsewhere": "with LC_ALL=C TZ=Pacific/Kiritimati",
    "plain": "with ATEN_CPU_CAPABILITY=default, that is without the processor's wide instructions",
    "no-compiler": "with no C or C++ compiler on the path",
    "reverse": "with the tests in reverse order",
    "odd-folder": "in a folder whose name has a space and an umlaut",
}

COMPILER = re.compile(r"(.*-)?(cc|gcc|c\+\+|g\+\+|cpp|clang|clang\+\+|clang-cpp|c89|c99)(-[0-9.]+)?")
LAST_LINE = re.compile(r"^=*\s*(\d+ (?:passed|failed).* in [\d.]+s.*?)\s*=*$", re.MULTILINE)


@dataclass
class Place:
    """Where a scenario is tried, and how."""

    folder: Path
    clone: str = "xhat"
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    options: list[str] = field(default_factory=list)
    user: str | None = None
    busy: int = 0

    def prepare(self, name: str) -> None:
        """Bring one scenario about."""
        match name:
            case "one-core":
                self.command += ["taskset", "-c", "0"]
            case "two-cores":
                self.command += ["taskset", "-c", "0,1"]
            case "busy":
                self.busy = 8
            case "homeless":
                self.user = "nobody" if os.geteuid() == 0 else None
                self.environment["HOME"] = str(self.folder / "nowhere" / "home")
                self.environment["PATH"] = os.defpath if self.user else self.environment["PATH"]  # root's own is closed to others
                for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "USER", "LOGNAME"):
                    self.environment.pop(variable, None)
            case "elsewhere":
                self.environment |= {"LC_ALL": "C", "TZ": "Pacific/Kiritimati"}
            case "plain":
                self.environment["ATEN_CPU_CAPABILITY"] = "default"
            case "no-compiler":
                self.environment = {key: value for key, value in self.environment.items() if key not in ("CC", "CXX")}
                self.environment["PATH"] = str(without_compilers(self.folder / "tools", self.environment["PATH"]))
            case "reverse":
                self.options.append("--reverse")
            case "odd-folder":
                self.clone = "ein Ordner für Übungen"


def without_compilers(folder: Path, path: str) -> Path:
    """A folder with links to all that is on the path but for compilers."""
    folder.mkdir()
    for place in map(Path, path.split(os.pathsep)):
        for tool in place.iterdir() if place.is_dir() else ():
            link = folder / tool.name
            if not COMPILER.fullmatch(tool.name) and not link.is_symlink() and os.access(tool, os.X_OK):
                link.symlink_to(tool)
    return folder


@contextlib.contextmanager
def crowd(count: int) -> Iterator[None]:
    """Processes that do nothing, as fast as they can."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def tried(names: str, tests: list[str], log: Path) -> tuple[bool, str]:
    """Whether ``make test`` passes under these scenarios, and a row of the table."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stranger-", ignore_cleanup_errors=True) as temporary:
        place = Place(Path(temporary), options=list(tests))
        for name in names.split("+"):
            place.prepare(name)
        clone = place.folder / place.clone
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        if place.user is not None:
            place.folder.chmod(0o755)
            subprocess.run(["chown", "-R", place.user, place.folder], check=True)
        command = [*place.command, "make", "test", f"TESTS={' '.join(place.options)}"]
        with crowd(place.busy), log.open("w") as said:
            done = subprocess.run(
                command,
                cwd=clone,
                env=place.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                user=place.user,
                group=None if place.user is None else pwd.getpwnam(place.user).pw_gid,
                extra_groups=None if place.user is None else [],
                check=False,
            )
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    found = LAST_LINE.findall(text)
    last = found[-1] if found else text.splitlines()[-1][:100] if text else "it said nothing"
    verdict = "passed" if done.returncode == 0 else "FAILED"
    return done.returncode == 0, f"{names:24}  {verdict}  {time.monotonic() - began:5.0f} s  {last}"


def main() -> int:
    listed = "\n".join(f"  {name:12} {about}" for name, about in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"scenarios:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", nargs="*", default=list(SCENARIOS), help="its name; several with + between are one run")
    parser.add_argument(
        "--tests", nargs="+", default=[], help="options for pytest, such as a file, to try the scenarios themselves"
    )
    parser.add_argument("--logs", type=Path, help="folder for what make says; a temporary one unless given")
    asked = parser.parse_args()
    unknown = [name for names in asked.scenario for name in names.split("+") if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {unknown[0]}; there are {', '.join(SCENARIOS)}")
    logs = Path(tempfile.mkdtemp(prefix="strangers-")) if asked.logs is None else asked.logs
    logs.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, check=True).stdout:
        print("what is not committed is not tried", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the crowd and the clones go
    results = []
    for names in asked.scenario:
        results.append(tried(names, asked.tests, logs / f"{names}.log"))
        print(results[-1][1], flush=True)
    print(f"\nmake test in fresh clones; {len(os.sched_getaffinity(0))} cores; logs in {logs}")
    print("\n".join(row for _, row in results))
    return int(not all(passed for passed, _ in results))


if __name__ == "__main__":
    sys.exit(main())
