"""What keeps a workspace healthy: doctor, the check of every stored byte, free disk space.

Nothing here trains, judges or releases.
"""
