"""The code file of the MLflow model, which MLflow saves and runs when a saved model is loaded."""

import mlflow

from recgrit.serving.pyfunc import BundleModel

mlflow.models.set_model(BundleModel())
