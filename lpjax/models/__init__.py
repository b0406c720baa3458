"""Networks: functions that return the units of a chain."""
