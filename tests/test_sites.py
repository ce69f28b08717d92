"""droptune/sites.py: which places are found in a model, and what is said of them."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import droptune
from droptune import Plan, find_sites
from droptune.consistency import masked_place
from droptune.droppers import DROPOUT_MODULES
from droptune.errors import ModelError
from droptune.sites import Site

IMAGE = torch.randn(2, 1, 12, 12)
ROW = torch.randn(2, 6)
WORDS = torch.randint(0, 9, (2, 5))


class Net(nn.Module):
    """Layers by name, and a forward by hand: forward(net, *args, **kwargs)."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self._by_hand = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args, **kwargs):
        return self._by_hand(self, *args, **kwargs)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


def test_where_torchs_transformer_has_steps_in_front_the_layout_says_so():
    model = Net(
        lambda m, x: m.out(m.layer(m.put(x).transpose(0, 1)).mean(0)),
        put=nn.Linear(6, 4), layer=nn.TransformerEncoderLayer(4, 2, 8), out=nn.Linear(4, 3),
    )  # fmt: skip
    sites = {site.name: site for site in find_sites(model, torch.randn(2, 5, 6))}
    inner = [site for name, site in sites.items() if ".dropout" in name]
    assert len(inner) == 5 and {site.layout for site in inner} == {"LNF"}
    assert sites["layer.dropout"].shape == (5, 8) and "locked" not in sites["layer.dropout"].allowed
    assert sites["@input"].layout == "NLF"
    # A mask of a sample's features would not fit there.
    assert masked_place(tuple(sites.values())).site == "@input"


def names(model: nn.Module, example) -> list[str]:
    return [site.name for site in find_sites(model, example)]


def roles(model: nn.Module, example) -> dict[str, str]:
    return {site.name: f"{site.role} {site.layout}" for site in find_sites(model, example)}


def only(model: nn.Module, example, name: str) -> Site:
    (site,) = [site for site in find_sites(model, example) if site.name == name]
    return site


# Places where dropout could be put


def test_an_mlp_has_its_input_each_hidden_activation_and_the_head():
    assert find_sites(mlp(), ROW) == (
        Site("@input", "", "input", "input", "NF", 0, (6,)),
        Site("1", "1", "output", "hidden", "NF", 1, (8,)),
        Site("3", "3", "output", "head", "NF", 2, (7,)),
    )


def test_a_functional_relu_is_reached_from_the_layer_behind_it():
    def forward(net, x):
        x = F.relu(net.a(x))
        x = torch.relu(net.b(x))
        return net.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))

    model = Net(forward, a=nn.Conv2d(1, 4, 3), b=nn.Conv2d(4, 5, 3), fc=nn.Linear(20, 3))
    assert find_sites(model, IMAGE) == (
        Site("@input", "", "input", "input", "NCHW", 0, (1, 12, 12)),
        Site("b@input", "b", "input", "conv", "NCHW", 1, (4, 10, 10)),
        Site("fc@input", "fc", "input", "head", "NF", 2, (20,)),
    )


def test_methods_of_tensors_are_activations_too():
    model = Net(lambda net, x: net.b(net.a(x).relu_()), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    assert names(model, ROW) == ["@input", "b@input"]


def test_one_relu_module_for_several_places_is_reached_from_the_layers_behind_it():
    def forward(net, x):
        return net.c(net.act(net.b(net.act(net.a(x)))))

    model = Net(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2), act=nn.ReLU())
    assert roles(model, ROW) == {"@input": "input NF", "b@input": "hidden NF", "c@input": "head NF"}


def test_a_norm_behind_the_activation_comes_before_dropout():
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8),
        nn.ReLU(), nn.Linear(8, 2),
    )  # fmt: skip
    assert names(model, ROW) == ["@input", "2", "5"]


def test_conv_pool_flatten_head_has_a_place_for_maps_and_one_before_the_head():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 3)
    )
    found = find_sites(model, IMAGE)
    assert [(s.name, s.reach, s.role, s.layout, s.shape) for s in found] == [
        ("@input", "input", "input", "NCHW", (1, 12, 12)),
        ("1", "output", "conv", "NCHW", (4, 10, 10)),
        ("4@input", "input", "head", "NF", (100,)),
    ]


def test_layers_without_an_activation_between_have_only_input_and_head():
    assert names(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2)), ROW) == [
        "@input",
        "2@input",
    ]


def test_a_layer_that_is_called_twice_is_not_reached_from_behind():
    def forward(net, x):
        return net.fc(F.relu(net.b(F.relu(net.b(F.relu(net.a(x)))))))

    model = Net(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 4), fc=nn.Linear(4, 2))
    assert names(model, ROW) == ["@input", "fc@input"]


