"""Import this before a kernel runs under Triton's interpreter."""

from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_and_index(tensor, *scope):
    # Triton 3.6 makes a loop's bound of an array of one element, which numpy 2.4 no longer does.
    _patch_tensor(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.squeeze())


interpreter._patch_lang_tensor = _patch_tensor_and_index
