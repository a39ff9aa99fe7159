"""Pretraining and its parts, next to lightly, kornia and torchvision. What the other packages cost is not here."""
