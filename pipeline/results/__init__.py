"""Comparisons, tables, curves, the page, and exported folders, made from the metrics."""
