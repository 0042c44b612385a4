"""The registries that users choose from: methods and strategies, with their sources, numbers and limits."""
