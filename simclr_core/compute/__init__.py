"""Where a stage runs: on this machine, on a Ray cluster, or on several machines of an allocation.

A stage's command, its result and its hash are the same everywhere, so nothing here changes what is computed; nothing
here knows images or networks. Only the process that DVC started, the driver, writes into the workspace.
"""
