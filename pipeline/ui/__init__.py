"""The processes behind `simclr ui`: services and their health, the guarded web server.

Nothing here knows what a run computes.
"""
