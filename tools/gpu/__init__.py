"""The parts of ``tools/gpu_check.py``: a file for each group of kernels.

Such a file has ``checks(device, data)``, which compares its kernels with float64 and also runs on
"cpu" under Triton's interpreter, and ``timings(clock, bandwidth, data)``. ``gpu_check.run`` lists
them.
"""
