"""For all tests: one thread of torch, and hypothesis without deadlines on a busy machine."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # the models are tiny, and threads would fight over few cores

settings.register_profile("droptune", deadline=None, max_examples=30)
settings.load_profile("droptune")
