"""The numbers of a report, from predictions alone: metrics, intervals, differences, subgroups."""
