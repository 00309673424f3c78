"""From a head's raw outputs to results, in numpy: the end of training's and the runtime's way.

Nothing here imports torch.
"""