def test_an_embedding_in_the_middle_is_not_reached_from_behind():
    def forward(net, row, words):
        return net.fc(F.relu(net.a(row)) + net.emb(words).mean(1))

    model = Net(forward, a=nn.Linear(6, 4), emb=nn.Embedding(9, 4), fc=nn.Linear(4, 2))
    assert names(model, (ROW, WORDS)) == ["@input", "emb@rows", "fc@input"]


def test_a_single_linear_layer_has_only_its_input():
    assert names(nn.Linear(6, 2), ROW) == ["@input"]


def test_a_model_without_weights_has_no_sites():
    assert find_sites(nn.ReLU(), ROW) == ()


def test_the_input_of_an_embedding_takes_no_dropout():
    model = Net(
        lambda net, x: net.fc(F.relu(net.a(net.emb(x))).mean(1)),
        emb=nn.Embedding(9, 4), a=nn.Linear(4, 6), fc=nn.Linear(6, 2),
    )  # fmt: skip
    assert roles(model, WORDS) == {"emb@rows": "embedding VF", "fc@input": "head NF"}


def test_the_input_is_the_first_argument_and_not_listed_unless_it_holds_floats():
    def forward(net, words, row):
        return net.fc(net.a(row) + net.emb(words).mean(1))

    model = Net(forward, emb=nn.Embedding(9, 4), a=nn.Linear(6, 4), fc=nn.Linear(4, 2))
    assert names(model, (WORDS, ROW)) == ["emb@rows", "fc@input"]


def test_the_input_of_a_flattening_model_has_the_shape_it_is_given_and_unknown_axes():
    site = only(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), IMAGE, "@input")
    assert (site.shape, site.layout) == ((1, 12, 12), "N???")


@pytest.mark.parametrize(
    ("conv", "shape", "layout"),
    [
        (nn.Conv1d(2, 3, 3), (2, 2, 9), "NCL"),
        (nn.Conv2d(2, 3, 3), (2, 2, 9, 9), "NCHW"),
        (nn.Conv3d(2, 3, 3), (2, 2, 9, 9, 9), "NCDHW"),
    ],
)
def test_the_axes_of_convolutions_are_told_apart(conv, shape, layout):
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(shape))
    assert roles(model, torch.randn(shape))["1"] == f"conv {layout}"


def test_recurrent_layers_give_their_role_to_what_follows():
    model = Net(
        lambda net, x: net.fc(net.drop(net.rnn(x)[0])[:, -1]),
        rnn=nn.LSTM(6, 4, batch_first=True), drop=nn.Dropout(0.2), fc=nn.Linear(4, 2),
    )  # fmt: skip
    assert roles(model, torch.randn(2, 5, 6))["drop"] == "recurrent NLF"


def test_a_parametrised_layer_is_a_layer():
    model = mlp()
    spectral_norm(model[0])
    spectral_norm(model[2])
    model[3] = nn.Identity()
    model[1] = Net(lambda net, x: F.relu(x), inner=nn.Identity())
    assert roles(model, ROW) == {"@input": "input NF", "2@input": "hidden NF", "4@input": "head NF"}


def test_a_container_with_weights_of_its_own_is_not_taken_for_a_layer():
    def forward(net, x):
        return net.fc(F.relu(net.conv(x)).flatten(2).transpose(1, 2).add(net.position).mean(1))

    model = Net(forward, conv=nn.Conv2d(1, 4, 3), fc=nn.Linear(4, 2))
    model.position = nn.Parameter(torch.zeros(1, 100, 4))
    assert roles(model, IMAGE) == {"@input": "input NCHW", "fc@input": "head NF"}


# Dropout that is there already


@pytest.mark.parametrize("dropout", DROPOUT_MODULES, ids=lambda d: d.__name__)
def test_every_dropout_of_torch_is_found_with_kind_and_rate(dropout):
    axes = {nn.Dropout2d: 2, nn.Dropout3d: 3}.get(dropout, 1)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](1, 4, 3)
    model = nn.Sequential(conv, nn.SELU(), dropout(0.3), nn.Flatten(), nn.Linear(4, 2))
    x = torch.randn(2, 1, *(3,) * axes)
    site = only(model, x, "2")
    assert (site.reach, site.kind, site.rate) == ("module", DROPOUT_MODULES[dropout], 0.3)
    assert (site.role, site.calls) == ("conv", 1)
    assert site.default_kind == site.kind


def test_where_there_is_dropout_no_second_place_is_listed():
    model = nn.Sequential(
        nn.Dropout(0.1), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )
    assert roles(model, ROW) == {"0": "input NF", "3": "head NF"}


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (lambda x: x.flatten(2).transpose(1, 2), "hidden NLF"),  # patches, as in a ViT
        (lambda x: F.pad(x.flatten(2).transpose(1, 2), (0, 0, 1, 0)), "hidden NLF"),  # and a class
        (lambda x: x.permute(0, 2, 3, 1), "hidden NHWF"),
        (lambda x: x.flatten(2), "conv NCL"),
        (lambda x: torch.cat([x, x], 1), "conv NCHW"),
        (lambda x: x[:, :, :, :4], "conv NCHW"),
    ],
)
def test_maps_that_were_turned_have_their_features_last(turn, said):
    def forward(net, x):
        return net.fc(F.relu(net.b(net.drop(turn(net.a(x))).flatten(1))))

    a, drop, fc = nn.Conv2d(1, 4, 3), nn.Dropout(0.2), nn.Linear(5, 2)
    model = Net(forward, a=a, b=nn.LazyLinear(5), drop=drop, fc=fc)
    model(IMAGE)
    assert roles(model, IMAGE)["drop"] == said


