"""Networks: sizes that nobody has to count, for any shape, and heads for strangers' modules."""

import math

import pytest
import torch
from torch import nn

from xhat import build, conditionals
from xhat.errors import ConfigError
from xhat.networks import MLP, ConvDecoder, ConvEncoder, head_of, in_shape_of, tie
from xhat.networks.base import ACTIVATIONS, LinearHead

IMAGES = [(1, 28, 28), (3, 64, 64), (1, 100, 75), (3, 1, 1), (2, 1, 7), (1, 2, 3), (4, 5, 1), (1, 17, 33)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_mlp_is_the_formula():
    net = MLP((2, 3), [4, 5], "tanh").double()
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    h = x.reshape(7, 6)
    for layer in net.layers:
        h = torch.tanh(h @ layer.weight.T + layer.bias)
    torch.testing.assert_close(net(x), h)
    assert [tuple(layer.weight.shape) for layer in net.layers] == [(4, 6), (5, 4)]


def test_mlp_without_hidden_layers_passes_its_input_on():
    x = torch.randn(3, 2, 2)
    assert torch.equal(MLP((2, 2))(x), x.reshape(3, 4))
    assert not list(MLP((2, 2)).parameters())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_known_by_name(name):
    y = MLP(3, [5], name)(torch.randn(4, 3))
    assert y.shape == (4, 5)
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MLP(3, [5], "swish"), "activation must be one of relu, .*, was 'swish'"),
        (lambda: MLP(0), r"in_shape must be .*at least 1, was 0"),
        (lambda: MLP(()), "in_shape must be"),
        (lambda: MLP(3, [4, 0]), "each hidden size must be"),
        (lambda: ConvEncoder((28, 28)), r"must be \(channels, height, width\), was \(28, 28\)"),
        (lambda: ConvEncoder((1, 28, 0)), "at least 1"),
        (lambda: ConvDecoder(3, (1, 8, 8), []), "channels must name at least one level"),
        (lambda: ConvDecoder(3, (1, 8, 8), [4]).head((1, 1, 8, 9)), r"draws events of shape \(1, 8, 8\)"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("channels", [[3], [3, 4], [2, 3, 4]])
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_convolutions_take_and_give_any_height_and_width(shape, channels):
    features = ConvEncoder(shape, channels, hidden=6)(torch.rand(2, *shape))
    assert features.shape == (2, 6)
    decoder = ConvDecoder(5, shape, channels[::-1], hidden=6)
    for parameters in (1, 2):
        assert decoder.head((parameters, *shape))(decoder(torch.randn(2, 5))).shape == (2, parameters, *shape)


@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 9, 5)], ids=str)
def test_every_pixel_depends_on_the_code_and_the_code_on_every_pixel(shape):
    x = torch.rand(1, *shape, dtype=torch.float64, requires_grad=True)
    encoder = ConvEncoder(shape, [4, 4], hidden=32, activation="tanh").double()
    assert (torch.autograd.grad(encoder(x).square().sum(), x)[0] != 0).all()
    decoder = ConvDecoder(3, shape, [4, 4], hidden=32, activation="tanh").double()
    head = decoder.head((1, *shape)).double()
    a, b = head(decoder(torch.randn(2, 3, dtype=torch.float64)))
    assert (a != b).all()


def test_a_convolutional_body_maps_examples_one_by_one():
    encoder, x = ConvEncoder((1, 6, 5), [3], hidden=4).double(), torch.rand(5, 1, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(encoder(x), torch.cat([encoder(one[None]) for one in x]))


# Heads for networks that know nothing of xhat


class Named(nn.Module):
    out_features = 4

    def forward(self, x):
        return torch.cat([x, x], 1)


class Headed(nn.Module):
    def forward(self, x):
        return x

    def head(self, shape):
        return nn.Sequential(nn.Linear(2, math.prod(shape)), nn.Unflatten(1, shape))


class Silent(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(2, 3),
        nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3), nn.ReLU()),
        nn.Sequential(nn.Sequential(nn.Linear(2, 5), nn.Dropout(0.0)), nn.LayerNorm(5)),
        Named(),
        Headed(),
    ],
    ids=["linear", "sequential", "nested", "out_features", "head"],
)
def test_foreign_networks_get_a_head_of_the_right_size(network):
    conditional = conditionals.Normal(network, event=(3, 2))
    conditional.bind((2,), "posterior")  # as a model does; a module that says nothing of its input cannot know
    q = conditional(torch.randn(5, 7, 2))
    assert q.batch_shape == (5, 7)
    assert q.event_shape == (3, 2)
    assert q.rsample((4,)).shape == (4, 5, 7, 3, 2)


def test_a_network_that_says_nothing_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"Silent does not say .* give it an attribute out_features, or a method head"):
        head_of(Silent(), (2, 3))


def test_what_a_network_takes_is_read_where_it_says_so():
    assert in_shape_of(MLP((2, 3))) == (2, 3)
    assert in_shape_of(nn.Sequential(nn.Linear(5, 2), nn.ReLU())) == (5,)
    assert in_shape_of(Silent()) is None


# Tied weights


def test_tied_layers_are_transposes_with_biases_of_their_own():
    up, down = MLP(6, [4, 3], "tanh"), MLP(2, [3, 4], "tanh")
    top, bottom = up.head((1, 2)), down.head((1, 6))
    tie((up, top), (down, bottom))
    z = torch.randn(5, 2)
    h = torch.tanh(z @ top.linear.weight + down.layers[0].bias)
    h = torch.tanh(h @ up.layers[1].weight + down.layers[1].bias)
    torch.testing.assert_close(bottom(down(z)).squeeze(1), h @ up.layers[0].weight + bottom.linear.bias)
    assert [name for name, _ in down.named_parameters()] == ["layers.0.bias", "layers.1.bias"]


@pytest.mark.parametrize(
    ("encoder", "decoder", "words"),
    [
        (MLP(6, [4]), MLP(2, [5]), "mirrors its encoder: the encoder's layers are .*4.* the decoder's .*5"),
        (nn.Linear(6, 4), MLP(2, [4]), "only an MLP"),
    ],
)
def test_what_cannot_be_tied_is_refused(encoder, decoder, words):
    with pytest.raises(ConfigError, match=words):
        tie((encoder, LinearHead(4, (1, 2))), (decoder, decoder.head((1, 6))))


def test_layers_are_tied_only_once():
    up, down = MLP(6, [4]), MLP(2, [4])
    heads = up.head((1, 2)), down.head((1, 6))
    tie((up, heads[0]), (down, heads[1]))
    with pytest.raises(ConfigError, match="tied to another's already"):
        tie((up, heads[0]), (down, heads[1]))


def test_a_gated_layer_is_a_product_with_a_gate():
    network = MLP(3, [4, 2], "gated").double()
    x = torch.randn(5, 3, dtype=torch.float64)
    h = x
    for layer in network.layers:
        linear, gate = (h @ layer.weight.T + layer.bias).chunk(2, -1)
        h = linear * gate.sigmoid()
    torch.testing.assert_close(network(x), h)
    assert network.out_features == h.shape[-1] == 2


def test_a_gated_network_is_not_taken_layer_by_layer():
    with pytest.raises(ConfigError, match="gated"):
        build("autoencoder", shape=(6,), latent=2, hidden=[4], activation="gated", tied=True)
