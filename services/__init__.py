"""The processes of a region, one folder each, and the libraries that they share."""
