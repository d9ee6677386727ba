"""The built-in task families, one file each; every one has a ``rows()`` that makes its rows."""
