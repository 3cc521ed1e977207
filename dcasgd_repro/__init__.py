"""Asynchronous SGD with delay compensation, reproduced and simulated (arXiv 1609.08326)."""

__version__ = "0.1.0"
