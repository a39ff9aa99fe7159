"""What can be known before a run: does this machine have what params.yaml asks for (``requirements``), and are there
enough images (``images``, ``minimums``)?

Nothing here computes on an image or trains.
"""
