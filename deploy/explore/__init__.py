"""The explorer's page: a map of images in a browser, and the requests that it sends.

What the images are, and what a decision about them does, its caller says (``collection``). Nothing here trains, labels
or writes a file.
"""
