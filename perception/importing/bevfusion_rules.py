"""BEVFusion as MIT published it, and as mmdetection3d did: every tensor's name and layout.

Source: the names, shapes and conventions of the published state dicts of MIT BEVFusion (commit
db75150) and of mmdetection3d 1.x ``projects/BEVFusion``. Both have BEV maps with x first, as here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..sparse.weights import from_bevfusion, from_mmdetection3d_bevfusion
from .rules import Rule, as_it_is

Source = Literal["mit-bevfusion", "mmdet3d"]
Convert = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prefixes:
    """What the parts of the model are called before their own names."""

    backbone: str
    neck: str
    lift: str
    lidar: str
    fuser: str
    second: str
    second_fpn: str
    detection: str
    map: str


PREFIXES: dict[Source, Prefixes] = {
    "mit-bevfusion": Prefixes(
        *("encoders.camera.backbone", "encoders.camera.neck", "encoders.camera.vtransform"),
        *("encoders.lidar.backbone", "fuser", "decoder.backbone", "decoder.neck"),
        *("heads.object", "heads.map"),
    ),
    "mmdet3d": Prefixes(
        *("img_backbone", "img_neck", "view_transform", "pts_middle_encoder", "fusion_layer"),
        *("pts_backbone", "pts_neck", "bbox_head", "seg_head"),
    ),
}


def rules_of(source: Source) -> list[Rule]:
    """The rules of all parts; those of parts that a model has not are never asked for."""
    names = PREFIXES[source]
    mit = source == "mit-bevfusion"
    head = (size_from_mit, heading_from_mit) if mit else (as_it_is, as_it_is)
    return [
        *_swin(names.backbone),
        *_camera_neck(names.neck),
        *_view_transform(names.lift),
        *_sparse_encoder(names.lidar),
        *_bev(names),
        *_camera_decoder(names.second, names.second_fpn),
        *_detection_head(names.detection, *head),
        *_center_head(names.detection),
        *_map_head(names.map),
    ]


def _swin(prefix: str) -> list[Rule]:
    theirs, ours = prefix.replace(".", r"\."), "camera.backbone.network"
    block = rf"{theirs}\.stages\.(\d)\.blocks\.(\d+)"
    merge = rf"{theirs}\.stages\.(\d)\.downsample"
    return [
        Rule(rf"{theirs}\.patch_embed\.projection\.(\w+)", rf"{ours}.patch.\1"),
        Rule(rf"{theirs}\.patch_embed\.norm\.(\w+)", rf"{ours}.patch_norm.\1"),
        Rule(rf"{block}\.(norm[12]\.\w+)", rf"{ours}.stages.\1.\2.\3"),
        Rule(
            rf"{block}\.attn\.w_msa\.relative_position_bias_table",
            rf"{ours}.stages.\1.\2.attention.bias_table",
        ),
        Rule(rf"{block}\.attn\.w_msa\.(qkv\.\w+)", rf"{ours}.stages.\1.\2.attention.\3"),
        Rule(rf"{block}\.attn\.w_msa\.proj\.(\w+)", rf"{ours}.stages.\1.\2.attention.out.\3"),
        Rule(rf"{block}\.ffn\.layers\.0\.0\.(\w+)", rf"{ours}.stages.\1.\2.linear1.\3"),
        Rule(rf"{block}\.ffn\.layers\.1\.(\w+)", rf"{ours}.stages.\1.\2.linear2.\3"),
        Rule(rf"{merge}\.(norm\.\w+)", rf"{ours}.merges.\1.\2", patch_first),
        Rule(rf"{merge}\.(reduction\.weight)", rf"{ours}.merges.\1.\2", patch_first),
        # Their stages count from 0.
        Rule(rf"{theirs}\.norm1\.(\w+)", rf"{ours}.norms.stage2.\1"),
        Rule(rf"{theirs}\.norm2\.(\w+)", rf"{ours}.norms.stage3.\1"),
        Rule(rf"{theirs}\.norm3\.(\w+)", rf"{ours}.norms.stage4.\1"),
    ]


def _camera_neck(prefix: str) -> list[Rule]:
    theirs = prefix.replace(".", r"\.")
    return [
        Rule(rf"{theirs}\.{name}\.(\d)\.{layer}\.(\w+)", rf"camera.fpn.{ours}.\1.{number}.\2")
        for name, ours in (("lateral_convs", "lateral"), ("fpn_convs", "smooth"))
        for layer, number in (("conv", 0), ("bn", 1))
    ]


def _view_transform(prefix: str) -> list[Rule]:
    theirs, ours = prefix.replace(".", r"\."), "camera.lift"
    return [
        Rule(rf"{theirs}\.dtransform\.(\d)\.(\w+)", rf"{ours}.depth_image_net.<1>.\2"),
        Rule(rf"{theirs}\.depthnet\.6\.(\w+)", rf"{ours}.depth_net.2.\1"),
        Rule(rf"{theirs}\.depthnet\.(\d)\.(\w+)", rf"{ours}.depth_net.<1>.\2"),
        Rule(rf"{theirs}\.depthnet\.(weight|bias)", rf"{ours}.depth_net.\1"),
        Rule(rf"{theirs}\.downsample\.(\d)\.(\w+)", rf"{ours}.bev_net.<1>.\2"),
    ]


def _sparse_encoder(prefix: str) -> list[Rule]:
    theirs = prefix.replace(".", r"\.")
    layer = r"encoder_layers\.encoder_layer\d\.\d"
    convolution = rf"(conv_input\.0|conv_out\.0|{layer}\.0|{layer}\.conv[12])\.weight"
    norm = rf"(conv_input\.1|conv_out\.1|{layer}\.1|{layer}\.bn[12])\.(\w+)"
    return [
        Rule(rf"{theirs}\.{convolution}", r"lidar.\1.weight", from_either_spconv),
        Rule(rf"{theirs}\.{norm}", r"lidar.\1.\2"),
    ]


def _bev(names: Prefixes) -> list[Rule]:
    fuser, second, fpn = (
        part.replace(".", r"\.") for part in (names.fuser, names.second, names.second_fpn)
    )
    return [
        Rule(rf"{fuser}\.([01]\.\w+)", r"fuser.conv.\1"),
        Rule(rf"{second}\.blocks\.(\d)\.(\d+)\.(\w+)", r"backbone.stages.\1.<2>.\3"),
        Rule(rf"{fpn}\.deblocks\.(\d)\.(\d\.\w+)", r"backbone.ups.\1.\2"),
    ]


def _camera_decoder(stages: str, neck: str) -> list[Rule]:
    """The residual decoder of the camera-only model."""
    stages, neck = stages.replace(".", r"\."), neck.replace(".", r"\.")
    return [
        Rule(rf"{stages}\.(\d\.\d\.(?:conv|bn)\d\.\w+)", r"backbone.stages.\1"),
        Rule(rf"{stages}\.(\d\.\d)\.downsample\.(\d\.\w+)", r"backbone.stages.\1.shortcut.\2"),
        Rule(rf"{neck}\.fuse\.(\d)\.(\w+)", r"backbone.fuse.<1>.\2"),
        # Before them comes a layer without weights.
        Rule(rf"{neck}\.upsample\.1\.(\w+)", r"backbone.up.0.\1"),
        Rule(rf"{neck}\.upsample\.2\.(\w+)", r"backbone.up.1.\1"),
    ]


def _center_head(prefix: str) -> list[Rule]:
    """CenterPoint's head of the camera-only model; its boxes are those of MIT's other head."""
    theirs, ours = prefix.replace(".", r"\."), "heads.detection"
    branches = {"reg": "offset", "height": "height", "dim": "size", "rot": "heading"}
    branches |= {"vel": "velocity"}
    last: dict[str, Convert] = {"dim": size_from_mit, "rot": heading_from_mit}
    found = [
        Rule(rf"{theirs}\.shared_conv\.conv\.(\w+)", rf"{ours}.shared.0.\1"),
        Rule(rf"{theirs}\.shared_conv\.bn\.(\w+)", rf"{ours}.shared.1.\1"),
    ]
    for name in ("heatmap", *branches):
        branch = rf"{theirs}\.task_heads\.(\d)\.{name}"
        to = rf"{ours}.heatmap.\1"
        if name in branches:
            to = rf"{ours}.regression.\1.{branches[name]}"
        found += [
            Rule(rf"{branch}\.0\.conv\.(\w+)", rf"{to}.0.0.\2"),
            Rule(rf"{branch}\.0\.bn\.(\w+)", rf"{to}.0.1.\2"),
            Rule(rf"{branch}\.1\.(\w+)", rf"{to}.1.\2", last.get(name, as_it_is)),
        ]
    return found


def _detection_head(prefix: str, size: Convert, heading: Convert) -> list[Rule]:
    theirs, ours = prefix.replace(".", r"\."), "heads.detection"
    decoder, branch = rf"{theirs}\.decoder\.0", rf"{theirs}\.prediction_heads\.0"
    branches = {"center": "center", "height": "height", "dim": "size", "rot": "heading"}
    branches |= {"vel": "velocity", "heatmap": "logits"}
    last: dict[str, Convert] = {"dim": size, "rot": heading}
    attention = r"(in_proj_weight|in_proj_bias|out_proj\.\w+)"
    found = [
        Rule(rf"{theirs}\.shared_conv\.(\w+)", rf"{ours}.shared.\1"),
        Rule(rf"{theirs}\.heatmap_head\.0\.conv\.(\w+)", rf"{ours}.heatmap.0.0.\1"),
        Rule(rf"{theirs}\.heatmap_head\.0\.bn\.(\w+)", rf"{ours}.heatmap.0.1.\1"),
        Rule(rf"{theirs}\.heatmap_head\.1\.(\w+)", rf"{ours}.heatmap.1.\1"),
        Rule(rf"{theirs}\.class_encoding\.(\w+)", rf"{ours}.class_embedding.\1"),
        # In mmdetection3d attention is wrapped once more, and layers have other names.
        Rule(
            rf"{decoder}\.self_attn\.(?:attn\.)?{attention}", rf"{ours}.decoder.self_attention.\1"
        ),
        Rule(
            rf"{decoder}\.(?:multihead_attn|cross_attn\.attn)\.{attention}",
            rf"{ours}.decoder.cross_attention.\1",
        ),
        Rule(rf"{decoder}\.(?:linear1|ffn\.layers\.0\.0)\.(\w+)", rf"{ours}.decoder.linear1.\1"),
        Rule(rf"{decoder}\.(?:linear2|ffn\.layers\.1)\.(\w+)", rf"{ours}.decoder.linear2.\1"),
        *(
            Rule(rf"{decoder}\.(?:norm{n}|norms\.{n - 1})\.(\w+)", rf"{ours}.decoder.norm{n}.\1")
            for n in (1, 2, 3)
        ),
        *(
            Rule(
                rf"{decoder}\.{name}_posembed\.position_embedding_head\.(\d\.\w+)",
                rf"{ours}.decoder.{part}_position.\1",
            )
            for name, part in (("self", "query"), ("cross", "map"))
        ),
    ]
    for name, part in branches.items():
        to = f"{ours}.prediction.{part}"
        found += [
            Rule(rf"{branch}\.{name}\.0\.conv\.(\w+)", rf"{to}.0.\1"),
            Rule(rf"{branch}\.{name}\.0\.bn\.(\w+)", rf"{to}.1.\1"),
            Rule(rf"{branch}\.{name}\.1\.(\w+)", rf"{to}.3.\1", last.get(name, as_it_is)),
        ]
    return found


def _map_head(prefix: str) -> list[Rule]:
    theirs, ours = prefix.replace(".", r"\."), "heads.map.classifier"
    return [
        Rule(rf"{theirs}\.classifier\.6\.(\w+)", rf"{ours}.2.\1"),
        Rule(rf"{theirs}\.classifier\.(\d)\.(\w+)", rf"{ours}.<1>.\2"),
    ]


# --- Layouts --------------------------------------------------------------------------------------


def from_either_spconv(weight: Tensor) -> Tensor:
    """A sparse convolution on (x, y, z), as spconv 1.x stores it or as spconv 2.x does.

    1.x has the kernel's edges first, which here are 1 or 3; 2.x the output channels, 16 at least.
    """
    if weight.ndim == 5 and weight.shape[0] > 3:
        return from_mmdetection3d_bevfusion(weight)
    return from_bevfusion(weight)


def patch_first(tensor: Tensor) -> Tensor:
    """The last axis of patch merging, from mmdetection's order to ours.

    Theirs is that of ``unfold``: 4 * channel + 2 * row + column. Ours, and Microsoft's, is by
    patch first: (row 0, column 0), (1, 0), (0, 1), (1, 1), each with all channels.
    """
    patches = tensor.unflatten(-1, (-1, 2, 2))  # channel, row, column
    return patches.movedim(-3, -1).transpose(-3, -2).flatten(-3)


def size_from_mit(tensor: Tensor) -> Tensor:
    """Rows of the last layer of ``dim``: width, length, height to length, width, height."""
    return tensor[[1, 0, 2]]


def heading_from_mit(tensor: Tensor) -> Tensor:
    """Rows of the last layer of ``rot`` to sine and cosine of our yaw.

    Theirs are sine and cosine of a yaw that grows clockwise, ours is -theirs - pi / 2: the sine
    becomes minus their cosine and the cosine minus their sine.
    """
    return -tensor[[1, 0]]
