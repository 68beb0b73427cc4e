"""The evaluation of recommendation lists: metrics, intervals, reports and comparisons.

This package knows nothing of models, and does not import torch.
"""
