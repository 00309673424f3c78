"""Several tasks on one map: weights of losses, and of gradients where they meet."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bevstack.perception.training.balance import EqualNorms, PCGrad, UncertaintyWeights
from bevstack.perception.training.checkpoint import load_weights
from bevstack.perception.training.module import TrainingModule
from bevstack.perception.training.options import TrainingOptions
from bevstack.perception.training.task_gradients import TaskGradients

from model_parts import make_batch, make_model  # isort: skip
from training_parts import StopAt, TwoHeads, read_losses, run  # isort: skip

TASKS = ("detection", "map", "occupancy")


def gram_of(gradients: torch.Tensor) -> torch.Tensor:
    return gradients @ gradients.T


def pcgrad_written_out(gradients: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Algorithm 1 of the paper, on the gradients themselves."""
    total = torch.zeros_like(gradients[0])
    for i, own in enumerate(gradients):
        surgery = own.clone()
        for j in order:
            if j != i and (product := surgery @ gradients[j]) < 0:
                surgery -= product / (gradients[j] @ gradients[j]) * gradients[j]
        total += surgery
    return total


@given(seed=st.integers(0, 10_000), num_tasks=st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_pcgrad_is_the_papers_algorithm(seed, num_tasks):
    gradients = torch.randn(
        num_tasks, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    torch.manual_seed(seed)
    order = torch.randperm(num_tasks).tolist()
    torch.manual_seed(seed)
    weights = PCGrad(TASKS[:num_tasks])(gram_of(gradients))
    torch.testing.assert_close(weights @ gradients, pcgrad_written_out(gradients, order))


def test_two_tasks_never_work_against_each_other_after_pcgrad():
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    combined = PCGrad(TASKS[:2])(gram_of(gradients)) @ gradients
    assert (gradients @ combined >= -1e-6).all()
    assert (gradients.sum(0) @ gradients[0]).item() == 0  # the plain sum would stop task 0


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_equal_norms_gives_every_task_its_share_of_the_mean_norm(seed):
    gradients = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))
    gradients *= torch.tensor([[0.1], [1.0], [10.0]])
    weights = EqualNorms(TASKS, shares={"map": 2.0}, momentum=0.0, limit=1e6)(gram_of(gradients))
    scaled, mean = (weights[:, None] * gradients).norm(dim=1), gradients.norm(dim=1).mean()
    torch.testing.assert_close(scaled, mean * torch.tensor([0.75, 1.5, 0.75]))


def test_equal_norms_forgets_slowly_and_passes_over_batches_without_labels():
    balance = EqualNorms(TASKS[:2], momentum=0.5)
    balance(torch.diag(torch.tensor([4.0, 16.0])))
    assert balance.norms.tolist() == [2, 4]
    weights = balance(torch.diag(torch.tensor([16.0, 0.0])))
    assert balance.norms.tolist() == [3, 4]
    assert weights.tolist() == pytest.approx([3.5 / 3, 3.5 / 4])
    balance(torch.diag(torch.tensor([math.inf, 16.0])))
    assert balance.norms.tolist() == [3, 4]
    fresh = EqualNorms(TASKS[:2])
    assert fresh(torch.zeros(2, 2)).tolist() == [1, 1]


def test_uncertainty_weights_make_every_weighted_loss_a_half():
    weighting = UncertaintyWeights(("detection", "map"))
    losses = {"detection": torch.tensor(8.0), "map": torch.tensor(0.02), "camera": torch.tensor(3)}
    assert weighting(losses).item() == pytest.approx(11.02)
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        weighting(losses).backward()
        optimizer.step()
    weighed = {task: (w * losses[task]).item() for task, w in weighting.weights().items()}
    assert weighed == pytest.approx({"detection": 0.5, "map": 0.5}, rel=1e-3)


class Double(nn.Module):
    def forward(self, gram):
        return torch.tensor([2.0, 3.0])


