"""From a folder of images and a machine to a params.yaml with reasons: what ``simclr init DIR --from FOLDER`` does.

Nothing here trains, and nothing is decided at run time: what is proposed stands in params.yaml, to be read and changed.
"""
