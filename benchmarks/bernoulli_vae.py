"""A VAE with 200 Bernoulli latents on static binarised MNIST, trained with one gradient after another for equally many steps.

    python benchmarks/bernoulli_vae.py train DATA --gradient disarm --steps 60000 --out disarm.json
    python benchmarks/bernoulli_vae.py variance DATA --steps 15000
    python benchmarks/bernoulli_vae.py table score.json rloo.json disarm.json double-cv.json --picture curves.png

The setting of Dong, Mnih & Tucker (2020) and Titsias & Shi (2022): 784-200-200-(200)-200-200-784 with leaky ReLU of slope 0.3,
batch 100, Adam 1e-3, two values of f for each estimate, a learned prior, an encoder that sees x less the mean image.
DATA is a file with binary images, such as binarized_mnist.npz. The bound is taken with one draw of z for each training image.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import xhat
from xhat import conditionals, gradients, objectives, priors
from xhat.evaluation.laboratory import problem_of
from xhat.networks import MLP

HIDDEN, LATENT, ACTIVATION = [200, 200], 200, "leaky-relu:0.3"


class Centred(nn.Module):
    """A network that sees its input less a mean."""

    def __init__(self, mean: Tensor, network: MLP) -> None:
        super().__init__()
        self.in_shape, self.out_features = tuple(mean.shape), network.out_features
        self.network = network
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x - self.mean)


def model_for(mean: Tensor, gradient: str, samples: int) -> xhat.VAE:
    return xhat.VAE(
        priors.Bernoulli(LATENT, learn=True),
        conditionals.Bernoulli(Centred(mean, MLP(mean.shape, HIDDEN, ACTIVATION)), LATENT),
        conditionals.Bernoulli(MLP(LATENT, HIDDEN, ACTIVATION), tuple(mean.shape)),
        objectives.ELBO(kl="sampled", samples=samples),
        gradients.gradient_of(gradient),
    )


@torch.no_grad()
def bound(model: xhat.VAE, x: Tensor) -> tuple[float, float]:
    """The mean of the bound over examples, and its standard error; the draws are the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        values = torch.cat([model.elbo(block) for block in x.split(1000)])
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def train(a: argparse.Namespace) -> None:
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    x = xhat.load_data(a.data).train.tensor().float()
    model = model_for(x.mean(0), a.gradient, a.samples)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    curve, spent, start = [], 0.0, time.process_time()
    for step in range(1, a.steps + 1):
        loss = model(x[torch.randint(len(x), (100,))]).loss.mean()
        auxiliary = model.gradient.auxiliary_loss()
        optimizer.zero_grad()
        (loss if auxiliary is None else loss + auxiliary).backward()
        optimizer.step()
        if step % a.every == 0 or step == a.steps:
            spent += time.process_time() - start
            value, error = bound(model, x if step == a.steps else x[:10000])
            curve.append({"step": step, "elbo": value, "stderr": error, "seconds": spent})
            print(
                f"{a.gradient:<10} step {step:>7}  train ELBO {value:9.3f} ± {error:.3f}  {spent:7.0f} s of processor", flush=True
            )
            a.out.write_text(json.dumps({"gradient": a.gradient, "samples": a.samples, "seed": a.seed, "curve": curve}))
            start = time.process_time()


def variance(a: argparse.Namespace) -> None:
    """Gradients compared in a model that DisARM has trained for so many steps; double-cv with α learned, and with fixed ones."""
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    x = xhat.load_data(a.data).train.tensor().float()
    model = model_for(x.mean(0), "disarm", 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for _ in range(a.steps):
        optimizer.zero_grad()
        model(x[torch.randint(len(x), (100,))]).loss.mean().backward()
        optimizer.step()
    contenders = {name: gradients.gradient_of(name) for name in ("rloo", "disarm", "arms", "double-cv")}
    for alpha in (0.25, 0.5, 0.75):
        fixed = gradients.DoubleCV().eval()  # learns nothing
        fixed.alpha.data.fill_(alpha)
        contenders[f"double-cv, α = {alpha}"] = fixed
    problem = problem_of(model, x[:100])
    print(gradients.compare(None, problem.draw, problem.parameters, contenders, a.samples, 150, train=300))


def table(a: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = [json.loads(path.read_text()) for path in a.runs]
    print("| gradient | values of f | steps | train ELBO, nats | ms a step |")
    print("|---|---:|---:|---:|---:|")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for run in runs:
        last, curve = run["curve"][-1], run["curve"]
        shown = f"{last['elbo']:.2f} ± {last['stderr']:.2f}"
        print(
            f"| {run['gradient']} | {run['samples']} | {last['step']} | {shown} | {1000 * last['seconds'] / last['step']:.2f} |"
        )
        axes.plot([p["step"] for p in curve], [p["elbo"] for p in curve], label=f"{run['gradient']}  {last['elbo']:.1f}")
    low = sorted(run["curve"][-1]["elbo"] for run in runs)
    axes.set(xlabel="step", ylabel="train ELBO, nats", xscale="log", ylim=(min(low) - 25, max(low) + 5))
    axes.grid(alpha=0.3)
    axes.legend(loc="center right", frameon=False)
    axes.set_title("200 Bernoulli latents, static binarised MNIST")
    if a.picture:
        figure.savefig(a.picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(required=True)
    one = jobs.add_parser("train")
    one.add_argument("data")
    one.add_argument("--gradient", default="disarm")
    one.add_argument("--samples", type=int, default=2)
    one.add_argument("--steps", type=int, default=60_000)
    one.add_argument("--every", type=int, default=2_000)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--out", type=Path, default=Path("bernoulli_vae.json"))
    one.set_defaults(job=train)
    some = jobs.add_parser("variance")
    some.add_argument("data")
    some.add_argument("--samples", type=int, default=2)
    some.add_argument("--steps", type=int, default=15_000)
    some.add_argument("--seed", type=int, default=0)
    some.add_argument("--threads", type=int, default=1)
    some.set_defaults(job=variance)
    many = jobs.add_parser("table")
    many.add_argument("runs", type=Path, nargs="+")
    many.add_argument("--picture", type=Path)
    many.set_defaults(job=table)
    arguments = parser.parse_args()
    arguments.job(arguments)


if __name__ == "__main__":
    main()
