"""Several processes: a run is the same whatever their number, one of them writes, and none waits for ever."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import distributed_job as job
import xhat
from xhat.cli import main
from xhat.cli.telling import speaks
from xhat.data.streams import NpyStream
from xhat.errors import ConfigError
from xhat.evaluation.moments import Moments
from xhat.evaluation.spread import Spread
from xhat.gradients import Score
from xhat.models.files import read_tensors
from xhat.networks import MLP
from xhat.networks.bayesian_models import bayesian, kl
from xhat.ranks import Lost, Ranks, joined, own_device, place
from xhat.training import distributed
from xhat.training.distributed import Shards, Sum

X = job.X


def torchrun(*arguments, processes=2):
    """Start processes as a user does. Torch by itself would wait half an hour for one that is missing."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


def assert_alike(rows, others):
    """Logs whose numbers agree to float error, and whose words are the same."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert value == (pytest.approx(other[name], rel=1e-5, abs=1e-6) if isinstance(value, float) else other[name])


# --- processes ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the jobs find on one process, here, and on two, each of which says what it found, and what was printed at the end."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    model, settings = job.vae(beta_warmup=2), {name: value for name, value in job.SETTINGS.items() if name != "progress"}
    for step in xhat.train(model, X, valid=X[:37], out=two / "begun", **settings):
        if step.step == 12:  # the checkpoint is the first epoch's, of step 9: what came after happens again
            break
    said = torchrun(job.__file__, str(two)).stderr
    found = [two / f"found{rank}.json" for rank in (0, 1)]
    assert all(file.exists() for file in found), said
    names = [name for name in job.JOBS if name not in ("resumed", "interrupted")]
    return {name: job.JOBS[name](one) for name in names}, *(json.loads(file.read_text()) for file in found), said, two


@pytest.mark.parametrize("name", ["plain", "in_pieces", "baselines", "streamed", "measured"])
def test_two_processes_end_where_one_ends(both, name):
    one, first, second, *_ = both
    assert first[name] == second[name]
    torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(one[name]), rtol=1e-5, atol=1e-6)


def test_a_batch_in_one_piece_is_the_same_bit_for_bit(both):
    one, first, second, *_ = both
    assert one["one_shard"] == first["one_shard"] == second["one_shard"]


def test_one_process_writes(both):
    folder = both[-1]
    assert sorted(file.name for file in (folder / "plain").iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
    rows = [json.loads(line) for line in (folder / "plain" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert not list((folder / "plain").rglob("*.tmp"))


def test_processes_share_the_draws_of_few_examples(both):
    one, first, second, *_ = both
    assert first["shared_draws"] == second["shared_draws"]
    assert first["shared_draws"][0] == pytest.approx(one["shared_draws"][0], abs=0.05)


def test_a_run_that_one_process_began_goes_on_on_two(both):
    one, first, second, *_ = both
    assert first["resumed"] == second["resumed"]
    torch.testing.assert_close(torch.tensor(first["resumed"]), torch.tensor(one["plain"]), rtol=1e-5, atol=1e-6)


def test_a_signal_to_one_process_stops_both_and_the_run_goes_on_on_one(both):
    one, first, second, _, folder = both
    assert first["interrupted"] == second["interrupted"] == [1.0, 1.0]
    model = job.vae(beta_warmup=2)
    history = xhat.fit(model, X, valid=X[:37], out=folder / "interrupted", resume=True)
    torch.testing.assert_close(torch.tensor(job.numbers(model, history)), torch.tensor(one["plain"]), rtol=1e-5, atol=1e-6)


def test_pieces_leave_a_checkpoint_like_any_other(both):
    folder = both[-1]
    held, _ = read_tensors(folder / "in_pieces" / "checkpoints" / "last.safetensors")
    model = xhat.load(folder / "in_pieces")
    for name, tensor in model.state_dict().items():
        assert held[f"model/{name}"].shape == tensor.shape
    places = [name for name in held if name.startswith("optimizer/")]
    assert len(places) == 3 * len(list(model.parameters()))


def test_torchrun_trains_and_measures(tmp_path):
    options = ["train", "digits", "--epochs", "2", "--hidden", "32", "--latent", "4", "--batch-size", "100"]
    result = torchrun("-m", "xhat", *options, "--out", str(tmp_path / "two"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the model is") == 1
    assert "Warning" not in result.stderr
    with pytest.raises(SystemExit) as left:
        main([*options, "--shards", "2", "--out", str(tmp_path / "one")])
    assert left.value.code == 0
    places = ("two", "one")
    two, one = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in places)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)
    told, same = ([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in places)
    assert_alike(told, same)


def test_bad_input_is_told_once():
    result = torchrun("-m", "xhat", "train", "digits", "--lr", "-1")
    assert result.returncode != 0
    assert result.stderr.count("xhat: ") == 1
    assert re.search(r"^xhat: .*lr must be above 0", result.stderr, re.M)
    assert "exitcode  : 2" in result.stderr


def test_a_process_that_dies_is_missed(both):
    said, folder = both[-2:]
    assert "exitcode  : 7" in said
    assert (folder / "lost").read_text().startswith("Lost: another process of this run has stopped")


# --- shards, in one process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size", "examples"), [(2, 5, 23), (3, 4, 9), (4, 4, 17), (7, 10, 11), (1, 8, 20)])
def test_shards_cover_every_example_once(count, size, examples):
    batches = max(1, -(-(examples - 1) // size))
    shards = Shards(count, size, batches, examples)
    bounds = [(n * size, (n + 1) * size if n < batches - 1 else examples) for n in range(batches)]
    for start, stop in bounds:
        assert [i for first, last in shards.cut(start, stop) for i in range(first, last)] == list(range(start, stop))
    stretches = [shards.stretch(shard) for shard in range(count)]
    assert [i for first, last in stretches for i in range(first, last)] == list(range(examples))
    for shard, (first, last) in enumerate(stretches):
        pieces = [shards.cut(start, stop)[shard] for start, stop in bounds]
        assert sum(stop - start for start, stop in pieces) == last - first


@pytest.mark.parametrize("shards", [2, 3, 50])
def test_shards_change_nothing_where_nothing_is_drawn(shards):
    def trained(shards):
        torch.manual_seed(0)
        model = xhat.build("autoencoder", shape=(30,), latent=4, hidden=[16])
        return model, xhat.fit(model, X, valid=X[:37], epochs=2, batch_size=50, shards=shards)

    (whole, history), (cut, other) = trained(1), trained(shards)
    torch.testing.assert_close(dict(cut.named_parameters()), dict(whole.named_parameters()), rtol=1e-4, atol=1e-6)
    assert_alike(history.rows, other.rows)


def test_random_weights_are_paid_for_once():
    torch.manual_seed(0)
    model = bayesian(xhat.build("vae", shape=(30,), latent=4, hidden=[16], likelihood="bernoulli"))
    first = next(iter(xhat.train(model, X, epochs=1, batch_size=403, shards=4, lr=1e-12)))
    assert first.record is not None
    assert first.record["train_weights_kl"] == pytest.approx(kl(model).item(), rel=1e-4)


def test_an_average_of_earlier_values_moves_once_a_step():
    torch.manual_seed(0)
    model = xhat.build("vae", shape=(30,), latent=4, hidden=[16], likelihood="bernoulli", gradient=Score("lagged"))
    xhat.fit(model, X, epochs=2, batch_size=50, shards=5)
    assert model.gradient.lagged.seen == pytest.approx(2 * 9)


def test_sums_go_through_buckets(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET", 40)
    tensors = [torch.rand(3, 2), torch.rand(4, dtype=torch.float64), torch.rand(5), torch.rand(()), torch.rand(20)]
    total = Sum(tensors, Ranks())
    assert len(total.buckets) == 4
    total.clear()
    total.join(tensors, 0.25)
    total.join(tensors, 0.5)
    torch.testing.assert_close(total.total(), [0.75 * tensor for tensor in tensors])


def test_a_resumed_run_keeps_its_shards(tmp_path):
    one, two = job.vae(), job.vae()
    options = {"epochs": 3, "batch_size": 50, "shards": 3}
    xhat.fit(one, X, **options)
    for step in xhat.train(two, X, out=tmp_path / "run", **options):
        if step.step == 12:
            break
    xhat.fit(two, X, out=tmp_path / "run", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_each_shard_reads_its_stretch_of_a_file_and_no_more(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", X.numpy())
    read = []
    whole = NpyStream.read
    monkeypatch.setattr(NpyStream, "read", lambda self, rows: read.extend(rows.tolist()) or whole(self, rows))
    x = xhat.data.as_examples(NpyStream(tmp_path / "x.npy"))
    shards, seen = Shards(2, 50, 9, 403), []
    bounds = [(start, min(start + 50, 403)) for start in range(0, 403, 50)]
    for rank in range(2):
        read.clear()
        with shards.feeds(x, 5, bounds, Ranks(rank, 2), lambda part, order, pieces: part.feed(order, pieces)) as feeds:
            seen += list(feeds[rank])
        first, last = shards.stretch(rank)
        assert sorted(read) == list(range(first, last))
    assert torch.equal(torch.cat(seen).sum(0), X.sum(0))


class Normalised(nn.Module):
    in_shape, out_features = (30,), 16

    def __init__(self, norm):
        super().__init__()
        self.layer, self.norm = nn.Linear(30, 16), norm

    def forward(self, x):
        return self.norm(self.layer(x.flatten(1)))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen.add_(1)
        return x


def with_norm(norm):
    posterior = xhat.conditionals.Normal(Normalised(norm), 4)
    return xhat.VAE(xhat.priors.StandardNormal(4), posterior, xhat.conditionals.Bernoulli(MLP(4, [16]), (30,)))


@pytest.mark.parametrize(
    ("make", "settings", "told"),
    [
        (lambda: with_norm(nn.BatchNorm1d(16)), {"shards": 2}, r"BatchNorm1d .* whole batch.* nn.GroupNorm"),
        (lambda: with_norm(Counting()), {"shards": 2}, r"Counting \(.*seen\) keeps a running state"),
        (lambda: job.vae(free_bits=0.1), {"shards": 2}, "free_bits averages"),
        (job.vae, {"shards": 2, "engine": "graphs"}, "engine graphs"),
        (job.vae, {"shards": 60, "batch_size": 50}, "50 examples cannot be cut into 60 shards"),
        (job.vae, {"shards": 0}, "shards must be at least 1"),
        (lambda: bayesian(job.vae()), {"shard_weights": True}, "random weights"),
        (job.vae, {"shard_weights": True, "engine": "compiled"}, "engine"),
        (job.vae, {"shard_weights": True, "precision": "bfloat16"}, "float32"),
        (lambda: job.vae(gradient="stl"), {"shard_weights": True}, "pathwise"),
        (lambda: xhat.build("stacked", shape=(30,), latent=2, hidden=[8]), {"shard_weights": True}, "stages"),
        (
            lambda: xhat.build("autoencoder", shape=(30,), latent=2, hidden=[8], tied=True),
            {"shard_weights": True},
            "stand in several places",
        ),
    ],
)
def test_what_shards_would_change_is_refused_by_name(make, settings, told):
    with pytest.raises(ConfigError, match=told):
        xhat.fit(make(), X, epochs=1, **settings)


def test_weights_in_pieces_are_whole_on_one_process():
    one, two = job.vae(), job.vae()
    xhat.fit(one, X, epochs=1)
    xhat.fit(two, X, epochs=1, shard_weights=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


# --- ranks, in one process ---------------------------------------------------------------------------------------------------


class Told(Ranks):
    """Two processes, of which the other one's answer is known."""

    def __init__(self, other):
        super().__init__(0, 2)
        self.other = other

    def gathered(self, tensor):
        return [tensor, self.other]


