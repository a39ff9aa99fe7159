"""What is checked of a bundle before anything uses it: who signed its manifest, and whether its JSON makes sense.

The ONNX file has its own check, ``deploy.graph_policy``. Nothing here loads a model, or decides what happens when a
bundle is refused.
"""
