"""Beyond one process: datasets on Ray, which schedules, moves the data and recovers."""
