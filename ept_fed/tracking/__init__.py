"""Export of a run's numbers to TensorBoard and MLflow: counts and averages, never images, file names or paths."""
