"""Models of transformers, with random weights: attention by hand (eager) and by torch (sdpa)."""

import os

import pytest
import torch
from torch import Tensor, nn

from droptune import Plan, apply, find_sites
from droptune.data import Data
from tests.thirdparty import checks

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched, nor asked for
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
WORDS = torch.randint(2, 50, (24, 7), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Logits(nn.Module):
    """What a study needs of a model that takes keywords and returns a dataclass: one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


class FirstWord(Logits):
    """The logits of a sequence-to-sequence model for the first word of its answer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x, decoder_input_ids=x[:, :2]).logits[:, 0, :3]


def bert(**options) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, intermediate_size=64, max_position_embeddings=16, num_labels=3,
        hidden_dropout_prob=0.11, attention_probs_dropout_prob=0.12, classifier_dropout=0.13,
        **SMALL, **options,
    )  # fmt: skip
    return Logits(transformers.BertForSequenceClassification(config))


def gpt2(**options) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=16, num_labels=3,
        resid_pdrop=0.11, embd_pdrop=0.12, attn_pdrop=0.13,
        pad_token_id=0, bos_token_id=1, eos_token_id=1, **options,
    )  # fmt: skip
    return Logits(transformers.GPT2ForSequenceClassification(config))


def t5(**options) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        dropout_rate=0.11, pad_token_id=0, decoder_start_token_id=0, **options,
    )  # fmt: skip
    return FirstWord(transformers.T5ForConditionalGeneration(config))


def vit(**options) -> nn.Module:
    config = transformers.ViTConfig(
        intermediate_size=64, image_size=16, patch_size=4, num_labels=3,
        hidden_dropout_prob=0.11, attention_probs_dropout_prob=0.12, **SMALL, **options,
    )  # fmt: skip
    return Logits(transformers.ViTForImageClassification(config))


def llama(**options) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=50, intermediate_size=64, max_position_embeddings=16, num_labels=3,
        attention_dropout=0.12, pad_token_id=0, **SMALL, **options,
    )  # fmt: skip
    return Logits(transformers.LlamaForSequenceClassification(config))


MODELS = {"bert": bert, "gpt2": gpt2, "t5": t5, "vit": vit, "llama": llama}


