"""The explorer: a map of all images with thumbnails, the page that shows it, and the labels that people give on it.

A person's decision becomes a row of ``inbox/labels.csv`` or ``overrides.csv`` and nothing else; what follows from it is
for the next run. The page itself is in ``deploy.explore``; what uses torch or computes labels does not belong here.
"""
