"""Takes contents out of everything that the workspace holds on to: raw batches, derived data, cache, remotes, history.

Models stay: this room says which of them have seen the contents. A person names what goes; nothing here
chooses it, or touches files in the inbox and the sources.
"""