@pytest.fixture(params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture(params=["eager", "sdpa"])
def build(request, name) -> checks.Build:
    """Return what builds a model, with one of the two ways to compute attention."""
    return lambda: MODELS[name](attn_implementation=request.param)


@pytest.fixture
def x(name) -> Tensor:
    return (IMAGES if name == "vit" else WORDS)[:4]


@pytest.fixture
def data(name) -> Data:
    x = IMAGES if name == "vit" else WORDS
    y = torch.arange(24) % 3
    return Data(train=(x[:16], y[:16]), val=(x[16:], y[16:]))


def test_each_dropout_that_acts_is_listed_once_with_its_rate(build, x):
    checks.each_dropout_that_acts_is_listed_once_with_its_rate(build, x)


def test_every_rate_is_applied(build, x):
    checks.every_rate_is_applied(build, x)


def test_nothing_acts_that_is_not_found(build, x):
    checks.nothing_acts_that_is_not_found(build, x)


def test_a_plan_leaves_no_trace(build, x):
    checks.a_plan_leaves_no_trace(build, x)


def test_copies_have_the_plan(build, x):
    checks.copies_have_the_plan(build, x)


@pytest.mark.parametrize("how", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_fused_follows_serial(name, how, data):
    checks.fused_follows_serial(lambda: MODELS[name](attn_implementation=how), data)


@pytest.mark.parametrize(
    "name",
    ["gpt2", "vit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("bert", "t5", "llama"))],
)
def test_a_study_runs(name, data, tmp_path):
    build = MODELS[name]
    checks.a_study_runs(build, data, tmp_path, trainer="fused", slots=2)


@pytest.mark.parametrize("model", ["bert", "vit"])
def test_a_model_whose_output_has_logits_needs_no_wrapper(model, tmp_path):
    y, x = torch.arange(24) % 3, IMAGES if model == "vit" else WORDS
    data = Data(train=(x[:16], y[:16]), val=(x[16:], y[16:]))
    checks.fused_follows_serial(lambda: MODELS[model]().model, data)
    options = {"trainer": "serial", "kinds": ["standard"], "terms": ["r_drop"]}
    checks.a_study_runs(lambda: MODELS[model]().model, data, tmp_path, **options)


class Padded(Logits):
    """Hides padding, as a user would; the model looks into the mask whether there is any."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x, attention_mask=(x != 0).long()).logits


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_fused_follows_serial_where_some_batches_are_padded(model):
    x, y = WORDS.clone(), torch.arange(24) % 3
    x[:3, 5:] = 0  # one batch of two, or both, by the order of the epoch
    data = Data(train=(x[:16], y[:16]), val=(x[16:], y[16:]))
    checks.fused_follows_serial(lambda: Padded(MODELS[model]().model), data)


# What is found, in words


ROLES = {
    "bert": {
        "embeddings.dropout": "embedding NLF",
        "layer.0.attention.self@attention": "attention NHLL",
        "layer.0.attention.output.dropout": "hidden NLF",
        "layer.1.output.dropout": "hidden NLF",
        "model.dropout": "head NF",
    },
    "gpt2": {
        "transformer.drop": "embedding NLF",
        "h.1.attn@attention": "attention NHLL",
        "h.1.attn.resid_dropout": "hidden NLF",
    },
    "t5": {
        "encoder.dropout": "embedding NLF",
        "decoder.block.1.layer.1.EncDecAttention@attention": "attention NHLL",
        "decoder.block.1.layer.2.DenseReluDense.dropout": "hidden NLF",
    },
    "vit": {
        "@input": "input NCHW",
        "embeddings.dropout": "hidden NLF",  # patches: a convolution, then positions
        "layers.0.attention@attention": "attention NHLL",
    },
    "llama": {"layers.1.self_attn@attention": "attention NHLL", "score@input": "head NLF"},
}


def test_roles_and_layouts_are_those_of_the_places(name, x):
    found = {s.name: f"{s.role} {s.layout}" for s in find_sites(MODELS[name](), x)}
    for end, said in ROLES[name].items():
        assert [place for n, place in found.items() if n.endswith(end)] == [said], end


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_an_example_may_be_keywords_and_an_output_a_dataclass(model):
    inner = checks.model_of(MODELS[model]).model
    example = {"input_ids": WORDS[:4], "attention_mask": torch.ones_like(WORDS[:4])}
    sites = find_sites(inner, example)
    wrapped = find_sites(checks.model_of(MODELS[model]), WORDS[:4])
    assert [f"model.{site.name}" for site in sites] == [site.name for site in wrapped]
    apply(inner, Plan.everywhere(sites, 0.5), seed=1)
    assert not torch.equal(inner(**example).logits, inner(**example).logits)


# Gradient checkpointing


def checkpointed(model: Logits) -> Logits:
    inner = model.model
    if hasattr(inner, "activation_checkpointing_enable"):  # the name since version 5
        inner.activation_checkpointing_enable()
    else:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def test_checkpointed_gradients_are_those_without(name, x):
    found = []
    for on in (False, True):
        model = checks.model_of(MODELS[name])
        if on:
            checkpointed(model)
        apply(model, Plan.everywhere(find_sites(model, x), 0.3), seed=1)
        output = model(x)
        output.square().sum().backward()
        found.append([output.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:  # without its cache GPT-2 lays memory out otherwise
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_a_checkpointed_model_is_trained_serially_and_the_reason_is_said(tmp_path):
    def build() -> nn.Module:
        return checkpointed(bert())

    y = torch.arange(24) % 3
    data = Data(train=(WORDS[:16], y[:16]), val=(WORDS[16:], y[16:]))
    said = checks.a_study_runs(build, data, tmp_path, trainer="auto")
    assert any("cannot be trained fused" in line and "trained serially" in line for line in said)
