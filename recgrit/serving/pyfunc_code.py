"""The model as code: MLflow keeps this file and runs it when a saved model is loaded."""

import mlflow

from recgrit.serving.pyfunc import BundleModel

mlflow.models.set_model(BundleModel())
