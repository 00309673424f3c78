"""Swin: windows one token at a time, patch merging by index, and transformers' own network."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import SwinBackbone, SwinConfig

from bevstack.perception.encoders import Swin
from bevstack.perception.encoders.swin import PatchMerging, SwinBlock, WindowAttention


def randomized(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
    return module


def naive_attention(layer, tokens):
    """Every query token by itself: who is in its window, and with what bias."""
    H, W, C = tokens.shape
    size, shift, heads = layer.window_size, layer.shift, layer.num_heads
    rows, columns = -(-H // size) * size, -(-W // size) * size
    padded = tokens.new_zeros(rows, columns, C)
    padded[:H, :W] = tokens
    q, k, v = (padded @ layer.qkv.weight.T + layer.qkv.bias).split(C, -1)
    place = {(r, c): ((r - shift) % rows, (c - shift) % columns)
             for r in range(rows) for c in range(columns)}  # fmt: skip
    out = torch.zeros(H, W, C, dtype=tokens.dtype)
    for r in range(H):
        for c in range(W):
            r0, c0 = place[r, c]
            near = [
                p
                for p, (a, b) in place.items()
                if (a // size, b // size) == (r0 // size, c0 // size)
            ]
            for h in range(heads):
                part = slice(h * C // heads, (h + 1) * C // heads)
                logits = []
                for i, j in near:
                    dr, dc = r0 - place[i, j][0], c0 - place[i, j][1]
                    row = (dr + size - 1) * (2 * size - 1) + dc + size - 1
                    value = q[r, c, part] @ k[i, j, part] / math.sqrt(C / heads)
                    value = value + layer.bias_table[row, h]
                    # Brought together by the wrap alone: not where they were before the shift.
                    value = value - 100 * ((r - i, c - j) != (dr, dc))
                    logits.append(value)
                weight = torch.stack(logits).softmax(0)
                out[r, c, part] = sum(w * v[i, j, part] for w, (i, j) in zip(weight, near))
    return out @ layer.out.weight.T + layer.out.bias


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(6, 6), (5, 7), (2, 4)])
def test_window_attention_one_token_at_a_time(shift, size):
    layer = randomized(WindowAttention(4, 2, 3, shift).double())
    tokens = torch.randn(
        2, *size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    want = torch.stack([naive_attention(layer, image) for image in tokens])
    torch.testing.assert_close(layer(tokens), want, rtol=1e-9, atol=1e-9)


def test_block_adds_attention_and_feed_forward():
    block = randomized(SwinBlock(4, 2, 3, shifted=True, drop_path=0.5).double()).eval()
    tokens = torch.randn(1, 5, 4, 4, dtype=torch.float64)
    middle = tokens + naive_attention(block.attention, block.norm1(tokens)[0])
    hidden = block.norm2(middle) @ block.linear1.weight.T + block.linear1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    want = middle + hidden @ block.linear2.weight.T + block.linear2.bias
    torch.testing.assert_close(block(tokens), want, rtol=1e-9, atol=1e-9)


def test_dropped_branches_leave_the_image_as_it_is_and_kept_ones_are_scaled():
    torch.manual_seed(0)
    block = randomized(SwinBlock(4, 2, 3, shifted=False, drop_path=0.75).double())
    tokens = torch.randn(1, 3, 3, 4, dtype=torch.float64).expand(64, -1, -1, -1)
    attended = block.attention(block.norm1(tokens[:1]))
    fed = [  # what the feed-forward net adds, with attention and without
        F.linear(F.gelu(block.linear1(block.norm2(x))), block.linear2.weight, block.linear2.bias)
        for x in (tokens[:1], tokens[:1] + 4 * attended)
    ]
    cases = [tokens[:1] + a * 4 * attended + f * 4 * fed[a] for a in (0, 1) for f in (0, 1)]
    which = []
    for image in block(tokens):
        which += [i for i, case in enumerate(cases) if torch.allclose(image, case[0])]
    assert len(which) == len(tokens)
    assert set(which) == {0, 1, 2, 3}


def test_patch_merging_takes_rows_before_columns():
    merging = randomized(PatchMerging(3).double())
    tokens = torch.randn(1, 3, 5, 3, dtype=torch.float64)
    got = merging(tokens)
    assert got.shape == (1, 2, 3, 6)
    padded = F.pad(tokens, (0, 0, 0, 1, 0, 1))
    for i in range(2):
        for j in range(3):
            patch = [padded[0, 2 * i + r, 2 * j + c] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))]
            want = merging.reduction(merging.norm(torch.cat(patch)))
            torch.testing.assert_close(got[0, i, j], want)


def transformers_swin():
    torch.manual_seed(0)
    config = SwinConfig(embed_dim=8, depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=3,
                        out_features=["stage2", "stage3"])  # fmt: skip
    return randomized(SwinBackbone(config)).eval()


def test_reads_and_equals_transformers_swin(tmp_path):
    theirs = transformers_swin()
    theirs.save_pretrained(tmp_path)
    ours = Swin(8, (2, 2, 2), (1, 2, 4), 3, 0.2, (2, 3), weights=tmp_path).eval()
    for size in ((64, 96), (75, 118)):
        image = torch.randn(2, 3, *size)
        for a, b in zip(ours(image), theirs(image).feature_maps):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_reads_the_names_of_todays_transformers_and_of_a_classifier(tmp_path):
    theirs = transformers_swin()
    theirs.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    build = lambda: Swin(8, (2, 2, 2), (1, 2, 4), 3, 0.2, (2, 3), weights=tmp_path)  # noqa: E731
    want = build().state_dict()
    save_file(
        {n: t.contiguous() for n, t in theirs.state_dict().items()}, tmp_path / "model.safetensors"
    )
    assert all(torch.equal(t, want[n]) for n, t in build().state_dict().items())
    classifier = {
        f"swin.{n.removeprefix('swin.')}": t for n, t in stored.items() if "norms" not in n
    }
    save_file(classifier | {"classifier.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    got = build().state_dict()
    assert all(torch.equal(t, want[n]) for n, t in got.items() if ".norms." not in n)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    transformers_swin().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not fit"):
        Swin(8, (2, 2, 4), (1, 2, 4), 3, 0.2, (2, 3), weights=tmp_path)
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        Swin(weights=tmp_path / "nowhere")
