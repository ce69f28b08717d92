"""AutoDropout's controller: a policy in torch, and the Optuna sampler that trains it."""

from droptune.autodropout.sampler import AutoDropoutSampler

__all__ = ["AutoDropoutSampler"]
