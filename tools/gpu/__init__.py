"""The parts of ``tools/gpu_check.py``: one file for each group of kernels."""
