"""Engines: whatever runs the step, the numbers are those of the eager step with the same seeds."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import catalogue
import xhat
from xhat import VAE, conditionals, objectives, priors
from xhat.data import Examples
from xhat.distributions.unvalidated import unvalidated
from xhat.errors import ConfigError, TrainingError
from xhat.gradients.pathwise import _sobol
from xhat.models.base import Model
from xhat.networks import MLP, products
from xhat.networks.precision import reduced
from xhat.networks.products import WORTH, linear
from xhat.parts import specification
from xhat.training.choice import COMPILATION, engine_for, saving
from xhat.training.engine import Compiled, Eager, Engine, _reason
from xhat.training.fit import History
from xhat.training.graphs import WARM, Graphs
from xhat.training.loop import Loop
from xhat.training.optimizer import Optimizer
from xhat.training.products import OneDNNProducts
from xhat.training.program import Program
from xhat.training.settings import Settings

# torch's own, while it traces and compiles
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]

BATCH = 8
X = torch.rand(70, 12, generator=torch.Generator().manual_seed(0)).round()


def parts(model: Model, stage: int = -1) -> tuple[Program, Optimizer]:
    torch._dynamo.reset()
    model.train()
    chosen = model.stages()[stage]
    parameters = [p for p in chosen.module.parameters() if p.requires_grad]
    return Program(chosen, model.gradient, parameters, 100), Optimizer("adam", parameters)


def eager(program: Program, optimizer: Optimizer) -> Engine:
    return Eager(program, optimizer, None, BATCH)


def traced(program: Program, optimizer: Optimizer) -> Engine:
    """Everything of the compiled engine but the C++ compiler, which would take minutes for so many models."""
    return Compiled(program, optimizer, None, BATCH, backend="aot_eager")


def captured(program: Program, optimizer: Optimizer) -> Engine:
    """The same without the middle of the compiler, which takes longer than to trace: what it would be given is run."""
    return Compiled(program, optimizer, None, BATCH, backend="eager")


def replayed(program: Program, optimizer: Optimizer) -> Engine:
    """What a CUDA graph is recorded from, run without one: the same tensors, the same indexing."""
    return Graphs(program, optimizer, None, BATCH, tell=print, compile=False, record=lambda step: step)


def trained(make: Callable[[], Model], engine: Callable[[Program, Optimizer], Engine], stage: int = -1) -> list[torch.Tensor]:
    """Everything that some steps leave behind: what they measured, the weights, the buffers."""
    torch.manual_seed(0)
    model = make()
    program, optimizer = parts(model, stage)
    examples = Examples(catalogue.examples(model, 3 * BATCH).to(model.like.dtype))
    torch.manual_seed(1)
    runs = engine(program, optimizer)
    runs.rate = 1e-3
    order = examples.order(0)
    left = []
    model.objective.at(0.5)
    model.gradient.at(0.5)
    for taken in runs.steps(examples, order, [(start, start + BATCH) for start in range(0, 3 * BATCH, BATCH)]):
        assert taken.size == BATCH
        left.append(taken.values)
    return [*left, *(p.detach().clone() for p in model.parameters()), *(b.clone() for b in model.buffers())]


def same(a: list[torch.Tensor], b: list[torch.Tensor], **tolerance: float) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, **({"rtol": 1e-4, "atol": 1e-5} | tolerance))


# Every model under every engine

_POSTERIORS = [f"vae: {name} → bernoulli" for name in catalogue.RANDOM]
_LIKELIHOODS = [f"vae: normal → {name}" for name in catalogue.RANDOM]
_BOTH = [f"vae: {posterior} → {name}" for posterior, name in zip(catalogue.RANDOM, reversed(catalogue.RANDOM), strict=True)]
CHOSEN = sorted({*_POSTERIORS, *_LIKELIHOODS, *catalogue.RECIPES, *catalogue.HIERARCHIES})


def features(told: Any, place: str = "") -> set[tuple[str, str]]:
    """What a specification is made of: each part and where it stands, and the words and flags that the part was made with."""
    if isinstance(told, list):
        return {feature for item in told for feature in features(item, place)}
    if isinstance(told, dict) and "part" in told:
        inside = [features(value, f"{told['part']}.{name}") for name, value in told["arguments"].items()]
        return {(place.rpartition(".")[2], told["part"])}.union(*inside)
    return {(place, str(told) if isinstance(told, str | bool) else type(told).__name__)}


def covering(names: Iterable[str]) -> list[str]:
    """Few models that together have all features of these."""
    held = {name: features(specification(catalogue.MODELS[name]())) for name in sorted(names)}
    chosen: list[str] = []
    while left := set().union(*held.values()) - set().union(*(held[name] for name in chosen)):
        chosen.append(max(held, key=lambda name: len(held[name] & left)))
    return chosen


# The draws of torch's Categorical come transposed, which the backend of these tests, unlike inductor, takes amiss.
STRIDES = {name for name in _POSTERIORS + _BOTH if name.startswith("vae: categorical ")}
# To trace a model takes a second. So each part, and each of its options, is traced in one model, and not with everything that it
# could stand beside: all of CHOSEN are trained by the next test, whose step is built for the same engines but not traced.
COVERING = covering({*CHOSEN, *_BOTH} - STRIDES)
# Those that came first have most of the features; the others differ from them in what is traced, not in what is made of it.
FIRST = COVERING[:8]


@pytest.mark.parametrize("name", COVERING)
def test_a_traced_model_is_trained_as_eagerly(name):
    same(trained(catalogue.MODELS[name], eager), trained(catalogue.MODELS[name], traced if name in FIRST else captured))


@pytest.mark.parametrize("name", CHOSEN)
def test_the_step_that_a_graph_records_is_the_eager_one(name):
    same(trained(catalogue.MODELS[name], eager), trained(catalogue.MODELS[name], replayed), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", ["vae: normal → bernoulli", "iwae, dreg", "denoising normal", "categorical vae"])
def test_where_a_derivative_cannot_be_traced_the_loss_alone_is(name, monkeypatch):
    monkeypatch.setattr("xhat.training.engine.derivatives_are_traced", lambda: False)
    same(trained(catalogue.MODELS[name], eager), trained(catalogue.MODELS[name], traced))


def test_every_stage_of_a_stacked_model_is_traced():
    make = lambda: xhat.build("stacked", shape=(12,), latent=2, hidden=[8, 4], corruption="masking:0.3")  # noqa: E731
    for stage in range(4):
        same(trained(make, eager, stage), trained(make, traced, stage))


# Every gradient under every engine

LAWS = {
    "normal": (lambda: conditionals.Normal(MLP(6, [5]), event=(3,)), lambda: priors.StandardNormal(3)),
    "bernoulli": (lambda: conditionals.Bernoulli(MLP(6, [5]), event=(3,)), lambda: priors.Bernoulli(3)),
    "one-hot": (
        lambda: conditionals.OneHotCategorical(MLP(6, [5]), event=(2, 3)),
        lambda: priors.OneHotCategorical((2, 3)),
    ),
}
OBJECTIVES = {"elbo": lambda: objectives.ELBO(samples=4), "iwae": lambda: objectives.IWAE(4)}
# Its Sobol' points are no operations that a traced program could hold
UNTRACEABLE = {"pathwise, sobol"}
# Its network is made for a context of another shape than these models'
OF_ANOTHER_CONTEXT = {"score, network"}


def with_gradient(gradient: str, law: str, objective: str) -> Model | None:
    """A model, where the three fit each other."""
    posterior, prior = LAWS[law]
    likelihood = lambda event: conditionals.Bernoulli(MLP(event, [5]), event=(6,))  # noqa: E731
    torch.manual_seed(0)
    q = posterior()
    try:
        return VAE(prior(), q, likelihood(q.event), OBJECTIVES[objective](), catalogue.GRADIENTS[gradient]())
    except ConfigError:
        return None


FITTING = [
    (gradient, law, objective)
    for gradient in catalogue.GRADIENTS
    if gradient not in OF_ANOTHER_CONTEXT
    for objective in OBJECTIVES
    for law in [law for law in LAWS if with_gradient(gradient, law, objective) is not None][-1:]
]


TRACEABLE = [row for row in FITTING if row[0] not in UNTRACEABLE]
# One trace of each program: by the last objective that fits, and not of those that differ from another one in numbers alone.
LAST = {gradient: objective for gradient, _, objective in TRACEABLE}
OWN_DERIVATIVES = {"muprop", "double-cv, stirred", "rebar, stirred", "relax, network"}  # taken within the step's own
ALIKE = {"concrete, cold"} | {gradient.removesuffix(", stirred") for gradient in LAST if gradient.endswith(", stirred")}


@pytest.mark.parametrize(
    ("gradient", "law", "objective"), [row for row in TRACEABLE if LAST[row[0]] == row[2] and row[0] not in ALIKE]
)
def test_a_traced_gradient_is_the_eager_one(gradient, law, objective):
    make = lambda: with_gradient(gradient, law, objective)  # noqa: E731
    same(trained(make, eager), trained(make, traced if gradient in OWN_DERIVATIVES else captured))


@pytest.mark.parametrize(("gradient", "law", "objective"), TRACEABLE)
def test_the_step_of_a_gradient_that_a_graph_records_is_the_eager_one(gradient, law, objective):
    make = lambda: with_gradient(gradient, law, objective)  # noqa: E731
    same(trained(make, eager), trained(make, replayed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("gradient", "law", "objective"), [row for row in FITTING if row[0] in UNTRACEABLE])
def test_what_cannot_be_traced_is_refused_by_name_or_run_eagerly(gradient, law, objective):
    make = lambda: with_gradient(gradient, law, objective)  # noqa: E731
    name = type(make().gradient).__name__
    with pytest.raises(ConfigError, match=rf"the engine compiled cannot run VAE with ELBO and {name}: .*use engine='eager'"):
        trained(make, traced)
    said: list[str] = []
    fallen = trained(make, lambda p, o: Compiled(p, o, None, BATCH, backend="aot_eager", otherwise=said.append))
    same(trained(make, eager), fallen, rtol=0.0, atol=0.0)  # also the random numbers are those of a run that never tried
    assert len(said) == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "Observed exception\n  Explanation: Dynamo found no handler.\n\n  Developer debug context: raised exception "
            'TypeError([ConstantVariable(str: "unsupported operand type(s) for &")])\n\n more: https://pytorch.org',
            'Observed exception: raised exception TypeError([ConstantVariable(str: "unsupported operand type(s) for &")])',
        ),
        ("backend='inductor' raised:\nCxxError: no compiler found.\n", "backend='inductor' raised CxxError: no compiler found"),
        ("Data-dependent branching.\n  Developer debug context: \n", "Data-dependent branching"),
        ("", "RuntimeError"),
    ],
)
def test_the_reason_says_what_really_went_wrong(message, reason):
    assert _reason(RuntimeError(message)) == reason


def test_random_weights_are_paid_for_in_every_engine():
    def make() -> Model:
        return xhat.networks.bayesian(xhat.build("vae", shape=(12,), latent=2, hidden=[5], likelihood="bernoulli"))

    a, b = trained(make, eager), trained(make, traced)
    same(a, b)
    assert len(a[0]) == 5  # loss, elbo, log p(x|z), KL of the codes, KL of the weights


class Bent(nn.Module):
    """A user's own layer, with a function for an attribute."""

    out_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.bend = torch.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bend(x - 0.5)