def test_moments_of_two_processes_are_those_of_all_examples():
    x = torch.rand(50, 3, dtype=torch.float64)
    parts = Moments(), Moments()
    for part, values in zip(parts, (x[:20], x[20:]), strict=True):
        part.add(values)
    held = []
    keeping = Ranks()
    keeping.gathered = lambda tensor: held.append(tensor) or [tensor]  # type: ignore[method-assign]
    parts[1].together(keeping)
    parts[0].together(Told(held[0]))
    assert parts[0].count == 50
    assert parts[0].lowest == x.min()
    torch.testing.assert_close(parts[0].mean, x.mean(0))
    torch.testing.assert_close(parts[0].variance, x.var(0))


def test_chunks_of_draws_go_round():
    x = xhat.data.as_examples(torch.rand(3, 2))
    chunks = [Spread(x, 2, Ranks(rank, 4), seed=0).chunks(10, 3) for rank in range(4)]
    assert [chunk for own in chunks for chunk in own] == [(0, 3), (1, 3), (2, 3), (3, 1)]


def test_the_first_process_fails_for_all():
    def fails():
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        Ranks().first_does(fails)

    class Failed(Ranks):
        def any(self, flag):
            return True

    with pytest.raises(Lost, match="see its message"):
        Failed(1, 2).first_does(fails)


def test_ranks_come_from_the_environment(monkeypatch):
    assert place() == (0, 1)
    assert speaks("anything")
    with joined() as ranks:
        assert (ranks.rank, ranks.world, ranks.first) == (0, 1, True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert place() == (0, 1)  # some clusters set this one by themselves
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("RANK", "1")
    assert place() == (1, 2)
    assert own_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="--nproc-per-node 1"):
        own_device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ConfigError, match="whole numbers"):
        place()


def test_commands_of_one_process_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as left:
        main(["sample", str(Path("nowhere"))])
    assert left.value.code == 2
    assert "xhat: xhat sample is the work of one process" in capsys.readouterr().err
