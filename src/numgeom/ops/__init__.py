"""What is known about each ATen op: its local rounding, its slopes, its curvature, its kinks.

Notation and interface: `entry`. The collection of all entries: `table`.
"""
