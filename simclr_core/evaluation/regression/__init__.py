"""What logistic regression is computed with: features that are read in blocks, and the search for a minimum.

Nothing here knows what a label, a budget or a report is.
"""
