"""Models behind services: bundles that stand alone, later items, and an MLflow model."""
