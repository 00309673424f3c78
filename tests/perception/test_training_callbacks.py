"""Moving average, guard, schedule, logs, skipped frames, validation."""

import math
import time

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from bevstack.datasets.errors import DataError
from bevstack.perception.training.ema import EMA
from bevstack.perception.training.guard import NonFiniteError, find_cause
from bevstack.perception.training.module import TrainingModule
from bevstack.perception.training.run import TrainingOptions
from bevstack.perception.training.schedule import TimeBudget, scaled_lr
from bevstack.perception.training.state_file import read_state

from training_parts import MadeUpData, ToyModel, read_losses, run  # isort: skip

# ---- the moving average


def test_ema_is_the_weighted_sum_of_all_weights_with_a_short_memory_at_first():
    module = nn.Linear(1, 1, bias=False)
    ema = EMA(decay=0.5)
    values = [1.0, 5.0, -3.0, 2.0, 8.0, 1.0, 4.0]
    with torch.no_grad():
        module.weight.fill_(values[0])
        ema.average = {"weight": module.weight.detach().clone()}
        expected = values[0]
        for n, value in enumerate(values[1:], 1):
            module.weight.fill_(value)
            ema.update(module)
            decay = min(0.5, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * value
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_ema_averages_batch_norm_statistics_and_copies_counters():
    module, ema = nn.BatchNorm1d(2), EMA()
    ema.average = {n: t.clone() for n, t in module.state_dict().items()}
    module.train()(torch.randn(8, 2) + 5)
    ema.update(module)
    assert ema.average["num_batches_tracked"] == 1
    start, now = torch.zeros(2), module.running_mean
    assert torch.allclose(ema.average["running_mean"], (2 / 11) * start + (9 / 11) * now)


def test_validation_sees_the_average_and_training_goes_on_with_its_own_weights(tmp_path):
    class Watch(pl.Callback):
        seen = None

        def on_validation_epoch_end(self, trainer, module):
            self.seen = module.model.first.weight.detach().clone()

    watch = Watch()
    model, result = run(
        tmp_path, callbacks=[watch], max_steps=None, epochs=2, validate_every=1, save_every=99
    )
    best = read_state(result.best)
    average = best["callbacks"]["EMA"]["average"]["model.first.weight"]
    last = read_state(result.last)
    assert torch.equal(watch.seen, last["callbacks"]["EMA"]["average"]["model.first.weight"])
    assert torch.equal(model.first.weight, last["state_dict"]["model.first.weight"])
    assert not torch.equal(best["state_dict"]["model.first.weight"], average)
    assert not torch.equal(watch.seen, model.first.weight)


# ---- the guard


class Breaks(nn.Module):
    """Identity that gives infinity on its n-th call."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.call, self.calls = call, 0

    def forward(self, x):
        self.calls += 1
        return x / 0 if self.calls >= self.call else x


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


def test_guard_names_the_first_module_and_the_samples(tmp_path):
    model = ToyModel()
    model.drop = Breaks(call=3)
    with pytest.raises(NonFiniteError) as error:
        run(tmp_path, model=model)
    message = str(error.value)
    assert "step 2: the loss is" in message
    assert "output of model.drop (Breaks)" in message
    assert message.count("token") == 4


def test_guard_names_the_parameter_whose_gradient_is_bad(tmp_path):
    class Model(ToyModel):
        def forward(self, batch, use_camera=True, use_lidar=True):
            self.first.weight.register_hook(lambda grad: grad * math.inf)
            return super().forward(batch)

    with pytest.raises(NonFiniteError, match=r"gradient of model\.first\.weight"):
        run(tmp_path, model=Model())


def test_guard_names_the_last_layer_when_the_gradient_breaks_on_its_way():
    module = TrainingModule(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    BadGradient.apply(module.model(torch.ones(1, 2))).sum().backward()
    from bevstack.perception.training.guard import FiniteGuard

    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    with pytest.raises(NonFiniteError, match=r"gradient of model\.1\.bias"):
        FiniteGuard().on_before_optimizer_step(trainer, module, None)


def batch_of(size: int = 3):
    data = MadeUpData(batch_size=size)
    return next(iter(data.val_dataloader()))[0]


def test_guard_names_a_bad_input_and_its_sample():
    batch = batch_of()
    batch.points[batch.point_sample == 1, 3] = math.nan
    cause = find_cause(TrainingModule(ToyModel()), batch)
    assert cause == "input points of sample token1"
    batch = batch_of()
    batch.boxes.velocity[:] = math.nan  # unknown, which is legal
    assert find_cause(TrainingModule(ToyModel()), batch) is None


def test_guard_names_a_bad_weight_and_a_bad_loss_term():
    module = TrainingModule(ToyModel())
    with torch.no_grad():
        module.model.last.bias[0] = math.inf
    assert find_cause(module, batch_of()) == "weight model.last.bias"
    module = TrainingModule(ToyModel())
    module.model.loss = lambda outputs, batch: {
        "a/b": torch.tensor(1.0),
        "c/d": torch.tensor(math.nan),
    }
    assert find_cause(module, batch_of()) == "loss term c/d"


# ---- schedule and length


def test_learning_rate_follows_the_total_batch(tmp_path):
    assert scaled_lr(1e-3, lr_batch=32, batch=4, processes=2, accumulate=2) == 5e-4
    run(tmp_path, lr=0.01, lr_batch=32, accumulate=2, warmup=0.5)
    peak = max(float(row["lr"]) for row in read_losses(tmp_path))
    assert peak == pytest.approx(0.01 * 4 * 2 / 32)


def test_a_time_budget_is_kept_and_the_rate_reaches_its_end(tmp_path):
    class Slow(ToyModel):
        def forward(self, *args, **kwargs):
            time.sleep(0.02)
            return super().forward(*args, **kwargs)

    began = time.monotonic()
    _, result = run(tmp_path, model=Slow(), max_steps=None, max_seconds=2.0)
    assert time.monotonic() - began < 4
    rates = [float(row["lr"]) for row in read_losses(tmp_path)]
    assert len(rates) == result.steps > 10
    assert rates[-1] < 0.05 * max(rates)
    assert max(rates) == pytest.approx(0.05, rel=0.05)
    state = read_state(result.last)["callbacks"]["TimeBudget"]
    assert 2.0 <= state["elapsed"] < 3.0


def test_a_resumed_time_budget_does_not_start_again():
    budget = TimeBudget(10.0)
    budget.load_state_dict({"elapsed": 4.0})
    assert budget.progress == 0.4


def test_two_lengths_are_a_contradiction():
    with pytest.raises(ValueError, match="choose one"):
        TrainingOptions(max_steps=3, max_seconds=3.0)


def test_bf16_trains_on_the_cpu(tmp_path):
    run(tmp_path, precision="bf16-mixed")
    losses = [float(row["total"]) for row in read_losses(tmp_path)]
    assert losses[-1] < losses[0]


# ---- logs


def test_losses_csv_has_a_row_per_step_and_a_column_per_term(tmp_path):
    run(tmp_path, accumulate=2, max_steps=5)
    rows = read_losses(tmp_path)
    assert list(rows[0]) == ["step", "epoch", "lr", "total", "toy/square", "toy/linear"]
    assert [row["step"] for row in rows] == list("12345")
    for row in rows:
        total = float(row["toy/square"]) + 0.5 * float(row["toy/linear"])
        assert float(row["total"]) == pytest.approx(total, rel=1e-6)


def test_plain_progress_says_step_loss_speed_and_time_left(tmp_path, capsys):
    run(tmp_path, progress_seconds=0.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if "step " in line]
    assert len(lines) == 12
    for part in ("step 12/12", "loss ", " steps/s", "0:00 left"):
        assert part in lines[-1]


def test_tensorboard_is_written_on_request(tmp_path):
    run(tmp_path, tensorboard=True, max_steps=1)
    assert list((tmp_path / "tensorboard").glob("events*"))


# ---- frames that cannot be read


def test_an_unreadable_frame_stops_a_training_by_default(tmp_path):
    with pytest.raises(DataError, match=r"frame token3 cannot be read: .*sweep3\.pcd\.bin"):
        run(tmp_path, MadeUpData(unreadable=(3,)), max_steps=5)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_frames_are_skipped_and_counted_when_told_to(tmp_path, capsys, workers):
    data = MadeUpData(unreadable=(3, 8), on_error="skip", workers=workers)
    _, result = run(tmp_path, data, max_steps=None, epochs=2)
    assert result.steps == 10
    assert set(data.skipped) == {"token3", "token8"}
    printed = capsys.readouterr().out
    assert "skipped 2 unreadable frames so far" in printed
    assert ".pcd.bin is truncated; extract it again" in printed


def test_batches_of_nothing_but_unreadable_frames_do_not_stop_a_training(tmp_path):
    data = MadeUpData(8, unreadable=(1, 2, 5), on_error="skip", batch_size=1)
    _, result = run(tmp_path, data, lr_batch=1, max_steps=None, epochs=1)
    assert result.steps == 8
    assert len(data.skipped) == 3


# ---- validation


def test_validation_measures_and_compares_the_sensors(tmp_path, capsys):
    _, result = run(tmp_path, max_steps=None, epochs=1, validate_every=1)
    # The toy detects every annotated car and nothing else: AP 1 for one class of ten.
    assert result.metrics["detection/mAP"] == pytest.approx(0.1)
    assert result.best.exists()
    printed = capsys.readouterr().out
    for part in ("validation after step 5", "sensors alone", "camera + LiDAR", "detection NDS"):
        assert part in printed


def test_no_ablation_for_a_model_of_one_sensor(tmp_path, capsys):
    run(tmp_path, model=ToyModel(sensors=False), max_steps=None, epochs=1, validate_every=1)
    printed = capsys.readouterr().out
    assert "validation after step 5" in printed
    assert "sensors alone" not in printed


def test_data_without_annotations_has_no_metrics_and_no_best(tmp_path):
    data = MadeUpData()
    data.reader("val").global_annotations = lambda i: None
    _, result = run(tmp_path, data, max_steps=None, epochs=1, validate_every=1)
    assert result.metrics == {}
    assert result.best is None
