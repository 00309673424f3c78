"""ONNX Runtime sessions of the graphs of an export."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.errors import DataError
from ...kernels.threads import available_threads
from .manifest import GraphSpec

if TYPE_CHECKING:
    from onnxruntime import OrtValue

Provider = str | tuple[str, dict[str, Any]]
# Takes a graph, its inputs and its outputs by name.
Observer = Callable[[GraphSpec, Mapping[str, Any], Mapping[str, Any]], None]


@dataclass(frozen=True)
class RuntimeOptions:
    """How to run the graphs.

    Args:
        providers: ONNX Runtime's execution providers, best first, by name or with options:
            ``CPUExecutionProvider``, ``CUDAExecutionProvider``, ``TensorrtExecutionProvider``,
            ``OpenVINOExecutionProvider``, whichever the installed onnxruntime package has.
        threads: cores to use, of the graphs and of what comes before them; None for all cores of
            this process.
        spinning: let idle threads wait actively, which answers a little sooner and keeps the
            cores busy between frames.
        session_config: further entries of ``SessionOptions.add_session_config_entry``.
        session_options: an ``onnxruntime.SessionOptions`` to start from; None for the defaults.
        verify: compare the checksums of the graphs with the manifest.
    """

    providers: Sequence[Provider] = ("CPUExecutionProvider",)
    threads: int | None = None
    spinning: bool = False
    session_config: Mapping[str, str] | None = None
    session_options: Any = None
    verify: bool = True

    @property
    def num_threads(self) -> int:
        """Cores to use."""
        return self.threads or available_threads()


class GraphSession:
    """One graph, loaded and ready.

    Args:
        folder: where the file is.
        spec: of the manifest.
        options: how to run it.
        observe: called after every run.

    Raises:
        DataError: if onnxruntime cannot load the file, or lacks a provider that was asked for.
    """

    def __init__(
        self,
        folder: Path,
        spec: GraphSpec,
        options: RuntimeOptions,
        observe: Observer | None = None,
    ):
        import onnxruntime as ort

        names = [p if isinstance(p, str) else p[0] for p in options.providers]
        if missing := set(names) - set(ort.get_available_providers()):
            raise DataError(
                f"the installed onnxruntime has no {min(missing)}; it has "
                f"{', '.join(ort.get_available_providers())}. Install the package that brings it "
                "(onnxruntime-gpu, onnxruntime-openvino) or choose other providers"
            )
        settings = options.session_options or ort.SessionOptions()
        settings.intra_op_num_threads = options.num_threads
        settings.log_severity_level = max(settings.log_severity_level, 3)
        entries = {"session.intra_op.allow_spinning": "1" if options.spinning else "0"}
        for name, value in {**entries, **(options.session_config or {})}.items():
            settings.add_session_config_entry(name, value)
        try:
            self._session = ort.InferenceSession(
                os.fspath(folder / spec.file), settings, providers=list(options.providers)
            )
        except Exception as error:  # onnxruntime's errors have no common class
            raise DataError(f"{folder / spec.file} cannot be loaded: {error}") from error
        self.spec, self._ort, self._observe = spec, ort, observe
        self.inputs = [tensor.name for tensor in spec.inputs]
        self.outputs = [tensor.name for tensor in spec.outputs]
        # Outputs stay on the device where another graph reads them.
        self.device = "cuda" if names[0].startswith(("CUDA", "Tensorrt")) else "cpu"

    def value(self, array: NDArray) -> OrtValue:
        """An array on the graph's device, to be given again and again."""
        return self._ort.OrtValue.ortvalue_from_numpy(array, self.device, 0)

    def run(
        self, inputs: Mapping[str, NDArray | OrtValue], on_device: Collection[str] = ()
    ) -> dict[str, OrtValue]:
        """Outputs by name.

        Args:
            inputs: by name; what the graph does not know is left out.
            on_device: names of outputs to leave where they are made.
        """
        binding = self._session.io_binding()
        for name in self.inputs:
            value = inputs[name]
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, self.device if name in on_device else "cpu")
        self._session.run_with_iobinding(binding)
        outputs = dict(zip(self.outputs, binding.get_outputs()))
        if self._observe is not None:
            self._observe(self.spec, {name: inputs[name] for name in self.inputs}, outputs)
        return outputs
