"""Evaluation as papers publish it, for numbers next to theirs.

By which encoders are compared, and gates decide, does not belong here.
"""
