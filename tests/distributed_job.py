"""What test_distributed.py runs on one process and, under torchrun, on several: each job returns numbers to compare."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

import xhat
from xhat.data.streams import NpyStream
from xhat.gradients import Score
from xhat.ranks import place

X = torch.rand(403, 30, generator=torch.Generator().manual_seed(1)).round()  # a last batch of 3
SETTINGS = {"epochs": 3, "batch_size": 50, "shards": 2, "clip": 1.0, "progress": False}


def vae(**options):
    torch.manual_seed(place()[0])  # other weights in each process, until the first one's are copied
    hidden = options.pop("hidden", [64])
    return xhat.build("vae", shape=(30,), latent=4, hidden=hidden, likelihood="bernoulli", **options)


def numbers(model, history):
    torch.manual_seed(0)
    weights = [p.detach().flatten() for p in model.parameters()] + [b.float().flatten() for b in model.buffers()]
    rows = [value for row in history.rows for value in row.values() if isinstance(value, float)]
    return torch.cat(weights)[::7].tolist() + rows


def plain(folder):
    model = vae(beta_warmup=2)
    return numbers(model, xhat.fit(model, X, valid=X[:37], out=folder / "plain", **SETTINGS))


def one_shard(folder):
    """Bit for bit what it is without torchrun; the other processes have nothing to do."""
    model = vae()
    return numbers(model, xhat.fit(model, X, valid=X[:37], **{**SETTINGS, "shards": 1}))


def in_pieces(folder):
    model = vae(hidden=[300, 301])  # sizes that two processes do not share evenly
    return numbers(model, xhat.fit(model, X, valid=X[:37], out=folder / "in_pieces", shard_weights=True, **SETTINGS))


def baselines(folder):
    model = vae(gradient=Score("lagged"), beta_warmup=2)
    return numbers(model, xhat.fit(model, xhat.Examples(X, binarize="dynamic"), **SETTINGS))


def streamed(folder):
    file = folder / f"x{place()[0]}.npy"
    np.save(file, X.numpy())
    model = vae()
    return numbers(model, xhat.fit(model, xhat.data.as_examples(NpyStream(file)), valid=NpyStream(file), **SETTINGS))


def measured(folder):
    torch.manual_seed(3)
    model = xhat.build("vae", shape=(30,), latent=4, hidden=[64], likelihood="bernoulli")
    result = xhat.evaluate(model, X, samples=20, train=X[:150])
    few = xhat.evaluate(model, X[:1], samples=40)
    parts = [result.elbo, result.log_likelihood, result.kl, result.squared_error, result.train_elbo, few.log_likelihood[:1]]
    return [number for part in parts for number in part] + [result.log_likelihood_mc_stderr, result.ess, result.ess_smallest]


def shared_draws(folder):
    """The evidence of one example, for whose draws the processes take turns; and that the caller's numbers go on alike."""
    model = xhat.build("vae", shape=(30,), latent=4, hidden=[64], likelihood="bernoulli")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    torch.manual_seed(3)
    log_px = xhat.log_likelihood(model, X[:1], samples=2000, elements=3000).log_px.tolist()
    return log_px + torch.rand(1).tolist()


def resumed(folder):
    """Goes on with what another number of processes began."""
    model = vae(beta_warmup=2)
    return numbers(model, xhat.fit(model, X, valid=X[:37], out=folder / "begun", resume=True))


def interrupted(folder):
    """The last process alone is asked to stop, in the middle of the second epoch."""
    model = vae(beta_warmup=2)
    calls = []

    def ask(*_):
        calls.append(1)
        if len(calls) == 14 and place()[0] == place()[1] - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = model.posterior.register_forward_pre_hook(ask)
    history = xhat.fit(model, X, valid=X[:37], out=folder / "interrupted", **SETTINGS)
    handle.remove()
    return [float(history.interrupted), float(len(history.rows))]


def lost(folder):
    """The last process dies in the middle of a step: what the others are told. Nothing more can be asked of them after it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, so that there is time to tell
    model = xhat.build("autoencoder", shape=(4,), latent=2, hidden=[])
    calls = []

    def dies(*_):
        calls.append(1)
        if len(calls) > 20 and place()[0] == place()[1] - 1:
            os._exit(7)

    model.posterior.register_forward_pre_hook(dies)
    try:
        xhat.fit(model, torch.rand(100, 4), batch_size=10, epochs=1000, progress=False)
    except xhat.XhatError as error:
        (folder / "lost").write_text(f"{type(error).__name__}: {error}")


ALL = (plain, one_shard, in_pieces, baselines, streamed, measured, shared_draws, resumed, interrupted)
JOBS = {job.__name__: job for job in ALL}

if __name__ == "__main__":
    place_of_files = Path(sys.argv[1])
    found = {name: job(place_of_files) for name, job in JOBS.items()}
    (place_of_files / f"found{place()[0]}.json").write_text(json.dumps(found))
    lost(place_of_files)
