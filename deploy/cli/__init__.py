"""The command line ``simclr-deploy``: arguments in, lines out.

What the commands do lives in the other rooms; nothing here is imported by them.
"""

from deploy.moved import names_of

__getattr__ = names_of("deploy.cli.main")
