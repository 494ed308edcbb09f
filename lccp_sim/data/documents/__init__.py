"""Where documents come from: files, folders and data sets, wheels, what an installation carries, and made text."""
