"""The laboratory as a command: built-in problems and trained runs, its table, its file, its picture, and what it refuses."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from xhat.cli import main
from xhat.gradients import GRADIENTS, Comparison, compare, expectation
from xhat.gradients.problems import PROBLEMS
from xhat.report.comparison import comparison_png

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def run(capsys, *arguments: str, code: int = 0) -> str:
    """What a command prints, to its errors where it must fail."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    said = capsys.readouterr()
    assert caught.value.code == code, said.err
    return said.err if code else said.out


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_gives_a_table_a_file_and_a_picture(name, capsys, monkeypatch):
    comparing = importlib.import_module("xhat.gradients.compare")
    monkeypatch.setattr(comparing, "_trained", lambda *given: None)  # takes long, and is proven in test_compare.py
    said = run(capsys, "gradients", "--problem", name, "--repeats", "4", "--out", "lab")
    told = json.loads(Path("lab/gradients.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert told["problem"] == name
    names = {row["name"] for row in told["rows"]}
    assert names | set(told["misfits"]) == {*GRADIENTS, "pathwise, antithetic", "pathwise, sobol"}
    assert all(row["evaluations"] <= told["budget"] for row in told["rows"])
    assert told["recommended"] in names
    assert f"recommended: {told['recommended']}" in said
    assert Path("lab/gradients.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_exact_gradient_of_a_problem_is_what_an_unbiased_estimator_finds(name):
    problem = PROBLEMS[name]()
    names = ["pathwise"] if name in ("polynomial", "logistic") else ["rloo"]
    (row,) = compare(None, problem.draw, problem.parameters, names, 8, 400, exact=problem.exact)
    assert row.bias < 2.5 or name == "logistic"  # there is no truth but the estimator's own there
    q, f = problem.draw()
    slopes = torch.autograd.grad(expectation(f, q, names[0], 8).mean(), list(problem.parameters))
    assert all(bool(slope.isfinite().all()) and bool(slope.abs().sum() > 0) for slope in slopes)


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        (("--recipe", "vae", "--likelihood", "normal"), {"pathwise", "stl", "score"}),
        (("--recipe", "bernoulli-vae"), {"disarm", "rebar", "reinmax"}),
        (("--recipe", "bernoulli-vae", "--layers", "2"), {"disarm", "arms", "straight-through"}),
        (("--recipe", "categorical-vae", "--categories", "3"), {"carms", "unordered-set", "concrete"}),
    ],
    ids=["normal", "bits", "two layers", "categories"],
)
def test_a_trained_run_is_a_problem_too(options, fits, capsys):
    run(capsys, "train", "digits", *options, "--latent", "3", "--hidden", "8", "--epochs", "1", "--out", "run")
    said = run(capsys, "gradients", "run", "--gradients", ",".join(sorted(fits)), "--repeats", "3", "--batch", "5")
    assert "5 examples" in said.splitlines()[0]
    told = json.loads(Path("run/gradients.json").read_text())
    assert {row["name"] for row in told["rows"]} == fits
    assert Path("run/gradients.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "needs a run folder or a --problem, one of the two"),
        (("somewhere", "--problem", "toy"), "needs a run folder or a --problem, one of the two"),
        (("--problem", "dice"), "problem must be one of toy, polynomial, logistic, discrete-vae, categories, was 'dice'"),
        (("--problem", "toy", "--gradients", "rl"), "gradient must be one of pathwise, "),
        (("--problem", "toy", "--gradients", ","), "--gradients needs names with commas between"),
        (("--problem", "toy", "--gradients", "pathwise"), "no gradient fits: .* needs a reparameterised sample"),
        (("--problem", "toy", "--samples", "0"), "samples must be at least 1, was 0"),
        (("--problem", "toy", "--repeats", "1"), "repeats must be at least 2, was 1"),
        (("--problem", "toy", "--out", "file"), "--out must be a folder, file is a file"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, capsys):
    Path("file").write_text("")
    said = run(capsys, "gradients", *arguments, code=2)
    assert said.count("\n") == 1
    assert re.search(words, said), said


def test_a_name_with_a_comma_is_one_name(capsys):
    arguments = ("--problem", "polynomial", "--gradients", "pathwise, sobol,measure", "--repeats", "3", "--out", "lab")
    run(capsys, "gradients", *arguments)
    told = json.loads(Path("lab/gradients.json").read_text())
    assert [row["name"] for row in told["rows"]] == ["pathwise, sobol", "measure"]


def test_a_picture_of_estimators_without_noise_alone():
    logit = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    q = torch.distributions.Bernoulli(logits=logit)
    result = compare(lambda b: b, q, logit, ["enumerate"], repeats=3)
    assert isinstance(result, Comparison)
    assert result[0].variance == 0
    assert comparison_png(result, "one bit").startswith(PNG)
