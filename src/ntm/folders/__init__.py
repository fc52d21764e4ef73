"""The run folder: what lies where, written whole or not at all, one process at a time.

Knows configurations, and neither networks nor training.
"""
