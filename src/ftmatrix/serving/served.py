"""What MLflow runs to load a served cell: code, and nothing that is unpickled."""

from mlflow.models import set_model

from ftmatrix.serving.intent_model import IntentModel

set_model(IntentModel())
