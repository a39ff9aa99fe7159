"""The sample of the demo: 10,000 pictures of Fashion-MNIST, and how they were chosen.

Nothing here is part of a run: ``simclr demo`` unpacks the sample, and the rest of the demo lives in ``pipeline.cli``.
"""
