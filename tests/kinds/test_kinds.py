"""The contract of every kind of dropout, and what is particular to some of them."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from droptune.errors import PlanError
from droptune.kinds import KINDS, Kind
from droptune.kinds.standard import mask
from tests.kinds.making import (
    ALPHA,
    BETWEEN_LAYERS,
    LAYOUTS,
    batch,
    dropped,
    make,
    many,
    role,
    several,
    started,
    suited,
)

RATES = [0.1, 0.5, 0.9]
#: Kinds of whole channels that also take tensors without space, where a channel is an element.
CHANNELWISE = {"channel", "feature_alpha"}
#: Layouts of the kinds that do not fit everywhere.
FITTING = {
    **dict.fromkeys([*CHANNELWISE, "max_drop", "max_drop_channel"], {"NCL", "NCHW", "NCDHW"}),
    "drop_block": {"NCL", "NCHW"}, "pattern": {"NCHW"}, "locked": {"NLF", "NLS"},
    "pattern_tokens": {"NLF"}, "drop_key": {"NLL", "NHLL"}, "concrete": {"NF", "NLF"},
    "zoneout": {"NLS", "NLM"}, "weight_drop": {"GS"}, "embedding": {"VF"},
    "controlled": {"NF", "NLF", "NHWF"},
}  # fmt: skip
#: Kinds that keep the mean of a sample, not that of each element.
BY_SAMPLE = {"max_drop_channel", "drop_block", "pattern", "drop_key"}
#: Kinds that scale nothing: what they do to a mean of 1, in maps of 81, at a rate.
UNSCALED = {"max_drop": lambda rate: 1 - rate / 81, "layer_drop": lambda rate: 1 - rate}
#: Kinds that drop elements for good: what a rate drops, a higher one drops too. Of layer_drop,
#: with one draw a call, see its own file.
DROPPING = sorted(set(KINDS) - {"gaussian", "layer_drop"})
#: Of these, the ones whose rate is the part that is dropped. Not so: stochastic (at each call
#: another), max_drop (maxima only), drop_block (blocks overlap), patterns (tiles and groups).
#: concrete seldom drops an element whole.
NOT_BERNOULLI = {"stochastic", "max_drop", "pattern_tokens", "concrete"}
BERNOULLI = sorted(set(DROPPING) - BY_SAMPLE - NOT_BERNOULLI | {"drop_key"})
#: How far 1 / keep may be off at rate 0.9, where a step of the grid is 1.5e-4 of it.
ON_GRID = {"rtol": 1.6e-4, "atol": 1e-4}


@pytest.mark.parametrize("name", KINDS)
class KindContract:
    """What every kind keeps to."""

    def test_is_registered_under_its_name(self, name):
        assert KINDS[name].name == name

    def test_is_the_very_same_tensor_in_eval(self, name):
        x = suited(name)
        if name == "zoneout":  # the mean of what training does
            assert torch.equal(make(name, 0.25).eval()(x), x * 0.75)
        else:
            assert make(name).eval()(x) is x

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("scale", [0.0, 1.0, 1e30])
    def test_is_exactly_the_identity_at_rate_0_in_training(self, name, dtype, scale):
        x = (suited(name) * scale).to(dtype).requires_grad_()
        y = make(name, 0.0)(x)
        assert torch.equal(y, x)
        assert name in ALPHA or torch.equal(y.signbit(), x.signbit())  # alpha adds 0 to -0
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, torch.ones_like(x))

    @pytest.mark.parametrize("rate", RATES)
    def test_changes_something_in_training(self, name, rate):
        x = suited(name)
        assert not torch.equal(several(make(name, rate), x), torch.stack([x] * 40))

    @pytest.mark.parametrize("rate", RATES)
    def test_keeps_the_mean_over_masks(self, name, rate):
        if name in BY_SAMPLE | set(UNSCALED):
            # Many small batches for the kind that draws once a batch.
            samples, calls = (1, 5000) if name == "layer_drop" else (2000, 1)
            x = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).expand(samples, 2, 9, 9)
            mean = several(make(name, rate), x, calls).mean().item()
            expected = UNSCALED.get(name, lambda rate: 1)(rate)
            assert mean / 2 == pytest.approx(expected, rel=5e-3, abs=0.01 * (calls > 1))
            return
        x = torch.zeros(1, 4, 1) if name in ALPHA else torch.tensor([[[1.0], [-2.0], [3.0], [0.5]]])
        samples = x.expand(50_000, 4, 1)
        if name in ("weight_drop", "embedding"):  # these take matrices
            x, samples = x[..., 0], samples[..., 0]
        draws = make(name, rate)(samples).mean(0)
        if name == "zoneout":  # of an update, which is not scaled
            draws = draws / (1 - rate)
        if name in ALPHA:  # E[y] = a q x: the mean of activations with mean 0 stays 0
            assert draws.abs().max() < 0.03
        else:
            error = (draws - x[0]).abs() / x[0].abs()
            assert error.max() < 0.06 if rate > 0.8 else error.max() < 0.03

    def test_rate_is_a_float32_buffer_that_no_state_dict_holds(self, name):
        kind = make(name, 0.25)
        learned = ["shift"] if name == "concrete" else []
        expected = ["rate", *KINDS[name].settings, *learned]
        assert [n for n, _ in kind.named_buffers()] == expected
        assert kind.rate.dtype == torch.float32 and kind.rate.shape == ()
        assert not kind.state_dict() and not list(kind.parameters())

    def test_the_rate_stays_as_it_is_when_weights_are_converted(self, name):
        for convert in (nn.Module.bfloat16, nn.Module.half, nn.Module.double):
            kind = convert(make(name, 0.1))
            assert kind.rate.item() == pytest.approx(0.1, abs=1e-8)
            assert dict(kind.named_buffers())["rate"] is kind.rate
            for (_, after), (_, before) in zip(
                kind.named_buffers(), make(name, 0.1).named_buffers(), strict=True
            ):
                assert after.dtype == before.dtype and torch.equal(after, before)

    def test_settings_begin_at_defaults_that_a_space_may_suggest(self, name):
        kind = make(name)
        for setting, known in KINDS[name].settings.items():
            assert kind.get_buffer(setting).item() == pytest.approx(known.default, abs=1e-7)
            for value in (known.default, known.low, known.high):
                assert known.allows(value) and known.nearest(value) == value
            assert not known.allows(known.high + known.step) and not known.allows("0")

    def test_every_setting_counts(self, name):
        x = suited(name)
        plain = make(name, 0.8)(x)
        for setting, known in KINDS[name].settings.items():
            value = known.high if known.default == known.low else known.low
            assert not torch.equal(started(KINDS[name]("fc", 0.8, **{setting: value}))(x), plain)

    def test_the_buffer_is_what_counts(self, name):
        kind = make(name, 0.9)
        kind.rate.fill_(0.0)
        assert torch.equal(kind(suited(name)), suited(name))

    def test_leaves_the_global_generator_alone(self, name):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        KINDS[name]("fc", 0.5).train()(suited(name))
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_same_seed_site_and_clock_give_the_same_noise(self, name):
        x = suited(name)
        assert torch.equal(several(make(name), x), several(make(name), x))

    @pytest.mark.parametrize("other", [{"seed": 1}, {"clock": 1}, {"site": "fd"}])
    def test_another_seed_site_or_clock_gives_other_noise(self, name, other):
        x = suited(name)
        assert not torch.equal(several(make(name), x), several(make(name, **other), x))

    def test_each_call_draws_new_noise(self, name):
        drawn = several(make(name), suited(name))
        assert any(not torch.equal(drawn[0], other) for other in drawn)

    @pytest.mark.parametrize("each", [True, False], ids=["inputs stacked", "one input"])
    def test_stacked_under_vmap_each_member_is_bit_for_bit_what_it_is_alone(self, name, each):
        rates = torch.tensor([0.0, 0.1, 0.5, 0.9])
        x = torch.stack([suited(name, i) for i in range(4)]) if each else suited(name)
        kind = make(name)

        def member(rate: Tensor, x: Tensor) -> Tensor:
            return torch.func.functional_call(kind, {"rate": rate}, (x,))

        dims = (0, 0 if each else None)
        stacked = torch.vmap(member, in_dims=dims, randomness="same")(rates, x)
        for i, rate in enumerate(rates):
            alone = make(name, rate.item())(x[i] if each else x)
            assert torch.equal(stacked[i], alone)

    def test_members_that_differ_in_settings_are_what_they_are_alone(self, name):
        known, x = KINDS[name].settings, suited(name)
        grids = {n: [s.low, s.nearest((s.low + s.high) / 2), s.high] for n, s in known.items()}
        chosen = [{n: grid[(i + j) % 3] for j, (n, grid) in enumerate(grids.items())}
                  for i in range(3)]  # fmt: skip
        stacks = {n: torch.tensor([values[n] for values in chosen]) for n in known}
        stacks["rate"] = torch.tensor([0.2, 0.5, 0.9])
        kind = make(name)
        stacked = torch.vmap(
            lambda buffers: torch.func.functional_call(kind, buffers, (x,)), randomness="same"
        )(stacks)
        for i, values in enumerate(chosen):
            alone = started(KINDS[name]("fc", stacks["rate"][i].item(), **values))(x)
            assert torch.equal(stacked[i], alone)

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda k: pickle.loads(pickle.dumps(k))])
    def test_a_copy_goes_on_where_the_original_is(self, name, again):
        kind = make(name, 0.3)
        kind(suited(name))
        twin = again(kind)
        assert twin.rate is not kind.rate and twin.rate == kind.rate
        assert torch.equal(twin(suited(name)), kind(suited(name)))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_keeps_the_dtype_and_the_shape(self, name, dtype):
        for layout, shape in LAYOUTS.items():
            if name in CHANNELWISE or KINDS[name].fits(layout, role(name)):
                y = make(name)(batch(*shape).to(dtype))
                assert y.dtype == dtype and y.shape == shape

    def test_another_number_of_axes_is_refused_or_taken_never_misread(self, name):
        fitting = BETWEEN_LAYERS if name == "concrete" else FITTING.get(name, BETWEEN_LAYERS)
        axes = set(map(len, fitting))
        for shape in LAYOUTS.values():
            if name in CHANNELWISE or len(shape) in axes:
                make(name)(batch(*shape))
            else:
                with pytest.raises(
                    PlanError, match=f"^site 'fc' holds a .* kind '{name}' needs [A-Z]"
                ) as error:
                    make(name)(batch(*shape))
                allowed = str(error.value).rpartition("there: ")[2].split(", ")
                assert "standard" in allowed and name not in allowed
                for other in allowed:
                    make(other)(batch(*shape))

    def test_what_it_draws_depends_neither_on_the_rate_nor_on_values(self, name):
        after = []
        for rate, x in [(0.0, suited(name)), (0.9, suited(name)), (0.5, suited(name) * 0)]:
            kind = make(name, rate)
            kind(x)
            after.append(kind.stream.uniform((8,), x.device))
        assert torch.equal(after[0], after[1]) and torch.equal(after[0], after[2])

    def test_traced_it_draws_at_each_replay_what_it_draws_untraced(self, name):
        x, traced, plain = suited(name), make(name), make(name)
        replay = make_fx(lambda x: traced(x))(x)
        traced.stream.seed(0)
        for _ in range(2):
            assert torch.equal(replay(x), plain(x))

    def test_a_shown_kind_tells_its_rate(self, name):
        assert "rate=0.25" in repr(make(name, 0.25))
        kind = make(name)
        kind.rate = torch.zeros(3)
        assert "rate=stacked" in repr(kind)
        for setting, known in KINDS[name].settings.items():
            value = known.high if known.default == known.low else known.low
            assert repr(KINDS[name]("fc", **{setting: value})).endswith(f", {setting}={value:g})")

    def test_fits_the_layouts_of_its_method(self, name):
        fitting = {layout for layout in LAYOUTS if KINDS[name].fits(layout, role(name))}
        assert fitting == FITTING.get(name, BETWEEN_LAYERS)
        assert KINDS[name].only_inside() == fitting.isdisjoint(BETWEEN_LAYERS)

    @pytest.mark.parametrize("role", ["input", "embedding", "hidden", "conv", "recurrent", "head"])
    def test_fits_every_role_unless_its_method_is_of_one_alone(self, name, role):
        fits_somewhere = any(KINDS[name].fits(layout, role) for layout in LAYOUTS)
        assert fits_somewhere == (name not in ("drop_path", "layer_drop", "drop_key"))


class TestKinds(KindContract):
    """Run the contract for all."""


@pytest.mark.parametrize("name", BERNOULLI)
@pytest.mark.parametrize("rate", RATES)
def test_the_dropped_fraction_is_the_rate(name, rate):
    part = dropped(name, rate, many(name)).float().mean().item()
    assert part == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("name", DROPPING)
def test_a_higher_rate_drops_all_that_a_lower_one_drops(name):
    masks = [dropped(name, rate, many(name)) for rate in (0.0, 0.05, 0.3, 0.31, 0.8)]
    assert not masks[0].any()
    for lower, higher in zip(masks, masks[1:], strict=False):
        assert not (lower & ~higher).any()
        assert lower.sum() < higher.sum()


def test_no_number_in_0_to_1_is_dropped_at_rate_0():
    edges = torch.tensor([0.0, 2**-24, 1 - 2**-24])
    assert mask(edges, torch.tensor(0.0)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", KINDS)
def test_at_rate_0_a_zero_keeps_its_sign(name):
    x = suited(name).sign() * 0.0
    assert torch.equal(torch.signbit(make(name, 0.0)(x)), torch.signbit(x))


@pytest.mark.parametrize("name", sorted(CHANNELWISE))
def test_whole_channels_are_dropped(name):
    gone = dropped(name, 0.5, batch(8, 16, 4, 4) + 10).flatten(2)
    assert torch.equal(gone.all(2), gone.any(2))
    assert gone.any() and not gone.all()


def test_standard_and_gaussian_noise_is_of_single_elements():
    assert not (make("standard")(torch.ones(2, 4, 50)) == 0).all(2).any()
    assert make("gaussian")(torch.ones(2, 4, 50)).unique().numel() == 400


@pytest.mark.parametrize("rate", RATES)
def test_gaussian_noise_has_the_variance_of_standard_dropout(rate):
    ones = torch.ones(1000, 200)
    expected = rate / (1 - rate)
    assert make("gaussian", rate)(ones).var().item() == pytest.approx(expected, rel=0.03)
    assert make("standard", rate)(ones).var().item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", ["standard", "channel"])
def test_kept_elements_are_divided_by_one_minus_rate_as_torch_does(name, rate):
    peer = nn.Dropout(rate) if name == "standard" else nn.Dropout2d(rate)
    torch.manual_seed(0)
    for y in (make(name, rate)(torch.ones(20, 30, 2, 2)), peer(torch.ones(20, 30, 2, 2))):
        # On CPU, standard divides by the share that it keeps, a multiple of 1/65536.
        torch.testing.assert_close(y.unique(), torch.tensor([0, 1 / (1 - rate)]), **ON_GRID)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", sorted(ALPHA))
def test_alpha_keeps_mean_0_and_variance_1_as_torch_does(name, rate):
    x = batch(2000, 200)  # without space a channel is an element
    torch.manual_seed(0)
    peer = {"alpha": nn.AlphaDropout, "feature_alpha": nn.FeatureAlphaDropout}[name](rate)
    for y in (make(name, rate)(x), peer(x)):
        assert y.mean().item() == pytest.approx(0, abs=0.02)
        assert y.var().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("rate", RATES)
def test_alpha_sets_dropped_and_kept_elements_to_the_values_of_torch(rate):
    ones = torch.ones(100, 100)
    torch.manual_seed(0)
    expected = nn.AlphaDropout(rate)(ones).unique()
    torch.testing.assert_close(make("alpha", rate)(ones).unique(), expected, **ON_GRID)


def test_a_kind_without_a_drop_cannot_be_made():
    class Silent(Kind):
        name = "silent"

    with pytest.raises(TypeError, match="abstract class Silent .*drop"):
        Silent("fc")
