"""The report's page: a file a section, its plots and its template."""
