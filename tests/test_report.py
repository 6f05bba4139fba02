"""The report: each section where it applies and nowhere else, on a page that needs nothing but itself."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

import xhat
from xhat.evaluation.evaluate import Evaluation, Measure
from xhat.report.anatomy import bound_parts
from xhat.report.facts import _number, command, configuration, measures
from xhat.report.figures import training_curves
from xhat.report.style import tiled
from xhat.report.subject import Subject
from xhat.report.write import write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = "<script>alert(1)</script>"
ALL = {"training", "reconstruction", "samples", "map", "traversals", "anatomy", "kl", "evaluation", "configuration"}


class Page(HTMLParser):
    """Checks that tags balance and collects what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.cells: list[str] = []  # what stands alone in an element
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text += data
        self.cells.append(data.strip())

    @property
    def sections(self) -> set[str]:
        return {attrs["id"] for tag, attrs in self.tags if tag == "section"}

    @property
    def ids(self) -> list[str]:
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]


def grey_images(n: int = 90, shape: tuple[int, ...] = (1, 4, 4)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(n, *shape, generator=generator) * 16).round() / 16


def table(tmp_path: Path, names: str = "a,b $x_1,c,kind", rows: int = 90) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "table.csv"
    lines = [",".join([*(f"{v:.4f}" for v in rng.normal(size=3)), "uv"[i % 2]]) for i in range(rows)]
    path.write_text("\n".join([names, *lines]) + "\n")
    return path


def report(tmp_path: Path, data, recipe: str, about=None, **options) -> tuple[Path, Page, str]:
    folder = tmp_path / "run"
    model = xhat.build(recipe, shape=data.shape, **{"hidden": [8], **options})
    about = {"recipe": recipe, "command": "xhat train it", "data": {"source": data.name}} if about is None else about
    xhat.fit(model, data.train, valid=data.valid, epochs=2, out=folder, about=about)
    place = write_report(folder, model, data, xhat.evaluate(model, data.test, samples=5))
    text = place.read_text()
    return place, Page(text), text


@pytest.mark.parametrize(("options", "words"), [({"method": "exact"}, "exact"), ({"method": "annealed", "steps": 2}, "annealed")])
def test_the_report_says_how_log_px_was_found(options, words):
    model = xhat.build("vae", shape=(3,), latent=2, hidden=[], likelihood="normal")
    rows = {row.name: row for row in measures(xhat.evaluate(model, torch.randn(20, 3), samples=4, **options))}
    assert words in rows["log p(x)"].about
    assert ("draws of z per example" in rows) == (words == "annealed")
    assert ("lower bound" in rows["log p(x)"].about) == (words == "annealed")


@pytest.mark.filterwarnings("ignore")
def test_a_report_of_what_is_not_finite_leaves_its_pictures_out(tmp_path):
    values = torch.randn(90, 3)
    data = xhat.load_data(values)
    data.test.tensor()[0] = 3e22
    model = xhat.build("vae", shape=(3,), latent=2, hidden=[4])
    x = data.test.tensor().clone()
    x[0] = 3e22
    held = xhat.evaluate(model, x, samples=3)
    assert held.elbo.value == -float("inf")
    assert bound_parts(Subject(model, data, held)) is None


def check_self_contained(page: Page, text: str) -> None:
    assert not re.search(r"https?://", text)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "srcset"):
            assert attrs.get(name) is None or attrs[name].startswith(("#", "data:image/png;base64,"))
        assert not any(name.startswith("on") for name in attrs)
    assert len(page.ids) == len(set(page.ids)), "ids of two figures collide"
    targets = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert targets <= set(page.ids)
    for tag, attrs in page.tags:
        if tag == "img":
            assert attrs["alt"]


def test_variational_on_images_has_every_section(tmp_path):
    data = xhat.load_data(grey_images(), labels=torch.arange(90) % 12, test=40)
    place, page, text = report(tmp_path, data, "vae", latent=3)
    assert place == tmp_path / "run" / "report.html"
    assert page.sections == ALL
    check_self_contained(page, text)
    assert "principal components" in page.text
    assert "xhat train it" in page.text
    assert "log p(x)" in page.text
    assert "3 others" in page.text  # twelve labels, nine colours


@pytest.mark.parametrize(("recipe", "options"), [("autoencoder", {}), ("stacked", {"hidden": [8, 6]})])
def test_without_prior_no_samples_and_no_kl(tmp_path, recipe, options):
    _, page, text = report(tmp_path, xhat.load_data(grey_images()), recipe, latent=3, **options)
    assert page.sections == ALL - {"samples", "anatomy", "kl"}
    check_self_contained(page, text)
    assert "coloured by the squared error" in page.text
    assert not {"ELBO", "bits per dimension", "draws of z per example"} & set(page.cells)
    assert ("Layer 2 of 3" in page.text) == (recipe == "stacked")