def test_dropout_behind_flattened_maps_is_before_the_head():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(200, 3)
    )
    assert roles(model, IMAGE) == {"@input": "input NCHW", "3": "head NF"}


def test_dropout_called_several_times_is_one_site_that_counts_its_calls():
    def forward(net, x):
        return net.b(net.drop(F.relu(net.a(net.drop(x)))))

    model = Net(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 2), drop=nn.Dropout(0.4))
    (site,) = find_sites(model, ROW)
    assert (site.name, site.calls, site.depth) == ("drop", 2, 0)


def test_dropout_that_is_never_called_is_not_listed():
    model = Net(lambda net, x: net.fc(x), fc=nn.Linear(6, 2), drop=nn.Dropout(0.4))
    assert names(model, ROW) == ["@input"]


# What is said of a site


def test_sites_come_in_call_order_whatever_the_order_of_definition():
    def forward(net, x):
        return net.first(net.act(net.second(net.drop(net.third(x)))))

    model = Net(
        forward, first=nn.Linear(4, 2), act=nn.ReLU(), second=nn.Linear(4, 4),
        drop=nn.Dropout(0.1), third=nn.Linear(6, 4),
    )  # fmt: skip
    found = find_sites(model, ROW)
    assert [(site.name, site.depth) for site in found] == [("@input", 0), ("drop", 1), ("act", 2)]


def test_the_default_kind_is_channel_for_maps_and_standard_for_the_rest():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 3))
    kinds = {site.name: site.default_kind for site in find_sites(model, IMAGE)}
    assert kinds == {"@input": "standard", "1": "channel", "3@input": "standard"}


def test_a_site_is_json():
    site = find_sites(mlp(), ROW)[1]
    assert Site(**json.loads(json.dumps(site.to_json())) | {"shape": (8,)}) == site


# Examples


@pytest.mark.parametrize("example", [(ROW, ROW), {"x": ROW, "y": ROW}], ids=["tuple", "dict"])
def test_an_example_may_be_arguments_or_keywords(example):
    model = Net(lambda net, x, y: net.b(F.relu(net.a(x + y))), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    assert names(model, example) == ["@input", "b@input"]


# Nothing is changed


def test_the_model_and_the_global_generator_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    keys = [set(module.__dict__) for module in model.modules()]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert names(model, ROW) == ["@input", "2"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())
    assert [set(module.__dict__) for module in model.modules()] == keys
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# Errors


def test_what_is_no_module_is_refused():
    with pytest.raises(ModelError, match="^the model is a function; .*torch.nn.Module$"):
        find_sites(mlp, ROW)


def test_a_model_that_fails_on_the_example_is_refused_in_one_line_with_the_shape():
    for example in (torch.randn(2, 5), (torch.randn(2, 5),), {"input": torch.randn(2, 5)}):
        with pytest.raises(ModelError) as caught:
            find_sites(mlp(), example)
        message = str(caught.value)
        assert "(2, 5)" in message and "RuntimeError" in message and "\n" not in message
    with pytest.raises(ModelError, match="ZeroDivisionError: division by zero"):
        find_sites(Net(lambda net, x: 1 / 0), ROW)


def test_an_error_without_text_and_one_with_several_lines_stay_one_line():
    def fail(error):
        def forward(net, x):
            raise error

        with pytest.raises(ModelError) as caught:
            find_sites(Net(forward), ROW)
        return str(caught.value)

    assert "(RuntimeError: first)" in fail(RuntimeError("first\nsecond"))
    assert "(KeyError: )" in fail(type("KeyError", (Exception,), {})())


@pytest.mark.parametrize(
    ("last", "plan"),
    [(nn.Identity(), Plan({"1": ("standard", 0.1)})), (nn.Dropout(0.1), Plan.none())],
    ids=["dropout put on", "dropout switched off"],
)
def test_a_model_with_a_plan_on_it_is_refused_until_the_plan_is_taken_off(last, plan):
    model = nn.Sequential(*mlp(), last)
    expected = find_sites(model, ROW)
    droptune.apply(model, plan)
    with pytest.raises(ModelError, match=r"has a plan on it; .*droptune\.remove\(model\)$"):
        find_sites(model, ROW)
    assert find_sites(droptune.remove(model), ROW) == expected
