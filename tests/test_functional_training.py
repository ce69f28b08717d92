"""droptune/functional.py: attention's arithmetic, fused training, studies, leaks in eval mode."""

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from droptune import Plan, apply, find_sites
from droptune.cli import main
from droptune.errors import ModelError
from droptune.functional import attention
from droptune.sites import find_leaks
from droptune.trainers import FusedTrainer, SerialTrainer, Task
from tests.calling import ZOO, Eager, Hand, Heads, X, build, data
from tests.small import Notes, fresh, mlp, rows, study

# Writing in place


class InPlace(nn.Module):
    """Drops in place behind a dropout, of a module or of a function, behind an activation."""

    def __init__(self, between: nn.Module | None, activation=F.relu) -> None:
        super().__init__()
        self.fc, self.between, self.activation = nn.Linear(6, 6), between, activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc(x)) if self.activation else x
        x = self.between(x) if self.between else F.dropout(x, 0.3, self.training)
        return F.dropout(x, 0.5, self.training, inplace=True)


@pytest.mark.parametrize("between", [None, nn.Dropout(0.3)], ids=["function", "module"])
def test_in_place_behind_a_dropout_that_is_off_leaves_the_activation_to_its_backward(between):
    name = "@dropout" if between else "@dropout.1"
    plan = Plan({name: ("standard", 0.5)})
    model = apply(build(InPlace, between, torch.tanh), plan, seed=0)
    output = model(X)
    output.sum().backward()
    scale = (output.detach() != 0) * 2.0
    (kept,) = torch.autograd.grad((torch.tanh(model.fc(X)) * scale).sum(), [model.fc.weight])
    torch.testing.assert_close(model.fc.weight.grad, kept)
    assert 0 < scale.mean() < 2


@pytest.mark.parametrize("between", [None, nn.Dropout(0.3)], ids=["function", "module"])
def test_in_place_behind_a_dropout_that_is_off_does_not_write_into_the_data(between):
    name = "@dropout" if between else "@dropout.1"
    model = apply(build(InPlace, between, None), Plan({name: ("standard", 0.5)}), seed=0)
    x = X.clone()
    assert not torch.equal(model(x), x)
    assert torch.equal(x, X)


def test_in_place_elsewhere_writes_as_torch_does():
    class Statement(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x + 1
            F.dropout(x, 0.5, self.training, inplace=True)
            return x

    output = apply(Statement(), Plan({"@dropout": ("standard", 0.5)}), seed=0)(X)
    assert (output == 0).any() and not torch.equal(output, X + 1)


# Attention


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()},
    "float": {"attn_mask": torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(3))},
    "scale": {"scale": 0.3},
    "negative scale": {"scale": -0.3},
    "grouped": {"enable_gqa": True},
}


@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_attention_is_torchs_bit_for_bit_forward_and_backward(options):
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, 4, 3, 5), (2, 2 if "enable_gqa" in options else 4, 4, 5)]
    given = [torch.randn(size, generator=generator) for size in (*sizes, sizes[1])]
    results = []
    for function in (F.scaled_dot_product_attention, attention):
        q, k, v = (tensor.clone().requires_grad_() for tensor in given)
        extra = options if function is not attention else {"drop": lambda x: x, **options}
        with sdpa_kernel(SDPBackend.MATH):
            output = function(q, k, v, **extra)
        output.square().sum().backward()
        results.append([output, q.grad, k.grad, v.grad])
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    assert torch.equal(results[0][0], results[1][0])