def test_denoising_shows_the_corrupted_row(tmp_path):
    data = xhat.load_data(grey_images(shape=(3, 4, 4)))
    _, page, text = report(tmp_path, data, "denoising", latent=3)
    assert "x̃" in page.text
    strips = [attrs for tag, attrs in page.tags if tag == "img" and "examples" in attrs["alt"]]
    assert [attrs["alt"] for attrs in strips] == ["test examples", "corrupted examples"]
    check_self_contained(page, text)


def test_table_shows_its_columns_in_their_units(tmp_path):
    data = xhat.load_data(table(tmp_path), labels="kind")
    _, page, text = report(tmp_path, data, "vae", latent=3)
    assert page.sections == ALL
    assert not any(tag == "img" for tag, _ in page.tags)
    assert page.text.count("b $x_1") >= 3  # reconstructions, samples, traversals
    check_self_contained(page, text)


def test_denoising_table_and_unnamed_columns(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = xhat.load_data(torch.randn(80, 20, generator=generator))
    _, page, text = report(tmp_path, data, "denoising", latent=1, corruption="normal-noise:0.3")
    assert page.sections == ALL - {"samples", "anatomy", "kl"}
    assert "the first 12 of 20 columns" in page.text
    assert "column 11" in page.text
    check_self_contained(page, text)


def test_two_latents_decode_the_plane(tmp_path):
    data = xhat.load_data(grey_images(), binarize="static")
    _, page, _ = report(tmp_path, data, "vae", latent=2, likelihood="bernoulli")
    assert "The latent plane, decoded" in page.text
    assert "principal" not in page.text


@pytest.mark.parametrize("posterior", ["bernoulli", "categorical", "continuous-bernoulli"])
def test_priors_that_are_not_normal(tmp_path, posterior):
    data = xhat.load_data(grey_images())
    gradient = {} if posterior == "continuous-bernoulli" else {"gradient": "score", "baseline": "leave-one-out", "samples": 2}
    options = {"levels": 4} if posterior == "categorical" else {}
    _, page, text = report(tmp_path, data, "vae", latent=3, posterior=posterior, **gradient, **options)
    assert {"samples", "map", "traversals"} <= page.sections
    assert ("from 0 to 1" if posterior == "bernoulli" else "middle 98") in page.text
    check_self_contained(page, text)


def test_the_bound_is_shown_in_its_parts(tmp_path):
    data = xhat.load_data(grey_images())
    _, page, _ = report(tmp_path, data, "vae", latent=3)
    assert "What the bound misses" not in page.text
    for name in ("mutual information", "total correlation", "KL of the dimensions"):
        assert name in page.cells  # on the axis of the waterfall
    assert "Dimensions by information" in page.text
    model = xhat.load(tmp_path / "run")
    result = xhat.evaluate(model, data.test, samples=5, refine_steps=3)
    text = write_report(tmp_path / "run", model, data, result).read_text()
    page = Page(text)
    check_self_contained(page, text)
    assert {"What the bound misses", "amortisation gap", "the rest"} <= set(page.cells)
    assert "that of 3 steps on" in page.text
    chain = result._replace(total_correlation=None, dimension_wise_kl=None, dimensions=None, mutual_information=result.kl)
    drawn = bound_parts(Subject(model, data, chain)).panels[0].picture
    assert "KL(q(z) ‖ p(z))" in drawn
    assert "total correlation" not in drawn
    near = result._replace(mutual_information=Measure(math.log(len(data.test)) - 0.1, 0.0))
    assert "So many examples cannot show more" in bound_parts(Subject(model, data, near)).caption


def test_what_an_older_version_measured_is_shown_as_it_was(tmp_path):
    data = xhat.load_data(grey_images())
    report(tmp_path, data, "vae", latent=3)
    model = xhat.load(tmp_path / "run")
    held = xhat.evaluate(model, data.test, samples=5).as_dict()
    old = Evaluation.from_dict({name: held[name] for name in Evaluation._fields if name not in Evaluation._field_defaults})
    page = Page(write_report(tmp_path / "run", model, data, old).read_text())
    assert page.sections == ALL - {"anatomy"}
    assert "KL per latent dimension" in page.text


def test_names_are_escaped(tmp_path):
    names = f"{EVIL},b'\">&amp;,$\\frac{{c,kind"
    data = xhat.load_data(table(tmp_path, names), labels="kind")
    told = dataclasses.replace(data.preparation, label_names=(EVIL, "名前"))
    data = dataclasses.replace(data, name=EVIL, notes=(EVIL,), preparation=told)
    about = {"recipe": EVIL, "command": f"xhat {EVIL}", "data": {EVIL: EVIL}, "options": {"latent": EVIL * 10}}
    _, page, text = report(tmp_path, data, "vae", latent=2, about=about)
    assert "<script" not in text.lower()
    assert page.text.count(EVIL) >= 8
    check_self_contained(page, text)


def test_nothing_outside_changes(tmp_path):
    data = xhat.load_data(grey_images())
    before = dict(mpl.rcParams)
    mpl.rcParams["lines.linewidth"] = 7.5
    try:
        place, _, text = report(tmp_path, data, "vae", latent=3)
        model = xhat.load(tmp_path / "run").train()
        result = xhat.evaluate(model, data.test, samples=5)
        states = torch.get_rng_state(), random.getstate()
        other = write_report(tmp_path / "run", model, data, result, out=tmp_path / "other.html")
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1] == random.getstate()
        assert mpl.rcParams["lines.linewidth"] == 7.5
        assert model.training
        assert other.read_text() == text == place.read_text()  # the same run gives the same page
    finally:
        mpl.rcParams["lines.linewidth"] = before["lines.linewidth"]
    assert dict(mpl.rcParams) == before


