"""Looking at a trained network: numbers and arrays at any point, and pictures from arrays.

Writes evaluations into run folders. Nothing here trains; `figures` knows arrays alone.
"""
