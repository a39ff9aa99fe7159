"""What a person labels next: the files of `simclr suggest`, and what to do with them.

Belongs here: what is written and said. Which images are chosen is for ``simclr_core.suggest``, how a table is read for
``ingest``.
"""
