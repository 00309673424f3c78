"""Image backbones: what they have in common, and ResNet, which ``transformers`` has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ResNetBackbone, ResNetConfig
from transformers.utils import logging


class ImageBackbone(nn.Module):
    """Images to feature maps of several strides, finest first.

    Args:
        network: a ``transformers`` backbone, its ``out_features`` already chosen, or one of ours.
        strides: of its feature maps against the image, ascending.
    """

    def __init__(self, network: Any, strides: Sequence[int]):
        super().__init__()
        # Convolutions on CPU and tensor cores are fastest with channels last.
        self.network = network.to(memory_format=torch.channels_last)
        self.strides = tuple(strides)
        self.out_channels = tuple(network.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps.

        Args:
            images: (N, 3, H, W) float, normalised.

        Returns:
            One (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])) per stage.
        """
        images = images.contiguous(memory_format=torch.channels_last)
        return list(self.network(images).feature_maps)


class ResNet(ImageBackbone):
    """ResNet (He et al., CVPR 2016), from a random start or a local folder.

    Args:
        embedding_size: channels of the stem, which has stride 4.
        hidden_sizes: channels of the stages; stage i (from 1) has stride 2 ** (i + 1).
        depths: residual blocks per stage.
        layer_type: "basic" (ResNet-18, 34) or "bottleneck" (ResNet-50 and up).
        out_stages: which stages to give, counted from 1, ascending.
        weights: folder with ``model.safetensors`` of a ``transformers`` ResNet, or null.
    """

    def __init__(
        self,
        embedding_size: int = 64,
        hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048),
        depths: tuple[int, ...] = (3, 4, 6, 3),
        layer_type: str = "bottleneck",
        out_stages: tuple[int, ...] = (2, 3, 4),
        weights: Path | None = None,
    ):
        check_stages(out_stages, len(depths))
        if len(hidden_sizes) != len(depths):
            raise ValueError(
                f"ResNet: {len(hidden_sizes)} hidden_sizes and {len(depths)} depths; "
                "give one of each per stage"
            )
        config = ResNetConfig(
            embedding_size=embedding_size,
            hidden_sizes=list(hidden_sizes),
            depths=list(depths),
            layer_type=layer_type,
            out_features=[f"stage{i}" for i in out_stages],  # pyright: ignore[reportCallIssue]
        )
        super().__init__(_network(ResNetBackbone, config, weights), stage_strides(out_stages))


def stage_strides(stages: Sequence[int]) -> list[int]:
    """Strides of stages counted from 1, after a stem of stride 4."""
    return [2 ** (stage + 1) for stage in stages]


def check_stages(stages: Sequence[int], num_stages: int) -> None:
    """Refuse stages that a network of ``num_stages`` does not have, or not in this order.

    Raises:
        ValueError: naming what may be given.
    """
    if not stages or list(stages) != sorted({s for s in stages if 1 <= s <= num_stages}):
        raise ValueError(
            f"out_stages is {tuple(stages)}; give ascending numbers from 1 to {num_stages}, "
            "one per entry of depths"
        )


def _network(kind: type, config, weights: Path | None) -> nn.Module:
    if weights is None:
        return kind(config)
    if not (Path(weights) / "model.safetensors").is_file():
        raise ValueError(f"{weights} has no model.safetensors; give a folder saved by transformers")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its own report of keys: ours is below, and is an error
    try:
        network, report = kind.from_pretrained(
            weights,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    wrong = [*report["missing_keys"], *(str(entry) for entry in report["mismatched_keys"])]
    if wrong:
        raise ValueError(
            f"the weights in {weights} do not fit the configured {kind.__name__}: "
            f"{len(wrong)} tensors are missing or of another shape, the first is {wrong[0]}"
        )
    return network
