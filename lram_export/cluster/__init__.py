"""Work on many machines: a Ray cluster as a crew that does a job's tasks."""
