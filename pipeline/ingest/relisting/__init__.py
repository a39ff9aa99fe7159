"""What waits in the sources, without listing again what has not changed: ``relist`` lists, ``store`` remembers.

Nothing here reads the bytes of a file, and nothing depends on what is remembered.
"""
