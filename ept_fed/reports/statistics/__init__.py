"""The numbers of a report, computed only from predictions: metrics, intervals, differences, subgroups."""
