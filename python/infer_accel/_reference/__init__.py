"""The executable specification, one module a part, with the names of the native modules."""
