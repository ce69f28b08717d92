"""Models whose dropout is a call of a function: fused training, studies, leaks in eval mode."""

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

from droptune import Plan, apply, find_sites
from droptune.cli import main
from droptune.sites import find_leaks
from droptune.trainers import FusedTrainer, SerialTrainer, Task
from tests.calling import ZOO, Eager, Hand, Heads, X, build, data
from tests.small import Notes, fresh, rows, study

# Fused training and studies


@pytest.mark.parametrize("cls", [*ZOO.values(), Eager], ids=[*ZOO, "Eager"])
def test_fused_is_serial(cls):
    sites = find_sites(build(cls), X)
    kinds = {site.name: ("standard", "gaussian") for site in sites}
    task = Task(cls, data(), kinds, epochs=3, batch_size=32, lr=0.01)
    plans = [Plan.none(), Plan.everywhere(sites, 0.2), Plan.everywhere(sites, 0.4, "gaussian")]
    curves = []
    for trainer in (SerialTrainer(task, 3), FusedTrainer(task, 3)):
        trainer.begin(seed=3)
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
        epochs = [trainer.epoch() for _ in range(3)]
        curves.append([[e[i].train_loss, e[i].metrics["val_loss"]] for e in epochs for i in e])
    torch.testing.assert_close(*map(torch.tensor, curves), atol=2e-5, rtol=0)
    ends = torch.tensor(curves[0][-3:])[:, 0]
    assert ends.unique().numel() == 3, "the plans differ"


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


def test_the_command_line_says_which_calls_drop_in_eval_mode(tmp_path):
    target = tmp_path / "target.py"
    model = "lambda: Leaky()"
    for line, said in ((model, True), ("mlp", False)):
        target.write_text(
            "from tests.small import cancer, mlp\nfrom tests.test_functional_training import Leaky\n"
            f"import droptune\nstudy = droptune.Study('x', model={line}, data=cancer())\n"
        )
        result = CliRunner().invoke(main, ["sites", str(target)])
        assert result.exit_code == 0, result.output
        assert ("drops in eval mode, too: @dropout, @attention; " in result.stderr) is said
