"""What every use of a Ray cluster needs: to be connected, or to say in one sentence why not.

What is done on the cluster does not live here: folders are embedded in ``folders``, stages are run by packages above.
"""
