"""What the answers of classifiers are worth: by class, by number of labels, and image by image.

Nothing here runs a network or writes a stage's report; the stages call it with features or answers.
"""
