"""Deployment of a model: bundles, later changes of their items, and an MLflow model."""
