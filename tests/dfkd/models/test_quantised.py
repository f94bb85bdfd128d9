"""Rounded layers against their definition, how far they are from float, and what of them is kept."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd.models import build, load, load_teacher, save
from dfkd.models.quantised import quantised
from dfkd.problem import Probe
from dfkd.rng import initialised
from dfkd.types import InputSpec

DIGITS, CIFAR = InputSpec((1, 8, 8), 10), InputSpec((3, 32, 32), 10)

SHALLOW = ["digits_cnn", "digits_cnn_half", "lenet5", "lenet5_bn", "resnet20", "resnet18", "wrn-16-1", "wrn-40-1"]


def fresh(name: str, spec: InputSpec, **options: object) -> nn.Module:
    with initialised(0):
        return build(name, spec, **options)  # type: ignore[arg-type]  # options of any kind


def pixels(n: int, spec: InputSpec = DIGITS, seed: int = 0) -> Tensor:
    return torch.rand(n, *spec.shape, generator=torch.Generator().manual_seed(seed))


def slow_weight(weight: Tensor, bits: int) -> Tensor:
    """Number by number: each output channel on the multiples of its scale."""
    top = 2 ** (bits - 1) - 1
    rows = []
    for channel in weight.flatten(1).tolist():
        scale = max(abs(w) for w in channel) / top
        rows.append([round(w / scale) * scale for w in channel])
    return torch.tensor(rows).view_as(weight)


def slow_input(x: Tensor, low: float, high: float, bits: int) -> Tensor:
    """Number by number: cut to the range, on 2^bits values of which zero is one."""
    levels = 2**bits - 1
    scale = (high - low) / levels
    zero = round(-low / scale)
    return torch.tensor(
        [(min(max(round(v / scale) + zero, 0), levels) - zero) * scale for v in x.flatten().tolist()]
    ).view_as(x)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_layer_equals_its_definition(bits: int) -> None:
    with initialised(3):
        edge, middle, last = nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        x = torch.randn(7, 6)
    quantised(nn.Sequential(edge, middle, last), bits)
    given = middle.train()(x)
    low, high = x.min().item(), x.max().item()
    assert middle.get_buffer("input_range").tolist() == pytest.approx([low, high])  # the first batch sets it
    expected = functional.linear(slow_input(x, low, high, bits), slow_weight(middle.weight, bits), middle.bias)
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_convolution_equals_its_definition(bits: int) -> None:
    with initialised(4):
        middle = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        quantised(nn.Sequential(nn.Conv2d(3, 3, 1), middle, nn.Linear(2, 2)), bits)
        x = torch.rand(2, 3, 6, 6) + 0.5  # zero is among the values though nothing is below 0.5
    expected = functional.conv2d(
        slow_input(x, 0.0, x.max().item(), bits), slow_weight(middle.weight, bits), middle.bias, stride=2, padding=1
    )
    torch.testing.assert_close(middle(x), expected, atol=2e-5, rtol=1e-4)


def test_the_range_is_a_moving_average_in_training_alone() -> None:
    layer = quantised(nn.Sequential(nn.Linear(2, 2)), 8).get_submodule("0")
    batches = [torch.tensor([[-1.0, 2.0]]), torch.tensor([[-3.0, 1.0]]), torch.tensor([[0.5, 4.0]])]
    low, high = -1.0, 2.0
    layer.train()(batches[0])
    for batch in batches[1:]:
        layer(batch)
        low, high = 0.99 * low + 0.01 * batch.min().item(), 0.99 * high + 0.01 * batch.max().item()
    assert layer.get_buffer("input_range").tolist() == pytest.approx([low, high])
    before = layer.get_buffer("input_range").clone()
    layer.eval()(100.0 * batches[2])
    assert torch.equal(layer.get_buffer("input_range"), before)


def test_gradients_pass_straight_through_inside_the_range_and_stop_outside() -> None:
    with initialised(5):
        middle = nn.Linear(3, 2, bias=False)
        quantised(nn.Sequential(nn.Linear(3, 3), middle, nn.Linear(2, 2)), 3)
    middle.train()(torch.tensor([[-1.0, 0.0, 0.75]]))
    x = torch.tensor([[-0.7, 0.3, 9.0]], requires_grad=True)
    y = middle.eval()(x)
    slope, weight_slope = torch.autograd.grad(y.sum(), (x, middle.weight))
    rounded = slow_weight(middle.weight, 3)
    torch.testing.assert_close(slope, rounded.sum(dim=0, keepdim=True) * torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(weight_slope, slow_input(x, -1.0, 0.75, 3).expand(2, 3))


@pytest.mark.parametrize("name", SHALLOW)
def test_every_network_is_close_to_float_at_many_bits_and_not_at_few(name: str) -> None:
    spec = DIGITS if name.startswith("digits") else CIFAR
    x, answers = pixels(6, spec), {}
    for bits in (None, 2, 8, 16):
        module = fresh(name, spec, bits=bits)
        with torch.no_grad():
            module.train()(x)  # ranges of this very batch, and BatchNorm by its statistics
            answers[bits] = module(x)
    size = answers[None].std()
    gap = {bits: float((answers[bits] - answers[None]).square().mean().sqrt() / size) for bits in (2, 8, 16)}
    assert gap[16] < 0.01
    assert gap[8] < 0.4  # deep networks with normalised maps of tiny variance
    assert gap[16] < gap[8] < gap[2]


def test_the_first_and_the_last_layer_keep_eight_bits() -> None:
    for bits, edge in ((2, 8), (8, 8), (12, 12)):
        module = fresh("digits_cnn", DIGITS, bits=bits)
        given = {path: vars(part)["bits"] for path, part in module.named_modules() if "bits" in vars(part)}
        assert given == {"conv1": edge, "conv2": bits, "conv3": bits, "linear": edge}


def test_weights_and_names_are_those_of_the_float_network() -> None:
    plain, rounded = fresh("digits_cnn", DIGITS).state_dict(), fresh("digits_cnn", DIGITS, bits=4).state_dict()
    assert {key for key in rounded if key not in plain} == {
        f"{layer}.input_range" for layer in ("conv1", "conv2", "conv3", "linear")
    }
    assert all(torch.equal(rounded[key], value) for key, value in plain.items())


def test_has_penultimate_features_batchnorm_and_gradients() -> None:
    probe = Probe(fresh("digits_cnn", DIGITS, bits=4), DIGITS, name="student")
    assert probe.capabilities >= {"penultimate", "batchnorm", "input_grad", "features"}


def test_a_gradient_of_a_gradient_exists() -> None:
    module, x = fresh("digits_cnn", DIGITS, bits=4).train(), pixels(4).requires_grad_(True)
    (slope,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    slopes = torch.autograd.grad(slope.square().sum(), list(module.parameters()), allow_unused=True)
    assert sum(s is not None and bool(s.isfinite().all()) and bool(s.any()) for s in slopes) > 4


def test_saved_and_loaded_with_its_ranges(tmp_path: Path) -> None:
    module, x = fresh("digits_cnn", DIGITS, bits=3), pixels(4)
    module.train()(pixels(8, seed=1))
    module.eval()
    file = tmp_path / "q.safetensors"
    save(file, module, reference="digits_cnn", spec=DIGITS, options={"bits": 3})
    assert torch.equal(load(file)(x), module(x))


def test_starts_from_float_weights(tmp_path: Path) -> None:
    """Quantisation-aware training of a trained network: the file has no ranges, the first batch gives them."""
    plain, file = fresh("digits_cnn", DIGITS).eval(), tmp_path / "float.safetensors"
    save(file, plain, reference="digits_cnn", spec=DIGITS)
    rounded = load_teacher(None, DIGITS, weights=file, bits=8)
    x = pixels(4)
    # no range yet: only weights are rounded
    assert 0.0 < float((rounded(x) - plain(x)).detach().abs().max()) < 0.05
    rounded.train()(x)
    assert bool(rounded.get_buffer("conv1.input_range").any())


def test_asked_in_bfloat16() -> None:
    """Rounding is done in float32 whatever the layers around it compute in; half the precision moves answers little."""
    plain = Probe(fresh("digits_cnn", DIGITS, bits=8), DIGITS, name="student")
    half = Probe(fresh("digits_cnn", DIGITS, bits=8), DIGITS, name="student", precision="bfloat16")
    for probe in (plain, half):
        probe.module.train()
        probe.learn(pixels(16)).logits.sum().backward()
    with plain.counting("label"), half.counting("label"), torch.no_grad():
        gap = (half(pixels(16)).logits - plain(pixels(16)).logits).abs().max()
    assert 0.0 < float(gap) < 0.1
    assert half.module.get_buffer("conv2.input_range").dtype == torch.float32


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("training", [False, True])
def test_never_waits_for_the_gpu(training: bool, no_waits: AbstractContextManager[None]) -> None:
    module, x = fresh("digits_cnn", DIGITS, bits=4).to("cuda").train(training), pixels(8).to("cuda")
    module(x).sum().backward()  # what loads lazily is loaded
    with no_waits:
        module(x).sum().backward()


def test_where_no_range_is_known_inputs_are_taken_as_they_are() -> None:
    with initialised(6):
        middle, x = nn.Linear(6, 5), torch.randn(7, 6)
    quantised(nn.Sequential(nn.Linear(6, 6), middle, nn.Linear(5, 2)), 4).eval()
    expected = functional.linear(x, slow_weight(middle.weight, 4), middle.bias)
    torch.testing.assert_close(middle(x), expected, atol=2e-5, rtol=1e-4)


def test_zeros_are_no_trouble() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    module = quantised(nn.Sequential(layer), 4).train()
    x = torch.zeros(2, 3, requires_grad=True)
    y = module(x)
    assert torch.equal(y.detach(), layer.bias.detach().expand(2, 2))
    y.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("bits", [1, 0, 17, 32, 4.0, True, "4"])
def test_says_which_bits_there_are(bits: object) -> None:
    with pytest.raises(ValueError, match="bits: expected an integer from 2 to 16, found"):
        fresh("digits_cnn", DIGITS, bits=bits)


def test_names_the_nearest_option() -> None:
    with pytest.raises(ValueError, match="digits_cnn: option: unknown 'bit'; the nearest is 'bits'"):
        fresh("digits_cnn", DIGITS, bit=4)


def test_says_what_it_cannot_change() -> None:
    with pytest.raises(ValueError, match="bits: expected a network with Conv2d or Linear layers to quantise, found"):
        quantised(nn.Sequential(nn.Flatten()), 4)
