"""MIT BEVFusion's forward pass, restated from its published facts on its own tensor names.

Plain dense PyTorch in MIT's conventions throughout: matrices apart from each other, unfold order,
(x, y, z) axes, w-l-h boxes. Slow, and shares nothing with the package but torch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Reference:
    """The published model of a state dict.

    Args:
        state: by published names.
        low: lower edges x, y, z of the point range.
        high: its upper edges.
        voxel: voxel edges.
    """

    def __init__(self, state, low, high, voxel):
        self.state, self.low, self.high, self.voxel = state, low, high, voxel

    def tensor(self, name: str) -> Tensor:
        return self.state[name]

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        parts = (f"{name}.{part}" for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *map(self.tensor, parts), training=False, eps=eps)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensor(f"{name}.weight"), self.state.get(f"{name}.bias"))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.tensor(f"{name}.weight")
        run = {3: F.conv1d, 4: F.conv2d}[weight.ndim]
        return run(x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def blocks(self, prefix: str, strides, x: Tensor, eps: float = 1e-5) -> Tensor:
        """Convolution, norm and ReLU at indices 3 i, 3 i + 1, 3 i + 2 of a sequence."""
        for i, stride in enumerate(strides):
            x = self.conv(f"{prefix}.{3 * i}", x, stride)
            x = self.norm(f"{prefix}.{3 * i + 1}", x, eps).relu()
        return x

    # --- camera -------------------------------------------------------------------------------

    def swin(self, images: Tensor) -> list[Tensor]:
        prefix = "encoders.camera.backbone"
        x = F.conv2d(
            images,
            self.tensor(f"{prefix}.patch_embed.projection.weight"),
            self.tensor(f"{prefix}.patch_embed.projection.bias"),
            stride=4,
        )
        N, _, H, W = x.shape
        x = self.layer_norm(f"{prefix}.patch_embed.norm", x.flatten(2).mT)
        maps = []
        for s, (depth, heads) in enumerate(zip((2, 2, 6, 2), (3, 6, 12, 24))):
            for b in range(depth):
                block = f"{prefix}.stages.{s}.blocks.{b}"
                normed = self.layer_norm(f"{block}.norm1", x).view(N, H, W, -1)
                shift = 3 if b % 2 else 0
                x = x + self.window_attention(f"{block}.attn.w_msa", normed, heads, shift)
                hidden = self.linear(
                    f"{block}.ffn.layers.0.0", self.layer_norm(f"{block}.norm2", x)
                )
                x = x + self.linear(f"{block}.ffn.layers.1", F.gelu(hidden))
            if s > 0:
                normed = self.layer_norm(f"{prefix}.norm{s}", x)
                maps.append(normed.mT.reshape(N, -1, H, W))
            if s < 3:
                unfolded = F.unfold(x.mT.reshape(N, -1, H, W), 2, stride=2).mT
                merge = f"{prefix}.stages.{s}.downsample"
                x = self.linear(f"{merge}.reduction", self.layer_norm(f"{merge}.norm", unfolded))
                H, W = H // 2, W // 2
        return maps

    def window_attention(self, name: str, x: Tensor, heads: int, shift: int) -> Tensor:
        N, H, W, C = x.shape
        x = F.pad(x, (0, 0, 0, -W % 7, 0, -H % 7))
        rows, columns = x.shape[1:3]
        region = torch.zeros(rows, columns)
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            slices = slice(0, -7), slice(-7, -shift), slice(-shift, None)
            for number, (r, c) in enumerate((r, c) for r in slices for c in slices):
                region[r, c] = number
        out = torch.zeros_like(x)
        table = self.tensor(f"{name}.relative_position_bias_table")
        bias = table[self.tensor(f"{name}.relative_position_index")].permute(2, 0, 1)
        for r in range(0, rows, 7):
            for c in range(0, columns, 7):
                window = x[:, r : r + 7, c : c + 7].reshape(N, 49, C)
                qkv = self.linear(f"{name}.qkv", window).view(N, 49, 3, heads, C // heads)
                q, k, v = qkv.permute(2, 0, 3, 1, 4)
                logits = q @ k.mT * (C // heads) ** -0.5 + bias
                here = region[r : r + 7, c : c + 7].flatten()
                logits = logits - 100.0 * (here[:, None] != here)
                attended = (logits.softmax(-1) @ v).transpose(1, 2).reshape(N, 49, C)
                attended = self.linear(f"{name}.proj", attended)
                out[:, r : r + 7, c : c + 7] = attended.view(N, 7, 7, C)
        if shift:
            out = out.roll((shift, shift), (1, 2))
        return out[:, :H, :W].reshape(N, H * W, C)

    def camera_neck(self, maps: list[Tensor]) -> Tensor:
        x = maps[-1]
        for i in (1, 0):
            up = F.interpolate(x, maps[i].shape[-2:], mode="bilinear", align_corners=False)
            x = torch.cat([maps[i], up], 1)
            for part in ("lateral_convs", "fpn_convs"):
                name = f"encoders.camera.neck.{part}.{i}"
                x = self.norm(f"{name}.bn", self.conv(f"{name}.conv", x)).relu()
        return x

    def depth_image(self, points, matrices, size) -> Tensor:
        """(N, 1, H, W); the last point of a pixel stays."""
        lidar_aug, image_aug = matrices["lidar_aug"], matrices["image_aug"]
        q = (points[:, :3] - lidar_aug[:3, 3]) @ torch.linalg.inv(lidar_aug[:3, :3]).T
        depth = torch.zeros(len(image_aug), 1, *size, dtype=points.dtype)
        for n, aug in enumerate(image_aug):
            lidar2image = matrices["intrinsics"][n] @ torch.linalg.inv(matrices["camera2lidar"][n])
            c = q @ lidar2image[:3, :3].T + lidar2image[:3, 3]
            z = c[:, 2].clamp(1e-5, 1e5)
            uvz = torch.stack([c[:, 0] / z, c[:, 1] / z, z], 1) @ aug[:3, :3].T + aug[:3, 3]
            for (u, v, _), d in zip(uvz.tolist(), z.tolist()):
                if 0 <= u < size[1] and 0 <= v < size[0]:
                    depth[n, 0, int(v), int(u)] = d
        return depth

    def view_transform(self, features, points, matrices, size, bounds, with_depth) -> Tensor:
        prefix = "encoders.camera.vtransform"
        x = features
        if with_depth:
            depth = self.depth_image(points, matrices, size)
            depth = self.blocks(f"{prefix}.dtransform", (1, 4, 2), depth)
            x = self.blocks(f"{prefix}.depthnet", (1, 1), torch.cat([depth, x], 1))
        x = self.conv(f"{prefix}.depthnet.6" if with_depth else f"{prefix}.depthnet", x)
        N, _, H, W = x.shape
        weight, context = x[:, :118].softmax(1), x[:, 118:]
        low, step, count = bounds
        u = torch.linspace(0, size[1] - 1, W, dtype=x.dtype).view(1, 1, W).expand(118, H, W)
        v = torch.linspace(0, size[0] - 1, H, dtype=x.dtype).view(1, H, 1).expand(118, H, W)
        d = torch.arange(1.0, 60.0, 0.5, dtype=x.dtype).view(118, 1, 1).expand(118, H, W)
        bev = x.new_zeros(count[0] * count[1], context.shape[1])
        for n in range(N):
            aug, c2l = matrices["image_aug"][n], matrices["camera2lidar"][n]
            p = torch.stack([u, v, d], -1) - aug[:3, 3]
            p = p @ torch.linalg.inv(aug[:3, :3]).T
            p = torch.cat([p[..., :2] * p[..., 2:], p[..., 2:]], -1)
            p = p @ (c2l[:3, :3] @ torch.linalg.inv(matrices["intrinsics"][n][:3, :3])).T
            p = p + c2l[:3, 3]
            p = p @ matrices["lidar_aug"][:3, :3].T + matrices["lidar_aug"][:3, 3]
            cell = ((p - low) / step).trunc().long()  # (118, H, W, 3)
            kept = ((cell >= 0) & (cell < torch.tensor(count))).all(-1)
            lifted = weight[n, :, None] * context[n][None]  # (118, C, H, W)
            flat = cell[..., 0] * count[1] + cell[..., 1]
            bev.index_add_(0, flat[kept], lifted.movedim(1, -1)[kept])
        bev = bev.T.reshape(1, -1, *count[:2])
        return self.blocks(f"{prefix}.downsample", (1, 2, 1), bev)

    # --- LiDAR --------------------------------------------------------------------------------

    def lidar(self, points: Tensor) -> Tensor:
        """Dense convolutions on (x, y, z); voxels that are not active are kept at zero."""
        low, high, size = map(torch.tensor, (self.low, self.high, self.voxel))
        shape = [round(n) for n in ((high - low) / size).tolist()]
        found: dict[tuple[int, ...], list[Tensor]] = {}
        for point in points:
            cell = ((point[:3] - low) / size).floor().int().tolist()
            if all(0 <= c < n for c, n in zip(cell, shape)):
                found.setdefault(tuple(cell), []).append(point)
        x = points.new_zeros(1, 5, shape[0], shape[1], shape[2] + 1)
        active = torch.zeros(1, 1, *x.shape[2:], dtype=points.dtype)
        for (i, j, k), own in found.items():
            x[0, :, i, j, k] = torch.stack(own[:10]).mean(0)
            active[0, 0, i, j, k] = 1
        x, active = self.sparse("conv_input.0", "conv_input.1", x, active)
        for s in (1, 2, 3, 4):
            for b in (0, 1):
                name = f"encoder_layers.encoder_layer{s}.{b}"
                y, _ = self.sparse(f"{name}.conv1", f"{name}.bn1", x, active)
                x, _ = self.sparse(f"{name}.conv2", f"{name}.bn2", y, active, residual=x)
            if s < 4:
                name = f"encoder_layers.encoder_layer{s}.2"
                padding = (1, 1, 0 if s == 3 else 1)
                x, active = self.sparse(f"{name}.0", f"{name}.1", x, active, (2, 2, 2), padding)
        x, _ = self.sparse("conv_out.0", "conv_out.1", x, active, (1, 1, 2), (0, 0, 0))
        return x.permute(0, 1, 4, 2, 3).flatten(1, 2)  # channel 2 c + z

    def sparse(self, conv, norm, x, active, stride=None, padding=None, residual=None):
        weight = self.tensor(f"encoders.lidar.backbone.{conv}.weight")  # (kx, ky, kz, in, out)
        kernel = weight.permute(4, 3, 0, 1, 2)
        if stride is None:  # submanifold
            x = F.conv3d(x, kernel, padding=tuple(n // 2 for n in kernel.shape[2:]))
        else:
            x = F.conv3d(x, kernel, stride=stride, padding=padding)
            ones = torch.ones(1, 1, *kernel.shape[2:], dtype=x.dtype)
            active = (F.conv3d(active, ones, stride=stride, padding=padding) > 0.5).to(x.dtype)
        x = self.norm(f"encoders.lidar.backbone.{norm}", x, 1e-3)
        if residual is not None:
            x = x + residual
        return x.relu() * active, active

    # --- BEV ----------------------------------------------------------------------------------

    def decoder(self, x: Tensor) -> Tensor:
        first = self.blocks("decoder.backbone.blocks.0", (1,) * 6, x, 1e-3)
        second = self.blocks("decoder.backbone.blocks.1", (2, 1, 1, 1, 1, 1), first, 1e-3)
        a = self.norm(
            "decoder.neck.deblocks.0.1", self.conv("decoder.neck.deblocks.0.0", first), 1e-3
        )
        weight = self.tensor("decoder.neck.deblocks.1.0.weight")
        b = F.conv_transpose2d(second, weight, stride=2)
        b = self.norm("decoder.neck.deblocks.1.1", b, 1e-3)
        return torch.cat([a.relu(), b.relu()], 1)

    def attention(self, name, query, key, value) -> Tensor:
        q, k, v = (
            x @ w.T + b
            for x, w, b in zip(
                (query, key, value),
                self.tensor(f"{name}.in_proj_weight").split(128),
                self.tensor(f"{name}.in_proj_bias").split(128),
            )
        )
        q, k, v = (x.view(-1, 8, 16).transpose(0, 1) for x in (q, k, v))
        out = ((q @ k.mT / math.sqrt(16)).softmax(-1) @ v).transpose(0, 1).reshape(-1, 128)
        return self.linear(f"{name}.out_proj", out)

    def position(self, name, place) -> Tensor:
        name = f"{name}.position_embedding_head"
        x = self.norm(f"{name}.1", self.conv(f"{name}.0", place.T[None])).relu()
        return self.conv(f"{name}.3", x)[0].T

    def object_head(self, x: Tensor, cell: float) -> dict[str, Tensor]:
        """200 boxes x, y, z of the middle, w, l, h, yaw, vx, vy; scores, labels, heat-map."""
        h = "heads.object"
        shared = self.conv(f"{h}.shared_conv", x)
        heat = self.norm(f"{h}.heatmap_head.0.bn", self.conv(f"{h}.heatmap_head.0.conv", shared))
        dense = self.conv(f"{h}.heatmap_head.1", heat.relu())
        p = dense.sigmoid()
        highest = torch.zeros_like(p)
        highest[:, :, 1:-1, 1:-1] = F.max_pool2d(p, 3, stride=1)
        highest[:, 8:] = p[:, 8:]
        p = (p * (p == highest)).flatten(2)[0]
        X, Y = x.shape[2:]
        best = p.flatten().argsort(descending=True)[:200]
        label, place = best // (X * Y), best % (X * Y)
        cells = shared[0].flatten(1).T
        i, j = torch.meshgrid(torch.arange(X), torch.arange(Y), indexing="ij")
        centers = torch.stack([i, j], -1).view(-1, 2).to(x.dtype) + 0.5
        one_hot = F.one_hot(label, 10).T[None].to(x.dtype)
        query = cells[place] + self.conv(f"{h}.class_encoding", one_hot)[0].T
        d = f"{h}.decoder.0"
        at_query = self.position(f"{d}.self_posembed", centers[place])
        at_cell = self.position(f"{d}.cross_posembed", centers)
        q = query + at_query
        query = self.layer_norm(f"{d}.norm1", query + self.attention(f"{d}.self_attn", q, q, q))
        k = cells + at_cell
        seen = self.attention(f"{d}.multihead_attn", query + at_query, k, k)
        query = self.layer_norm(f"{d}.norm2", query + seen)
        hidden = self.linear(f"{d}.linear2", self.linear(f"{d}.linear1", query).relu())
        query = self.layer_norm(f"{d}.norm3", query + hidden)
        out = {}
        for name in ("center", "height", "dim", "rot", "vel", "heatmap"):
            branch = f"{h}.prediction_heads.0.{name}"
            y = self.norm(f"{branch}.0.bn", self.conv(f"{branch}.0.conv", query.T[None])).relu()
            out[name] = self.conv(f"{branch}.1", y)[0]
        center = (out["center"] + centers[place].T) * cell
        size = out["dim"].exp()
        rows = [center[0] + self.low[0], center[1] + self.low[1], out["height"][0] - size[2] / 2]
        rows += [*size, torch.atan2(out["rot"][0], out["rot"][1]), *out["vel"]]
        score = out["heatmap"].sigmoid() * p[:, place] * one_hot[0]
        return {
            "boxes": torch.stack(rows, 1),
            "score": score.amax(0),
            "label": label,
            "dense": dense,
        }

    def map_head(self, x: Tensor, half: float) -> Tensor:
        """(6, 200, 200) probabilities; the BEV map reaches from -half to half."""
        c = (-50 + 0.25 + 0.5 * torch.arange(200) + half) / (2 * half) * 2 - 1
        nx, ny = torch.meshgrid(c, c, indexing="ij")
        grid = torch.stack([ny, nx], -1)[None].to(x.dtype)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        x = self.blocks("heads.map.classifier", (1, 1), x)
        return self.conv("heads.map.classifier.6", x)[0].sigmoid()
