"""From a command line to checked configurations: keys, types, one-line errors, jobs of a sweep.

No torch here: a wrong command is answered before it is loaded. Nothing of what the keys mean.
"""
