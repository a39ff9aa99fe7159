"""Evaluation where an image may have several labels, or none of the classes: each class is a separate question.

Answers are a probability for each class and image, and what they are worth is mean average precision. Here belongs what
differs by that; features, folds and draws of the labels are those of ``evaluation``.
"""