class Both(nn.Module):
    """Gives attention a mask and asks for a causal one, too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, torch.zeros(5, 5), 0.2, True)


def test_a_mask_and_a_causal_mask_are_refused_as_by_torch():
    with pytest.raises(RuntimeError, match="attn_mask"):
        Both()(X)
    model = apply(Both(), Plan({"@attention": ("standard", 0.5)}))
    with pytest.raises(ModelError, match="attn_mask and is_causal=True.*put the causal mask"):
        model(X)


class Weights(nn.Module):
    """Returns the weights of attention that are in effect, for uniform scores."""

    def __init__(self, need_weights: bool | None) -> None:
        super().__init__()
        self.need_weights = need_weights
        if need_weights is None:
            return
        self.att = nn.MultiheadAttention(16, 1, 0.9, bias=False, batch_first=True)
        weight = torch.cat([torch.zeros(32, 16), torch.eye(16)])
        self.att.in_proj_weight = nn.Parameter(weight)
        self.att.out_proj.weight = nn.Parameter(torch.eye(16))

    def forward(self, x: Tensor) -> Tensor:
        if self.need_weights is None:
            return F.scaled_dot_product_attention(0 * x, x, x, dropout_p=0.9)
        return self.att(x, x, x, need_weights=self.need_weights)[0]


@pytest.mark.parametrize("need_weights", [None, True, False])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_rate_is_the_part_of_weights_that_is_dropped(need_weights, rate):
    model = Weights(need_weights)
    x = torch.eye(16).expand(300, 16, 16)
    name = "@attention" if need_weights is None else "att@attention"
    weights = apply(model, Plan({name: ("standard", rate)}), seed=0)(x)
    assert (weights == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    torch.testing.assert_close(weights.max(), torch.tensor(1 / 16 / (1 - rate)))


# Fused training and studies


@pytest.mark.parametrize("cls", [*ZOO.values(), Eager], ids=[*ZOO, "Eager"])
def test_fused_is_serial(cls):
    sites = find_sites(build(cls), X)
    weights = [site for site in sites if site.role == "attention"]
    kinds = {site.name: ("standard", "gaussian") for site in sites}
    kinds |= {site.name: ("standard", "gaussian", "drop_key") for site in weights}
    task = Task(cls, data(), kinds, epochs=3, batch_size=32, lr=0.01)
    plans = [Plan.none(), Plan.everywhere(sites, 0.2), Plan.everywhere(sites, 0.4, "gaussian")]
    plans += [Plan.everywhere(weights, 0.4, "drop_key")] if weights else []
    curves = []
    for trainer in (SerialTrainer(task, 4), FusedTrainer(task, 4)):
        trainer.begin(seed=3)
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
        epochs = [trainer.epoch() for _ in range(3)]
        curves.append([[e[i].train_loss, e[i].metrics["val_loss"]] for e in epochs for i in e])
    torch.testing.assert_close(*map(torch.tensor, curves), atol=2e-5, rtol=0)
    ends = torch.tensor(curves[0][-len(plans) :])[:, 0]
    assert ends.unique().numel() == len(plans), "the plans differ"


def test_a_study_tunes_the_weights_of_attention(tmp_path):
    url = fresh(tmp_path)
    notes = Notes()
    one = study(url, model=Heads, data=data(), trainer="auto", encoding="site", slots=4)
    assert one.as_given() == Plan({"att@attention": ("standard", 0.2)})
    result = one.optimize(progress=notes)
    assert result.verdict
    assert not any("does not reach" in line or "serially" in line for line in notes.messages)
    plans = [plan for (plan,) in rows(url, "SELECT plan FROM droptune_run")]
    assert any("att@attention" in plan for plan in plans)
    apply(Heads(), result.plan)


# Dropout that acts in eval mode


class Leaky(nn.Module):
    """Drops in eval mode, too, in two of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.hand = nn.Linear(30, 30), Hand()

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.fc(x), 0.1).view(-1, 5, 6)
        return self.hand(F.scaled_dot_product_attention(x, x, x, dropout_p=0.1))


def test_calls_that_drop_in_eval_mode_are_found():
    x = torch.randn(4, 30)
    model = Leaky()
    assert find_leaks(model, x) == ["@dropout", "@attention"]
    assert model.training and not model._forward_hooks
    assert all(find_leaks(build(cls), X) == [] for cls in ZOO.values())


@pytest.mark.parametrize(("model", "said"), [(Leaky, True), (mlp, False)])
def test_a_study_says_once_which_calls_drop_in_eval_mode(tmp_path, model, said):
    notes = Notes()
    study(fresh(tmp_path), model=model, confirm_blocks=0, trials=2).optimize(progress=notes)
    lines = [line for line in notes.messages if "drops in eval mode" in line]
    assert len(lines) == said and all("@dropout, @attention; " in line for line in lines)


def test_the_command_line_says_which_calls_drop_in_eval_mode(tmp_path):
    target = tmp_path / "target.py"
    model = "lambda: Leaky()"
    for line, said in ((model, True), ("mlp", False)):
        target.write_text(
            "from tests.small import cancer, mlp\n"
            "from tests.test_functional_training import Leaky\n"
            f"import droptune\nstudy = droptune.Study('x', model={line}, data=cancer())\n"
        )
        result = CliRunner().invoke(main, ["sites", str(target)])
        assert result.exit_code == 0, result.output
        assert ("drops in eval mode, too: @dropout, @attention; " in result.stderr) is said
