"""How good a trained encoder is on labeled sets that it was not trained on (SimCLR, section 4.3 and appendix B.8).

Belongs here: reading such a set, linear evaluation, kNN and few-shot classification on it, and the report of them.
What is measured on the images of the workspace is in the folders and files above.
"""
