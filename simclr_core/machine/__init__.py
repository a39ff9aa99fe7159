"""What a process runs on: the device, its place in a group of processes, and what they say to each other at first.

Nothing here knows images, networks or parameters of a stage; ``launch`` starts processes and joins them.
"""
