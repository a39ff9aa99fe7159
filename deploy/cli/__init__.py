"""The command line ``simclr-deploy``: it parses arguments and prints lines.

The other rooms do the work of the commands; they never import this one.
"""

from deploy.moved import names_of

__getattr__ = names_of("deploy.cli.main")
