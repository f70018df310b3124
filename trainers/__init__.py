"""Training, evaluation and prediction, as commands over a library."""
