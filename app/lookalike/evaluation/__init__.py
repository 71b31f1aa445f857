"""Datasets, metrics and reports: how good the vectors are."""
