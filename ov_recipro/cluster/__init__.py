"""Beyond one process: datasets on Ray, which schedules, moves data and recovers from failures."""
