"""Environment variables by which the processes of a workspace know where they belong."""

WORKSPACE = "SIMCLR_WORKSPACE"  # the folder of the workspace
RUN = "SIMCLR_RUN"  # the id of the run, in its process and in all that come from it
STAGE_RUN = "SIMCLR_STAGE_RUN"  # one execution of a stage's command, likewise
SIGNING_KEY_FILE = "SIMCLR_SIGNING_KEY_FILE"  # the key that signs what is released
