"""Using what was trained: a classifier to call, files to predict, sets to evaluate on."""

from adalora.inference.classifier import Classifier, Prediction, load

__all__ = ["Classifier", "Prediction", "load"]