def test_gradients_of_tasks_meet_once_and_are_those_of_each_alone():
    shared = torch.randn(4, 5, requires_grad=True)
    bev = shared.sin()
    heads = [torch.randn(4, 5), torch.randn(4, 5)]
    alone = [
        torch.autograd.grad((bev * h).square().sum(), bev, retain_graph=True)[0] for h in heads
    ]
    meeting = TaskGradients(("detection", "map"), Double())
    maps = meeting(bev)
    loss = sum((maps[task] * h).square().sum() for task, h in zip(meeting.tasks, heads))
    (gradient,) = torch.autograd.grad(loss, bev, retain_graph=True)
    torch.testing.assert_close(gradient, 2 * alone[0] + 3 * alone[1])
    logged = meeting.logged()
    assert logged["gradient/map"].item() == pytest.approx(alone[1].norm().item(), rel=1e-5)
    cosine = torch.cosine_similarity(alone[0].flatten(), alone[1].flatten(), 0)
    assert logged["cosine/detection-map"].item() == pytest.approx(cosine.item(), abs=1e-5)
    assert meeting.logged(loss_scale=8.0)["gradient/map"] == logged["gradient/map"] / 8


def test_watching_gradients_changes_none_of_them():
    plain, watched = make_model(), make_model()
    batch = make_batch()
    losses = [TrainingModule(plain), TrainingModule(watched, TrainingOptions(log_gradients=True))]
    for module in losses:
        module.model.total_loss(module.loss_terms(batch)).backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), watched.named_parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    assert losses[1].task_gradients.logged().keys() == {
        *("gradient/detection", "gradient/map", "cosine/detection-map"),
    }


def test_balanced_heads_learn_from_their_own_loss_and_the_shared_part_from_the_mixture():
    def gradients(**options):
        module = TrainingModule(make_model(), TrainingOptions(**options))
        module.model.total_loss(module.loss_terms(make_batch())).backward()
        return {name: p.grad for name, p in module.model.named_parameters()}

    plain, balanced = gradients(), gradients(gradient_balance=EqualNorms)
    for name, gradient in plain.items():
        same = torch.allclose(gradient, balanced[name], rtol=1e-4, atol=1e-7)
        if name.startswith("heads."):
            assert same, name
    shared = "backbone.stages.0.0.0.weight"
    assert not torch.allclose(plain[shared], balanced[shared], rtol=1e-2)


@pytest.mark.parametrize("balance", [EqualNorms, PCGrad])
def test_training_writes_weights_norms_and_cosines_of_every_step(tmp_path, balance):
    run(
        *(tmp_path, None, TwoHeads()),
        weighting=UncertaintyWeights,
        gradient_balance=balance,
        ema_decay=0.9,
    )
    rows = read_losses(tmp_path)
    assert len(rows) == 12
    assert all(float(row["gradient/near"]) > 0 and float(row["gradient/far"]) > 0 for row in rows)
    assert all(-1 <= float(row["cosine/near-far"]) <= 1 for row in rows)
    assert [float(row["weight/far"]) for row in rows[:2]] == pytest.approx([1, 1], abs=0.2)
    assert float(rows[-1]["weight/far"]) < 0.99  # its loss is the larger one
    model = TwoHeads()
    assert load_weights(model, tmp_path / "last.safetensors") == []


def test_a_balanced_training_resumes_exactly(tmp_path):
    options = {"gradient_balance": EqualNorms, "weighting": UncertaintyWeights, "save_every": 3}
    whole, _ = run(tmp_path / "whole", None, TwoHeads(), **options)
    with pytest.raises(StopAt.Stopped):
        run(tmp_path / "parts", None, TwoHeads(), callbacks=[StopAt(8)], **options)
    last = tmp_path / "parts" / "last.safetensors"
    resumed, _ = run(tmp_path / "parts", None, TwoHeads(), last, **options)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert read_losses(tmp_path / "whole") == read_losses(tmp_path / "parts")
