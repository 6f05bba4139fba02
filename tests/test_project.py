"""The project as a whole: its papers agree with its code, its files are clean, importing it is quiet and quick."""

import ast
import functools
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
THEORY = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
SOURCES = sorted((ROOT / "src").rglob("*.py"))

# Where this project is developed and built. In two pieces, so that this file does not find itself.
MACHINE = re.compile(r"(?<![\w.])/" + r"(?:work|root)/")
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"}
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_theory_names_tests_that_exist():
    named = set(re.findall(r"tests/test_\w+\.py", THEORY))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_theory_names_code_that_exists():
    import xhat

    named = set(re.findall(r"`xhat\.([\w.]+)`", THEORY))
    assert named
    for name in sorted(named):
        functools.reduce(getattr, name.split("."), xhat)  # AttributeError names what is missing


def test_every_section_of_the_theory_says_where_its_proof_is():
    blocks = [line for line in THEORY.splitlines() if line.startswith("> **Code**")]
    assert THEORY.count("**Test**") == len(blocks) > 20


def test_tracked_files_name_no_place_on_this_machine():
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {hit.group()}" for hit in MACHINE.finditer(text)]
    assert found == []


def test_no_tracked_file_is_a_pickle():
    assert [str(path) for path in tracked() if path.suffix in PICKLES] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sources_never_pickle(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not PICKLERS & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in PICKLERS
        elif isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"torch.save", "torch.load"}
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False"


def test_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited.group(1).strip("\"'") == version
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert python("import xhat; print(xhat.__version__)") == version


def test_constraints_pin_everything_and_point_nowhere():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert lines[0].startswith("#")
    assert "torch==2.13.0" in pins
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(item for items in extras.values() for item in items)]
    names = {re.split(r"[^\w.-]", item)[0].lower() for item in asked} - {"xhat"}
    assert names - {pin.split("==")[0].lower() for pin in pins} == set()


def test_importing_changes_nothing_in_torch():
    code = """
import torch
import torch.distributions as D
import torch.distributions.kl

def state():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "grad mode": torch.is_grad_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "validate_args": D.Distribution._validate_args,
        "registered divergences": len(D.kl._KL_REGISTRY),
        "registered transforms": (len(D.biject_to._registry), len(D.transform_to._registry)),
        "random bits": hash(bytes(torch.get_rng_state().tolist())),
    }

before = state()
import xhat
for name in xhat.__all__:
    getattr(xhat, name)
after = state()
print([name for name in before if before[name] != after[name]])
"""
    assert python(code) == "[]"


def test_importing_the_package_leaves_torch_for_later():
    assert python("import sys, xhat; print('torch' in sys.modules)") == "False"


def test_help_does_not_import_torch():
    code = """
import sys
sys.argv = ["xhat", "--help"]
from xhat.cli import main
try:
    main()
except SystemExit:
    pass
print("torch" in sys.modules)
"""
    assert python(code).splitlines()[-1] == "False"


def test_the_first_step_imports_no_algebra_and_no_compiler():
    code = """
import sys, torch, xhat
for _ in xhat.train(xhat.build("vae", shape=(8,), latent=2), torch.rand(20, 8), epochs=1):
    pass
print(sorted(name for name in sys.modules if name in {"sympy", "torch._dynamo", "torch._inductor"}))
"""
    assert python(code).splitlines()[-1] == "[]"


def test_help_imports_nothing_that_takes_long():
    """How long the help takes is measured by `make bench`; what would make it slow is seen here, on any machine."""
    code = """
import contextlib, io, sys
from xhat.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--help"])
slow = {"torch", "numpy", "matplotlib", "sklearn", "pyarrow", "PIL", "optuna", "jinja2"}
print(sorted(slow & set(sys.modules)), len(sys.modules))
"""
    heavy, count = python(code).splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]"
    assert int(count) < 700  # 470 with Python 3.11; torch alone brings a thousand
