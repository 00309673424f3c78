"""Joining samples."""

import torch

from bevstack.datasets.batch import Batch, BoxTargets, collate


def sample(token: str, cameras: int, points: int, boxes: int, masks: bool) -> Batch:
    generator = torch.Generator().manual_seed(cameras * 100 + points * 10 + boxes)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    targets = BoxTargets(
        random(boxes, 3), random(boxes, 3), random(boxes), random(boxes, 2),
        torch.zeros(boxes, dtype=torch.long), torch.zeros(boxes, dtype=torch.long),
        torch.zeros(boxes, dtype=torch.long), torch.zeros(boxes, dtype=torch.long),
    )  # fmt: skip
    return Batch(
        tokens=(token,),
        images=torch.zeros(cameras, 3, 4, 6, dtype=torch.uint8),
        image_sample=torch.zeros(cameras, dtype=torch.long),
        bev_from_image=random(cameras, 4, 4),
        points=random(points, 5),
        point_sample=torch.zeros(points, dtype=torch.long),
        global_from_bev=torch.eye(4, dtype=torch.float64)[None],
        boxes=targets,
        box_valid=torch.tensor([boxes > 0]),
        map_masks=torch.ones(1, 6, 5, 7, dtype=torch.bool) if masks else None,
        map_valid=torch.tensor([masks]),
    )


def test_ragged_samples_keep_their_owner():
    batch = collate(
        [sample("a", 2, 3, 1, True), sample("b", 0, 0, 0, False), sample("c", 1, 4, 2, True)]
    )
    assert batch.tokens == ("a", "b", "c")
    assert batch.image_sample.tolist() == [0, 0, 2]
    assert batch.point_sample.tolist() == [0, 0, 0, 2, 2, 2, 2]
    assert batch.boxes.sample.tolist() == [0, 2, 2]
    assert batch.map_masks is not None
    assert batch.map_masks.sum((1, 2, 3)).tolist() == [210, 0, 210]


def test_peer_bug_07_the_batch_size_does_not_come_from_the_data():
    batch = collate([sample("a", 1, 2, 0, False), sample("b", 0, 0, 0, False)])
    assert batch.size == 2
    assert batch.map_masks is None
    assert batch.box_valid.tolist() == [False, False]


def test_joining_batches_equals_joining_samples():
    samples = [sample(name, i, i + 1, i, True) for i, name in enumerate("abc")]
    once = collate(samples)
    twice = collate([collate(samples[:2]), samples[2]])
    assert torch.equal(once.image_sample, twice.image_sample)
    assert torch.equal(once.boxes.center, twice.boxes.center)
    assert torch.equal(once.boxes.sample, twice.boxes.sample)


def test_moving_keeps_everything():
    batch = collate([sample("a", 1, 2, 1, True)])
    moved = batch.to("meta")
    assert moved.points.device.type == moved.boxes.center.device.type == "meta"
    assert batch.points.device.type == "cpu"
