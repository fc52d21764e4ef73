"""Models over their seeds, as numbers, events, pages and files.

From run folders alone: no live network, and nothing that trains.
"""
