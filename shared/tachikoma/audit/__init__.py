"""The audit log outside Redis: the table of codes, the hash chain of files, and the export."""
