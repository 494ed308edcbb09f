"""Sources of documents: files, folders and data sets, wheels, the Python installation, and synthetic text."""
