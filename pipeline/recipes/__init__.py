"""The parameter sets that a workspace can begin with, one file each, and what makes a params.yaml of them."""