@pytest.mark.parametrize("change", ["number", "flag", "part", "function"])
def test_what_is_changed_between_steps_counts_at_the_next_one(change):
    def run(engine: Callable[[Program, Optimizer], Engine]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = xhat.build("vae", shape=(12,), latent=2, hidden=[5], likelihood="bernoulli")
        model.posterior.network.layers.append(nn.Dropout(0.5))
        bent = Bent()
        model.posterior.network.layers.append(nn.Sequential(nn.Sequential(bent)))
        program, optimizer = parts(model)
        runs = engine(program, optimizer)
        runs.rate = 1e-2
        torch.manual_seed(1)
        left = []
        steps = runs.steps(Examples(X), Examples(X).order(0), [(start, start + BATCH) for start in range(0, 48, BATCH)])
        for number, taken in enumerate(steps):
            left.append(taken.values)
            if number == 2 and change == "number":
                model.objective.free_bits = 1.5
            elif number == 2 and change == "flag":
                model.eval()
            elif number == 2 and change == "function":
                bent.bend = torch.tanh
            elif number == 2:
                model.objective = objectives.ELBO(beta=3.0, kl="sampled", samples=2)
        return left

    unchanged, changed = run(eager), run(traced)
    same(unchanged, changed)
    assert not torch.allclose(unchanged[2], unchanged[3])


# The compiler itself


@pytest.mark.usefixtures("compiler")
def test_compiled_training_ends_where_eager_training_ends():
    def run(engine: str) -> tuple[Model, list[dict[str, float]]]:
        torch.manual_seed(0)
        model = xhat.build("vae", shape=(12,), latent=3, hidden=[16], likelihood="bernoulli", beta_warmup=2)
        settings = {"epochs": 3, "batch_size": 16, "seed": 3, "clip": 1.0, "schedule": "cosine", "engine": engine}
        rows = []
        for step in xhat.train(model, X, valid=X[:9], **settings):
            assert Normal(0.0, 1.0)._validate_args  # the checks of other laws stay on
            rows += [step.record] if step.record is not None else []
        return model, rows

    (a, rows_a), (b, rows_b) = run("eager"), run("compiled")
    same(list(a.parameters()), list(b.parameters()))
    for left, right in zip(rows_a, rows_b, strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - {"stage"}:
            assert right[name] == pytest.approx(left[name], rel=1e-4), name


@pytest.mark.usefixtures("compiler")
def test_large_products_go_through_onednn_and_keep_their_values():
    a, b, c = torch.randn(100, 300), torch.randn(200, 300), torch.randn(200)
    assert WORTH <= 2 * 100 * 200 * 300

    def products(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        forward = nn.functional.linear(a, b, c)
        return forward, forward @ b, forward.t() @ a, torch.addmm(forward, a, b.t())

    seen: list[str] = []

    class Watching(OneDNNProducts):
        def __call__(self, graph: torch.fx.Graph) -> None:
            super().__call__(graph)
            seen.extend(str(node.target) for node in graph.nodes if node.op == "call_function")

        def uuid(self) -> str:
            return f"{super().uuid()} watched by {os.getpid()}"

    with unvalidated():  # or other tests would find the checks of laws turned off
        got = torch.compile(products, options={"post_grad_custom_post_pass": Watching()})(a, b, c)
    for left, right in zip(got, products(a, b, c), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)
    assert seen.count("xhat.product.default") >= 2
    assert seen.count("xhat.product_plus.default") == 1  # a sum with a whole matrix is none of a linear layer's


def test_inference_goes_through_onednn_and_keeps_its_values(monkeypatch):
    torch.manual_seed(0)
    model = xhat.build("vae", shape=(300,), latent=4, hidden=[200], likelihood="bernoulli")
    x = torch.rand(200, 300).round()
    calls = []
    whole = products.linear
    monkeypatch.setattr(products, "linear", lambda *given: calls.append(1) or whole(*given))
    found = []
    for better in (False, True):
        monkeypatch.setattr(products, "better_without_mkl", lambda better=better: better)
        found.append(model.reconstruct(x))
        assert len(calls) == (2 if better else 0)  # the two large layers of four
    torch.testing.assert_close(*found)
    model.loss(x).sum().backward()  # a derivative needs torch's own
    assert len(calls) == 2


def test_without_a_compiler_auto_says_one_line_and_goes_on_and_the_checks_of_laws_stay_on(tmp_path):
    code = """
import torch, xhat
from torch.distributions import Normal
from xhat.training import choice
choice.COMPILATION = 0.0
model = xhat.build("vae", shape=(12,), latent=3, hidden=[7], likelihood="bernoulli")
assert Normal(0.0, 1.0)._validate_args
for _ in xhat.train(model, torch.rand(64, 12).round(), epochs=1, batch_size=16):  # which imports what turns them off
    assert Normal(0.0, 1.0)._validate_args
print("ended")
xhat.fit(model, torch.rand(64, 12).round(), epochs=1, batch_size=16, engine="compiled")
"""
    environment = {**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=900)
    assert done.stdout.splitlines()[-1] == "ended"
    said = [line for line in done.stderr.splitlines() if line.startswith("engine: ")]
    assert len(said) == 1
    assert said[0].startswith("engine: eager, because VAE with ELBO and Pathwise could not be compiled here")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("xhat.errors.ConfigError: ")
    assert "use engine='eager'" in done.stderr.splitlines()[-1]


def test_the_compilers_own_word_is_told():
    said = "CppCompileError: C++ compile error\n\nCommand:\ng++ a b.cpp\n\nOutput:\ng++: fatal error: no input files\nAnd more."
    assert _reason(RuntimeError(said)) == "CppCompileError: C++ compile error, g++: fatal error: no input files"
    assert _reason(RuntimeError("No working C++ compiler found.\n\nSet TORCH_LOGS")) == "No working C++ compiler found"
    assert _reason(RuntimeError()) == "RuntimeError"


# Graphs


def test_the_whole_batch_and_the_rest_are_recorded_once_each():
    torch.manual_seed(0)
    model = xhat.build("vae", shape=(12,), latent=2, hidden=[5], likelihood="bernoulli")
    recorded = []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        recorded.append(step)
        return step

    program, optimizer = parts(model)
    graphs = Graphs(program, optimizer, None, 16, tell=print, compile=False, record=record)
    examples = Examples(X)
    bounds = [(start, min(start + 16, 70)) for start in range(0, 70, 16)]
    sizes = []
    for epoch in range(3):
        graphs.rate = 1e-3
        sizes += [taken.size for taken in graphs.steps(examples, examples.order(epoch), bounds)]
    assert sizes == [16, 16, 16, 16, 6] * 3
    assert len(recorded) == 2
    assert graphs.warm == {(1, 16): WARM, (1, 6): 1}


def test_a_graph_follows_the_order_the_rate_and_the_schedules_from_anywhere_in_an_epoch():
    def run(engine: Callable[[Program, Optimizer], Engine]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = xhat.build("vae", shape=(12,), latent=2, hidden=[5], likelihood="bernoulli", beta=2.0, beta_warmup=4)
        program, optimizer = parts(model)
        runs = engine(program, optimizer)
        examples = Examples(X)
        torch.manual_seed(1)
        for epoch, begin in ((0, 16), (1, 0), (2, 48)):
            bounds = [(start, min(start + BATCH, 70)) for start in range(begin, 70, BATCH)]
            steps = runs.steps(examples, examples.order(epoch), bounds)
            for number in range(len(bounds)):
                runs.rate = 1e-2 / (1 + epoch + number)
                model.objective.at(epoch + number / 10)
                next(steps)
        return [p.detach() for p in model.parameters()]

    same(run(eager), run(replayed), rtol=0.0, atol=0.0)


class Recording:
    """In place of a recorder: what it was asked to record, and which of the requests fail."""

    def __init__(self, fails: Callable[[int], bool] = lambda number: False) -> None:
        self.asked, self.fails = 0, fails

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        self.asked += 1
        if self.fails(self.asked):
            torch.rand(3)  # it came so far: the caller must put back what was drawn
            raise RuntimeError("operation not permitted when stream is capturing")
        return step


def drawing(fails: Callable[[int], bool], epochs: int, strict: bool = False) -> tuple[list[torch.Tensor], Recording, list[str]]:
    """Steps of an estimator that only draws, under graphs of which some cannot be recorded."""
    torch.manual_seed(0)
    model = xhat.build("autoencoder", shape=(12,), latent=2, hidden=[5])
    program, optimizer = parts(model)
    recording, said = Recording(fails), []
    runs = Graphs(program, optimizer, None, BATCH, tell=said.append, compile=False, strict=strict, record=recording)
    drawn = []

    def derive(x: torch.Tensor) -> tuple:
        drawn.append(torch.rand(()))
        return torch.stack([drawn[-1]]), (None,) * len(optimizer.parameters), ("loss",)

    runs.derive = runs.program = derive
    examples, left = Examples(X), []
    torch.manual_seed(1)
    for epoch in range(epochs):
        bounds = [(start, min(start + BATCH, 70)) for start in range(0, 70, BATCH)]
        left += [taken.values for taken in runs.steps(examples, examples.order(epoch), bounds)]
    return left, recording, said


def test_a_recording_that_fails_leaves_the_random_numbers_alone_and_is_tried_once_more():
    expected, recording, said = drawing(lambda number: False, 4)
    assert (recording.asked, said) == (2, [])  # a whole batch and the rest
    for fails, asked, told in (
        (lambda number: number == 1, 3, 1),  # another program's doing: well in the second epoch, then the rest
        (lambda number: True, 2, 1),  # never again after the second epoch, and said once
        (lambda number: number == 2, 3, 1),  # the rest alone; the whole batch is recorded anew
    ):
        left, recording, said = drawing(fails, 4)
        same(expected, left, rtol=0.0, atol=0.0)
        assert (recording.asked, len(said)) == (asked, told)
        assert set(said) == {"operation not permitted when stream is capturing"}


def test_a_step_that_cannot_be_recorded_is_an_error_where_graphs_were_asked_for():
    program, optimizer = parts(xhat.build("autoencoder", shape=(12,), latent=2, hidden=[5]))
    runs = Graphs(program, optimizer, None, 8, tell=print, compile=False, strict=True, record=Recording(lambda number: True))
    steps = runs.steps(Examples(X), Examples(X).order(0), [(start, start + 8) for start in range(0, 64, 8)])
    with pytest.raises(ConfigError, match="the engine graphs cannot record"):
        list(steps)


def test_what_is_compiled_and_cannot_be_recorded_is_recorded_uncompiled():
    torch.manual_seed(0)
    program, optimizer = parts(xhat.build("autoencoder", shape=(12,), latent=2, hidden=[5]))
    said: list[str] = []
    recording = Recording(lambda number: number == 1)
    runs = Graphs(program, optimizer, None, 8, tell=said.append, compile=False, strict=True, record=recording)
    runs.derive = lambda x: program(x)
    list(runs.steps(Examples(X), Examples(X).order(0), [(start, start + 8) for start in range(0, 64, 8)]))
    assert runs.derive is program
    assert (1, 8) in runs.replays
    assert len(said) == 1


@pytest.fixture
def graphed(monkeypatch) -> Recording:
    """Every run takes graphs, recorded without a device."""
    recording = Recording()

    def engine(name, program, optimizer, clip, size, *given, **options) -> Engine:
        if name == "eager":
            return Eager(program, optimizer, clip, size)
        return Graphs(program, optimizer, clip, size, tell=print, compile=False, record=recording)

    monkeypatch.setattr("xhat.training.loop.engine_for", engine)
    return recording


MANY = torch.rand(203, 12, generator=torch.Generator().manual_seed(0)).round()
SCHEDULED = {
    "plain": {},
    "schedules": {"schedule": "cosine", "warmup": 0.5, "clip": 1.0},
    "dynamic": {},
    "bfloat16": {"precision": "bfloat16"},
}


def fitted(engine: str, kind: str, **more) -> tuple[list[torch.Tensor], list[dict], History]:
    torch.manual_seed(0)
    beta = {"beta_warmup": 1.5} if kind == "schedules" else {}
    model = xhat.build("vae", shape=(12,), latent=2, hidden=[5], likelihood="bernoulli", **beta)
    x = Examples(MANY * 0.9, binarize="dynamic") if kind == "dynamic" else MANY
    settings = {"epochs": 4, "batch_size": 5, "seed": 3, "engine": engine, **SCHEDULED[kind], **more}
    history = xhat.fit(model, x, valid=MANY[:9], **settings)
    return [p.detach() for p in model.parameters()], history.rows, history


@pytest.mark.parametrize("kind", SCHEDULED)
def test_steps_that_are_taken_at_once_are_the_steps_one_by_one(graphed, kind):
    (a, rows_a, _), (b, rows_b, _) = fitted("eager", kind), fitted("auto", kind)
    same(a, b, rtol=0.0, atol=0.0)
    assert rows_a == rows_b
    assert graphed.asked == 3  # one step, several, the rest of an epoch


def test_a_hand_driven_loop_has_the_weights_of_the_step_that_it_sees(graphed):
    seen = []
    for engine in ("eager", "auto"):
        torch.manual_seed(0)
        model = xhat.build("autoencoder", shape=(12,), latent=2, hidden=[5])
        weights = [
            p.detach().clone() for _ in xhat.train(model, MANY, epochs=2, batch_size=5, engine=engine) for p in model.parameters()
        ]
        seen.append(weights)
    same(*seen, rtol=0.0, atol=0.0)


def test_a_run_that_is_stopped_amid_steps_taken_at_once_ends_after_them_and_resumes(graphed, monkeypatch, tmp_path):
    expected, rows, _ = fitted("auto", "plain")
    shown = Loop.run

    def interrupted(loop):
        for step in shown(loop):
            if step.step == 61:  # amid a stretch
                assert not loop.settled
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "run", interrupted)
        _, _, history = fitted("auto", "plain", out=tmp_path / "run")
    assert history.interrupted
    model = xhat.build("vae", shape=(12,), latent=2, hidden=[5], likelihood="bernoulli")
    resumed = xhat.fit(model, MANY, valid=MANY[:9], out=tmp_path / "run", resume=True)
    same(expected, [p.detach() for p in model.parameters()], rtol=0.0, atol=0.0)
    assert resumed.rows == rows


WAITS = {"tensor", "as_tensor", "new_tensor", "from_numpy", "item", "tolist", "cpu", "numpy", "nonzero", "__bool__"}


class Watched(TorchFunctionMode):
    """Notes what would wait for a device: values that are read, and tensors that are made of Python's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in WAITS and not (name == "as_tensor" and isinstance(args[0], torch.Tensor)):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def without_values(model: Model) -> list[str]:
    """Run a step on the device "meta", which has no values and mixes with no other, as when a graph is recorded."""
    model.train()
    x = catalogue.examples(model, BATCH).to(model.like.dtype)
    parts(model)[0](x)  # what is known after the first step
    model.to("meta")
    stage = model.stages()[-1]
    program = Program(stage, model.gradient, [p for p in stage.module.parameters() if p.requires_grad], 100)
    with unvalidated(), Watched() as watched:
        program(x.to("meta"))
    return watched.seen


# torch draws these on the processor and on CUDA, but not where there are no values
UNDRAWN = {"vae: beta-binomial → bernoulli"}


@pytest.mark.parametrize("name", [name for name in CHOSEN if name not in UNDRAWN])
def test_no_model_reads_a_value_in_its_step(name):
    torch.manual_seed(0)
    assert without_values(catalogue.MODELS[name]()) == []


@pytest.mark.parametrize(("gradient", "law", "objective"), FITTING)
def test_no_gradient_reads_a_value_in_its_step(gradient, law, objective):
    model = with_gradient(gradient, law, objective)
    if gradient in UNTRACEABLE:
        pytest.skip("its points are made on the processor, once for each device: see the next test")
    assert without_values(model) == []


def test_sobol_points_are_made_once():
    q = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    _sobol.cache_clear()
    with torch.inference_mode():
        xhat.gradients.Pathwise("sobol").draw(q, 4)
    loc = torch.zeros(3, requires_grad=True)
    z = xhat.gradients.Pathwise("sobol").draw(torch.distributions.Normal(loc, 1.0), 4)
    (z * z).sum().backward()  # also after they were made where nothing can be differentiated
    assert _sobol.cache_info().misses == 1


# The choice


def small() -> tuple[Program, Optimizer]:
    return parts(xhat.build("autoencoder", shape=(12,), latent=2, hidden=[5]))


def test_auto_compiles_only_where_it_saves_more_than_compiling_takes():
    program, optimizer = small()
    few = int(COMPILATION / saving(program, 16, 1)) - 1
    assert engine_for("auto", program, optimizer, None, 16, Examples(X), few).name == "eager"
    assert engine_for("auto", program, optimizer, None, 16, Examples(X), few + 2).name == "compiled"


def test_graphs_are_refused_without_their_device():
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        engine_for("graphs", *small(), None, 16, Examples(X), 10)


def test_a_resumed_run_keeps_its_engine():
    make = lambda: xhat.build("autoencoder", shape=(12,), latent=2, hidden=[5])  # noqa: E731
    first = Loop(make(), Examples(X), None, Settings(engine="compiled"))
    second = Loop(make(), Examples(X), None, Settings(engine="auto"))
    assert second.engine.name == "eager"
    second.restore(first.tensors(), first.state(), "here")
    assert second.engine.name == "compiled"


def test_a_run_that_fell_back_is_resumed_eagerly_and_one_with_graphs_without_a_device_too():
    make = lambda: xhat.build("autoencoder", shape=(12,), latent=2, hidden=[5])  # noqa: E731
    first = Loop(make(), Examples(X), None, Settings(batch_size=16))

    def fail(x: torch.Tensor) -> None:
        raise RuntimeError("no compiler")

    said: list[str] = []
    fallen = Compiled(first.engine.program, first.optimizer, None, 16, otherwise=said.append, backend="eager")
    fallen._run = fail
    first.engine = fallen
    next(first.run())
    assert said == ["no compiler"]
    for name in ("eager", "graphs"):
        state = first.state() | ({"engine": "graphs"} if name == "graphs" else {})
        second = Loop(make(), Examples(X), None, Settings(batch_size=16))
        second.restore(first.tensors(), state, "here")
        assert second.engine.name == "eager"
        next(second.run())


# The optimiser and the derivative


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_optimizer_is_torchs(name):
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 3, generator=generator)), nn.Parameter(torch.randn(4, generator=generator))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine = Optimizer(name, ours, weight_decay=0.1, epsilon=1e-4)
    other = cls(theirs, weight_decay=0.1, eps=1e-4)
    for step in range(20):
        derivatives = [torch.randn(p.shape, generator=generator) for p in ours]
        other.param_groups[0]["lr"] = 0.1 / (1 + step)
        for p, derivative in zip(theirs, derivatives, strict=True):
            p.grad = derivative.clone()
        if step % 3 == 0:  # a weight that had no part in the loss
            derivatives[1], theirs[1].grad = None, None
        mine.step(derivatives, 0.1 / (1 + step))
        other.step()
    same([p.detach() for p in ours], [p.detach() for p in theirs], rtol=1e-5, atol=1e-7)


def test_a_derivative_in_another_layout_moves_the_right_weights():
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))

    module = Transposed()
    derivative = torch.arange(6.0).reshape(3, 2).t()  # the same numbers, column by column in memory
    program, _ = small()
    optimizer = Optimizer("adam", [module.weight])
    expected = nn.Parameter(module.weight.detach().clone())
    expected.grad = derivative.contiguous()
    torch.optim.Adam([expected], lr=0.5).step()
    Eager(program, optimizer, None, 1).update((torch.zeros(1), (derivative,), ("loss",)), 1, 0.5)
    torch.testing.assert_close(module.weight, expected)


def test_clipping_scales_a_derivative_that_two_weights_share_once():
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    shared = torch.full((3,), 10.0)
    seen = []

    class Watched(Optimizer):
        def step(self, derivatives, rate):
            seen.extend(derivatives)

    Eager(small()[0], Watched("adam", [a, b]), 1.0, 1).update((torch.zeros(1), (shared, shared), ("loss",)), 1, 0.5)
    assert torch.stack(seen).norm() == pytest.approx(1.0, rel=1e-4)


def test_a_loss_that_is_read_late_still_names_its_step():
    model = xhat.build("autoencoder", shape=(12,), latent=2, hidden=[5])
    loop = Loop(model, Examples(X), None, Settings(batch_size=10, epochs=1))
    loop.device = torch.device("meta")  # anything but a processor: readings are put off
    steps = iter(loop.run())
    for _ in range(3):
        next(steps)
    with torch.no_grad():
        model.posterior.network.layers[0].weight.fill_(torch.nan)
    for _ in range(3):
        next(steps)  # not read yet
    with pytest.raises(TrainingError, match="at step 4 "):
        list(steps)


# Precision


@pytest.fixture(scope="module")
def digits() -> tuple[xhat.VAE, torch.Tensor]:
    data = xhat.load_data("digits", binarize="static")
    torch.manual_seed(0)
    model = xhat.build("vae", shape=data.shape, latent=8, hidden=[64], likelihood="bernoulli")
    xhat.fit(model, data.train, epochs=15, seed=0)
    return model, data.test.tensor()


def test_in_bfloat16_the_bound_is_that_of_float32_within_a_thousandth(digits):
    model, x = digits
    bounds = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        with reduced(model, precision), torch.no_grad():
            q = model.posterior(x)
            assert q.mean.dtype == torch.float32
            bounds.append(float(model.elbo(x, samples=50).mean()))
    assert bounds[0] != bounds[1]  # it was another precision
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-3)
    assert all(part.reduced is None for part in (model.posterior, model.likelihood))


def test_in_bfloat16_only_the_networks_are_reduced(digits):
    model, x = digits
    seen = {}
    layer = model.likelihood.head.linear
    hook = layer.register_forward_hook(lambda module, given, out: seen.update(out=out.dtype, weight=module.weight.dtype))
    with reduced(model, "bfloat16"):
        terms = model(x)
    hook.remove()
    assert seen == {"out": torch.bfloat16, "weight": torch.float32}
    assert terms.loss.dtype == torch.float32
    assert all(values.dtype == torch.float32 for values in terms.measures.values())


@pytest.mark.parametrize("recipe", ["vae", "stacked"])
def test_training_in_bfloat16_ends_where_float32_ends(recipe):
    data = xhat.load_data("digits")
    ends = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = xhat.build(recipe, shape=data.shape, latent=8, hidden=[64])
        rows = xhat.fit(model, data.train, valid=data.valid, epochs=10, seed=0, precision=precision).rows
        ends.append(rows[-1]["valid_loss"])
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert ends[0] != ends[1]
    assert ends[1] == pytest.approx(ends[0], rel=0.05)


def test_an_unknown_precision_or_engine_is_refused():
    with pytest.raises(ConfigError, match="precision must be one of float32, bfloat16"):
        Settings(precision="float16")
    with pytest.raises(ConfigError, match="engine must be one of auto, eager, compiled, graphs"):
        Settings(engine="quick")
    with pytest.raises(ConfigError, match="epsilon must be above 0"):
        Settings(epsilon=0.0)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is no part of this build of torch")
def test_a_product_with_a_part_of_a_larger_matrix_is_right_and_onednn_gets_it_in_one_piece():
    torch.manual_seed(0)
    x, whole, larger = torch.randn(200, 1000), torch.randn(100, 1000), torch.randn(100, 1050)
    given = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            if function is torch.ops.mkldnn._linear_pointwise.default:
                given.append(arguments[1])
            return function(*arguments, **(named or {}))

    parts = {"rows": larger[:, :1000], "columns": torch.randn(1000, 150)[:, :100].t()}
    assert not any(part.is_contiguous() or part.t().is_contiguous() for part in parts.values())
    for weight in (whole, torch.randn(1000, 100).t(), *parts.values()):
        with Watching():
            product = linear(x, weight)
        torch.testing.assert_close(product, x @ weight.T, rtol=1e-4, atol=1e-3)
    assert len(given) == 4
    # of anything else it multiplies number by number, in 500 ms and not 0.3
    assert all(weight.is_contiguous() or weight.t().is_contiguous() for weight in given)