def test_few_examples_and_no_rows(tmp_path):
    data = xhat.load_data(grey_images(12), valid=1, test=1)
    folder = tmp_path / "run"
    model = xhat.build("vae", shape=data.shape, latent=3, hidden=[8])
    xhat.fit(model, data.train, epochs=1, out=folder)
    (folder / "metrics.jsonl").write_text("")
    page = Page(write_report(folder, model, data, xhat.evaluate(model, data.test, samples=5)).read_text())
    assert page.sections == ALL - {"training", "map"}


def test_a_folder_without_a_run_is_refused(tmp_path):
    data = xhat.load_data(grey_images())
    model = xhat.build("vae", shape=data.shape, latent=2, hidden=[8])
    with pytest.raises(xhat.CheckpointError, match="is not a run folder"):
        write_report(tmp_path, model, data, xhat.evaluate(model, data.test, samples=2))


def test_curves_mark_the_best_epoch_and_skip_what_is_not_finite():
    rows = [{"stage": "train", "epoch": i + 1, "train_loss": 5 - 0.1 * i, "valid_loss": 4.0} for i in range(20)]
    rows[0]["train_loss"] = 1e6
    rows[3]["valid_loss"] = float("nan")
    rows[7]["improved"] = True
    section = training_curves(rows)
    assert section is not None
    assert "best epoch, 8" in [key.name for key in section.keys]
    assert "outside the picture" in section.caption
    assert training_curves([]) is None


def test_numbers_have_the_figures_of_their_doubt():
    assert _number(-22.66134, 0.2412) == "−22.66"
    assert _number(12345.6, 321.0) == "12,346"
    assert _number(0.0) == "0"
    assert _number(0.51083) == "0.5108"
    assert _number(float("nan")) == "–"
    assert _number(1e-9, 1e-10) == "0.000000"


def test_tables_of_facts(tmp_path):
    data = xhat.load_data(grey_images())
    model = xhat.build("autoencoder", shape=data.shape, latent=2, hidden=[8])
    result = xhat.evaluate(model, data.test)
    assert {"test examples", "squared error of x̂", "active units"} <= {row.name for row in measures(result)}
    assert "log p(x)" not in {row.name for row in measures(result)}
    subject = Subject(model, data, result)
    config = {"settings": {"epochs": 3, "clip": None}, "options": {"latent": 2}, "model": {"long": "x"}, "xhat": "1"}
    groups = {group.heading: {line.name: line for line in group.lines} for group in configuration(config, subject)}
    assert set(groups) == {"Model", "Data", "Training", "Versions"}
    assert groups["Model"]["specification"].folded
    assert set(groups["Training"]) == {"epochs"}
    assert command({"command": ["a", "b c"]}) == "a 'b c'"
    assert command({}) is None


def test_pictures_are_enlarged_by_whole_factors():
    pictures = torch.rand(3, 8, 8, 3)
    sheet = tiled(pictures, columns=2, side=112, gap=8)
    assert sheet.shape == (2 * 112 + 8, 2 * 112 + 8, 3)
    assert np.array_equal(sheet[120:232:14, 0:112:14], pictures[2].numpy())
    assert (sheet[112:120] == 1).all()
