"""How names and layouts of published tensors become ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..training.state_file import CheckpointError


def as_it_is(tensor: Tensor) -> Tensor:
    """No change of layout."""
    return tensor


@dataclass(frozen=True)
class Rule:
    """One tensor, or a family of them, by name.

    Args:
        published: regular expression for the whole published name.
        ours: our name; ``\\1`` is what the first pair of brackets matched, ``<1>`` is that number
            n as the place of a layer in blocks of convolution, norm and ReLU: n // 3 . n % 3.
        convert: from the published layout to ours.
    """

    published: str
    ours: str
    convert: Callable[[Tensor], Tensor] = as_it_is

    def name(self, published: str) -> str | None:
        """Our name of a published tensor; None if the rule is not for it."""
        match = re.fullmatch(self.published, published)
        if match is None:
            return None

        def block(group: re.Match) -> str:
            n = int(match[int(group[1])])
            return f"{n // 3}.{n % 3}"

        return match.expand(re.sub(r"<(\d)>", block, self.ours))


def translate(
    weights: Mapping[str, Tensor], rules: Sequence[Rule], model: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Published tensors as a state dict of the model.

    Args:
        weights: published tensors, without constants.
        rules: the first rule that knows a name is used.
        model: the model's own state dict, for names, shapes and types.

    Raises:
        CheckpointError: naming every tensor that is unknown, missing or of another shape.
    """
    ours: dict[str, Tensor] = {}
    problems = []
    for published, tensor in weights.items():
        found = ((rule, name) for rule in rules if (name := rule.name(published)) is not None)
        rule, name = next(found, (None, ""))
        if rule is None or name not in model:
            problems.append(f"unknown {published} {tuple(tensor.shape)}")
            continue
        try:
            converted = rule.convert(tensor)
        except (ValueError, IndexError, RuntimeError) as error:
            problems.append(f"{published} is {tuple(tensor.shape)}: {error}")
            ours[name] = tensor
            continue
        expected = model[name]
        if name in ours:
            problems.append(f"{published} is there twice, by two names")
        elif converted.shape != expected.shape:
            problems.append(
                f"{published} is {tuple(tensor.shape)}, which as {name} would be "
                f"{tuple(converted.shape)}; the model's is {tuple(expected.shape)}"
            )
        elif converted.is_floating_point() != expected.is_floating_point():
            problems.append(f"{published} is {tensor.dtype}, the model's {expected.dtype}")
        ours[name] = converted.to(expected.dtype).contiguous()
    problems += [f"missing {name}" for name in model if name not in ours]
    if problems:
        raise CheckpointError(_listed(problems))
    return ours


def _listed(problems: Iterable[str], limit: int = 40) -> str:
    lines = list(problems)
    shown = lines[:limit] + ([f"and {len(lines) - limit} more"] if len(lines) > limit else [])
    return (
        f"the checkpoint is not of this architecture, {len(lines)} tensors differ; check --from "
        "and --task:\n  " + "\n  ".join(shown)
    )
