import torch

# Tensors this small are slower with more threads.
torch.set_num_threads(1)
