"""One thread each: on a small machine two torch threads are slower than one, and results are the same everywhere."""

import torch

torch.set_num_threads(1)
