"""`simclr tune` on a workspace: its record, its report, what it says, and what it writes into params.yaml.

Belongs here: what touches the workspace, and the process that Dagster starts. What is tried, trained and compared is
for ``simclr_core.tune``.
"""
