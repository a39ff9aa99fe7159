"""SimCLR in PyTorch: from prepared image shards to a pretrained, evaluated, fine-tuned and exported encoder.

Importing this package, or its config, shards and order modules, does not import torch.
"""
