"""What one process does for all of a cluster: record, alert, clean up."""
